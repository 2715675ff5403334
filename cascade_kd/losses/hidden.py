"""Distillation losses on hidden states: the student's state learns from the teacher's.

Axes: N rows, W units of the student's state, V of the teacher's, F fields (places), D channels of a field.

All raise ValueError for a teacher that carries a gradient and for shapes that do not fit, and all are 0 with a gradient
of exactly 0 where both states are equal. Where the widths differ, ``hint`` wants the student's state through an adapter
(``cascade_kd.distill.adapters``); without one it is direct matching. ``attention_transfer`` and ``relational`` compare
what has no width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cascade_kd.losses.checks import check_no_gradient, check_same_shape, check_teacher


def hint(student_NW: Tensor, teacher_NW: Tensor) -> Tensor:
    """Half the squared distance of two states, summed over all axes but the first, [N].

    ``sum_w (s_w - t_w)^2 / 2``; gradient ``s - t``. Summed, not averaged, over the width, as in the paper.

    Source: Romero et al., "FitNets", ICLR 2015, arXiv:1412.6550, eq. 3. Twice this is the distance of distillation
    experts (Kang et al., "DE-RRD", CIKM 2020), which drops the half.
    """
    check_teacher(student_NW, teacher_NW, "hidden states")
    return (student_NW - teacher_NW).square().flatten(1).sum(dim=1) / 2


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the attention maps of two states, each of unit length, [N]; between 0 and 2.

    ``||Q_s / |Q_s| - Q_t / |Q_t| ||^2`` with ``Q`` the squared activations summed over the channels. The channels are
    the last axis of [N, F, D] (the states may differ in D, not in F); in [N, W] every unit is a place of one channel.
    Any positive scale of a row, the order of its channels and their signs change nothing. A state of zeros has a map of
    zeros, with gradient 0.

    Source: Zagoruyko, Komodakis, "Paying more attention to attention", ICLR 2017, arXiv:1612.03928, eq. 2. Differs: the
    distance is squared, as in the authors' code, and summed over the places, where the code takes the mean.
    """
    check_no_gradient(teacher, "hidden states")
    if not (student.dim() == teacher.dim() in (2, 3) and student.shape[:2] == teacher.shape[:2]):
        raise ValueError(
            "attention maps are of [N, W] or of [N, F, D], both of one kind with one N and one W or F, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return (_attention(student) - _attention(teacher)).square().sum(dim=1)


def relational(student_NW: Tensor, teacher_NV: Tensor, *, where_N: Tensor) -> Tensor:
    """Squared difference of a row's cosines to the other rows of its batch, averaged over those, [N].

    ``mean over j != i of (cos(s_i, s_j) - cos(t_i, t_j))^2`` among the rows of ``where_N``; 0 for the other rows and
    for a row alone. The mean over the rows is the mean over all pairs. A common rotation of either side, and any
    positive scale of a row, change nothing; the widths may differ. A row of zeros has cosine 0 with every row, and
    gradient 0. Time and memory grow with N^2: a sample of a large batch is enough.

    Source: full topology distillation of Kang et al., "Topology distillation for recommender system", KDD 2021,
    arXiv:2106.08700. Differs: a mean over pairs instead of a sum, so that the weight fits any batch.
    """
    check_no_gradient(teacher_NV, "hidden states")
    if not (student_NW.dim() == teacher_NV.dim() == 2 and len(student_NW) == len(teacher_NV)):
        raise ValueError(
            "relations are between the rows of [N, W] and of [N, V] with one N, "
            f"got {tuple(student_NW.shape)} and {tuple(teacher_NV.shape)}"
        )
    check_same_shape(student_NW[:, 0], where_N, "rows and their mask")
    student_NW, teacher_NV = _direction(_cleaned(student_NW, where_N)), _direction(_cleaned(teacher_NV, where_N))
    # A masked row is 0 on both sides, so its cosines differ nowhere; a row's cosine to itself is no relation.
    gap_NN = (student_NW @ student_NW.T - teacher_NV @ teacher_NV.T).fill_diagonal_(0.0)
    return gap_NN.square().sum(dim=1) / (where_N.sum() - 1).clamp(min=1)


def _attention(state: Tensor) -> Tensor:
    """Attention map of unit length, [N, F] or [N, W]; zeros for a state of zeros."""
    square = _bounded(state).square()
    return _unit(square if square.dim() == 2 else square.sum(dim=2))


def _direction(state_NW: Tensor) -> Tensor:
    """Rows of unit length; zeros for a row of zeros."""
    return _unit(_bounded(state_NW))


def _bounded(state: Tensor) -> Tensor:
    """Rows divided by their largest magnitude, so that no square overflows; zeros where even that has no square.

    The divisor is a constant to autograd: what is made of the rows does not depend on their scale.
    """
    largest_N = state.detach().flatten(1).abs().amax(dim=1)
    zero_N = largest_N < torch.finfo(state.dtype).tiny ** 0.5
    row = (-1, *[1] * (state.dim() - 1))
    return (state / largest_N.masked_fill(zero_N, 1.0).view(row)).masked_fill(zero_N.view(row), 0.0)


def _unit(state_NW: Tensor) -> Tensor:
    """Rows over their length, which for bounded rows is at least 1, or 0."""
    length_N1: Tensor = torch.linalg.vector_norm(state_NW, dim=1, keepdim=True)
    return state_NW / length_N1.clamp(min=0.5)


def _cleaned(state_NW: Tensor, where_N: Tensor) -> Tensor:
    return state_NW.masked_fill(~where_N[:, None], 0.0)
