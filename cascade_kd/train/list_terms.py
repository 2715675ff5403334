"""The terms of a student's loss on lists that a teacher ordered (floor 6).

B lists of a step, K places in the teacher's order, N items from elsewhere, M drawn places, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.distill import ListsConfig, LogitDistillConfig, weight_at
from cascade_kd.distill.order_settings import (
    CDConfig,
    DCDConfig,
    ListwiseConfig,
    PairwiseConfig,
    PointwiseConfig,
    RDConfig,
    RRDConfig,
    TopKConfig,
    UnKDConfig,
)
from cascade_kd.losses import (
    clid_listwise,
    collaborative_distillation,
    decay_weight,
    draw_group_pairs,
    draw_pairs,
    draw_permutations,
    draw_places,
    estimated_rank,
    gap_weight,
    kl_listwise,
    listmle,
    listnet,
    mse_probabilities_listwise,
    popularity_groups,
    position_weight,
    positions,
    rankdistil,
    ranking_distillation,
    relaxed_ranking,
    sampled_pairwise,
    student_rank,
    topk_pairwise,
    topk_pointwise,
)
from cascade_kd.models import Model
from cascade_kd.streams import generator_at, hashed, seed_at, stream
from cascade_kd.train.distributed import num_ranks
from cascade_kd.train.negatives import Distribution, Negatives, make_distribution
from cascade_kd.train.settings import SampleSource
from cascade_kd.train.teacher_lists import ListBatch, ListOrder, TeacherLists
from cascade_kd.train.terms import Moment, Term

Score = Callable[[Tensor, Tensor | None], Tensor]  # (item codes [B, N], events) -> the student's scores [B, N]


@dataclass(frozen=True)
class ListMoment:
    """What one step of a method on lists has at hand."""

    lists: ListBatch
    score: Score
    outside: Callable[[int], Tensor]  # N -> items [B, N] from outside the list and the user's training, 0 where none
    anywhere: Callable[[int], Tensor]  # N -> items [B, N] of the catalogue
    generator: torch.Generator
    epoch: int
    num_items: int

    @property
    def scores(self) -> Tensor:
        """The student's scores of all places [B, K]."""
        return self.score(self.lists.item_BK, self.lists.event_BK)

    def first(self, k: int) -> tuple[Tensor, Tensor]:
        """The first k places [B, min(k, K)] and which of them hold an item."""
        where_BM = self.lists.where_BK[:, :k]
        return torch.arange(where_BM.shape[1], device=where_BM.device).expand(where_BM.shape), where_BM

    def at(self, place_BM: Tensor, where_BM: Tensor) -> Tensor:
        """The student's scores of some places [B, M]."""
        event_BK = self.lists.event_BK
        events = None if event_BK is None else event_BK.gather(1, place_BM)
        return self.score(self.lists.item_BK.gather(1, place_BM).masked_fill(~where_BM, 0), events)

    def ranks(self, score_BK: Tensor, sampled: int) -> Tensor:
        """The student's rank of every place among all items, estimated from a sample [B, K]."""
        with torch.no_grad():
            sampled_BN = self.score(self.anywhere(sampled), None)
        every = torch.ones_like(sampled_BN, dtype=torch.bool)
        return estimated_rank(score_BK, sampled_BN, where_BN=every, num_items=self.num_items)


def list_term(
    pair: ListsConfig,
    lists: TeacherLists,
    model: Model,
    names: Sequence[str],
    dataset: Dataset,
    seed: int,
    *,
    kind: str,
    epochs: int,
) -> Term:
    """The mean over a step's lists of the loss that ``pair`` names; the student scores their items in the step.

    Which lists a step takes and all that it draws are functions of ``seed`` and the step.
    """
    source = SampleSource(source=pair.negatives_from if isinstance(pair, TopKConfig) else "uniform", per_positive=1)
    from_where = make_distribution(source, num_items=dataset.num_items, counts_I1=dataset.training_counts)
    order = ListOrder(len(lists), pair.lists_per_step, stream(seed, "lists"))
    loss = list_loss(pair, kind, dataset)

    def on(moment: Moment) -> Tensor:
        batch = lists.batch(order.at(moment.step))
        step_seed = seed_at(stream(seed, "items"), moment.step)
        at = ListMoment(
            batch,
            partial(score_items, model, names, dataset, batch),
            partial(_outside, dataset, batch, from_where, step_seed),
            partial(_anywhere, dataset, batch, step_seed),
            generator_at(stream(seed, "draws"), moment.step),
            moment.step * epochs // max(1, moment.total_steps),
            dataset.num_items,
        )
        return loss(at).mean() / num_ranks()  # every rank learns from all lists: draws are then those of one process

    return Term(pair.name, on, partial(weight_at, pair), on_rows=False)


def score_items(
    model: Model, names: Sequence[str], dataset: Dataset, batch: ListBatch, item_BN: Tensor, event_BN: Tensor | None
) -> Tensor:
    """Logits [B, N] float32 of items for the users of the lists, 0 where there is none (item 0)."""
    row_R, place_R = item_BN.nonzero(as_tuple=True)
    event_R = None if event_BN is None else event_BN[row_R, place_R]
    inputs = dataset.inputs(
        names, batch.requests, item_BN[row_R, place_R], row_R, part=batch.requests.part, event_R=event_R
    )
    logits_R = model(inputs).logits_R.float()
    return logits_R.new_zeros(item_BN.shape).index_put((row_R, place_R), logits_R)


def _outside(dataset: Dataset, batch: ListBatch, from_where: Distribution, seed: int, num: int) -> Tensor:
    """Items [B, num] that are neither on the list nor in the user's training, each once; 0 where a draw is left out."""
    draws = Negatives(((from_where, num),), seed, partial(dataset.is_seen, part="train"))
    item_BN = draws.draw(batch.requests.user_B, batch.number_B.to(batch.item_BK.device))
    width = dataset.num_items + 1
    row_B1 = torch.arange(len(item_BN), device=item_BN.device).unsqueeze(1) * width
    known_BN = torch.isin(row_B1 + item_BN, row_B1 + batch.item_BK)
    sorted_BN, by_item_BN = item_BN.sort(dim=1, stable=True)
    again_BN = torch.zeros_like(known_BN)
    again_BN.scatter_(1, by_item_BN[:, 1:], sorted_BN[:, 1:] == sorted_BN[:, :-1])
    return item_BN.masked_fill(known_BN | again_BN, 0)


def _anywhere(dataset: Dataset, batch: ListBatch, seed: int, num: int) -> Tensor:
    """Items [B, num] of the whole catalogue, all alike; they may repeat."""
    cell_N = torch.arange(len(batch.number_B) * num, device=batch.item_BK.device)
    return (hashed(stream(seed, "anywhere"), cell_N) % dataset.num_items + 1).view(-1, num)


def list_loss(pair: ListsConfig, kind: str, dataset: Dataset) -> Callable[[ListMoment], Tensor]:
    """The loss [B] of every list under one ``[[distill]]`` table."""
    if isinstance(pair, TopKConfig):
        return partial(_top_k, pair, pair.negatives_of(kind))
    if isinstance(pair, RDConfig):
        return partial(_ranking, pair)
    if isinstance(pair, CDConfig):
        return partial(_collaborative, pair)
    if isinstance(pair, RRDConfig):
        return partial(_relaxed, pair)
    if isinstance(pair, DCDConfig):
        return partial(_dual, pair)
    if isinstance(pair, UnKDConfig):
        return partial(_unbiased, pair, popularity_groups(dataset.training_counts()[1:], pair.groups))
    assert isinstance(pair, LogitDistillConfig)
    return partial(_logits, pair)


def _logits(pair: LogitDistillConfig, at: ListMoment) -> Tensor:
    losses: Mapping[str, Callable[..., Tensor]] = {
        "kl": partial(kl_listwise, temperature=pair.temperature),
        "prob-mse": mse_probabilities_listwise,
        "clid": clid_listwise,
    }
    return losses[pair.loss](at.scores, _known(at.lists), where_BK=at.lists.where_BK)


def _known(lists: ListBatch) -> Tensor:
    """The teacher's scores, 0 behind the end of a list, where they are no number."""
    assert lists.score_BK is not None, "config asks such a teacher for logits"
    return lists.score_BK.masked_fill(~lists.where_BK, 0.0)


def _top_k(pair: TopKConfig, negatives: int, at: ListMoment) -> Tensor:
    """Negatives stand behind the list: what is among the first k ends with the list."""
    item_BK, event_BK = at.lists.item_BK, at.lists.event_BK
    k = at.lists.where_BK.sum(1).clamp(max=pair.k)
    if negatives:
        outside_BN = at.outside(negatives)
        item_BK = torch.cat([item_BK, outside_BN], dim=1)
        event_BK = None if event_BK is None else torch.cat([event_BK, torch.full_like(outside_BN, -1)], dim=1)
    score_BK, where_BK = at.score(item_BK, event_BK), item_BK > 0
    if isinstance(pair, PointwiseConfig):
        return topk_pointwise(score_BK, where_BK=where_BK, k=k, alpha=pair.alpha)
    if isinstance(pair, PairwiseConfig):
        return _pairwise(pair, k, score_BK, where_BK, at.generator)
    assert isinstance(pair, ListwiseConfig)
    if not pair.reads_scores:
        return listmle(score_BK, where_BK=where_BK, k=k, alpha=pair.alpha)
    teacher_BK = _known(at.lists) / pair.temperature
    if pair.loss == "listnet":
        return listnet(score_BK, teacher_BK, where_BK=where_BK, alpha=pair.alpha)
    assert pair.draws is not None, "settings fill it in"
    order_BSK = draw_permutations(teacher_BK, pair.draws, where_BK=where_BK, generator=at.generator)
    return rankdistil(score_BK, order_BSK, where_BK=where_BK, k=pair.k, alpha=pair.alpha)


def _pairwise(
    pair: PairwiseConfig, k: Tensor, score_BK: Tensor, where_BK: Tensor, generator: torch.Generator
) -> Tensor:
    if pair.pairs is None:
        return topk_pairwise(
            score_BK, where_BK=where_BK, k=k, margin=pair.margin, alpha=pair.alpha, lambdas=pair.lambdas
        )
    upper_BP, lower_BP, where_BP = draw_pairs(where_BK, pair.pairs, k=k, generator=generator)
    weight_BP = position_weight(positions(where_BK).to(score_BK.dtype), pair.alpha).gather(1, upper_BP)
    return sampled_pairwise(score_BK, upper_BP, lower_BP, where_BP=where_BP, margin=pair.margin, weight_BP=weight_BP)


def _ranking(pair: RDConfig, at: ListMoment) -> Tensor:
    place_BK, where_BK = at.first(pair.k)
    score_BK = at.at(place_BK, where_BK)
    weight_BK = decay_weight(where_BK, pair.scale, pair.k)
    if at.epoch >= pair.hybrid_from:
        weight_BK = weight_BK * gap_weight(at.ranks(score_BK, pair.sampled) - positions(where_BK), pair.mu)
    return ranking_distillation(score_BK, weight_BK, where_BK=where_BK)


def _collaborative(pair: CDConfig, at: ListMoment) -> Tensor:
    where_BK = at.lists.where_BK
    if pair.guide == "student":
        with torch.no_grad():
            rank_BK = student_rank(at.scores, where_BK)
        weight_BK = torch.exp(-rank_BK.double() / pair.scale)
    else:
        weight_BK = decay_weight(where_BK, pair.scale)
    place_BM, where_BM = draw_places(weight_BK, pair.sampled, where_BK=where_BK, generator=at.generator)
    teacher_BM = _known(at.lists).gather(1, place_BM)
    student_BM = at.at(place_BM, where_BM)
    return collaborative_distillation(
        student_BM, teacher_BM, where_BM=where_BM, temperature=pair.temperature, offset=pair.offset
    )


def _relaxed(pair: RRDConfig, at: ListMoment) -> Tensor:
    where_BK = at.lists.where_BK
    if pair.interesting == "first":
        place_BM, where_BM = at.first(pair.k)
    else:
        weight_BK = decay_weight(where_BK, pair.scale)
        place_BM, where_BM = draw_places(weight_BK, pair.k, where_BK=where_BK, generator=at.generator)
    outside_BN = at.outside(pair.negatives)
    interesting_BM, uninteresting_BN = at.at(place_BM, where_BM), at.score(outside_BN, None)
    return relaxed_ranking(interesting_BM, uninteresting_BN, where_BK=where_BM, where_BL=outside_BN > 0)


def _dual(pair: DCDConfig, at: ListMoment) -> Tensor:
    where_BK = at.lists.where_BK
    with torch.no_grad():
        gap_BK = at.ranks(at.scores, pair.sampled) - positions(where_BK)
    under, over = (
        draw_places(gap_weight(gap, pair.epsilon), pair.k, where_BK=where_BK, generator=at.generator)
        for gap in (gap_BK, -gap_BK)
    )
    return relaxed_ranking(at.at(*under), at.at(*over), where_BK=under[1], where_BL=over[1])


def _unbiased(pair: UnKDConfig, group_I: Tensor, at: ListMoment) -> Tensor:
    where_BK = at.lists.where_BK
    group_BK = group_I[(at.lists.item_BK - 1).clamp(min=0)]
    upper_BP, lower_BP, where_BP = draw_group_pairs(
        group_BK, pair.pairs, num_groups=pair.groups, scale=pair.scale, where_BK=where_BK, generator=at.generator
    )
    return sampled_pairwise(at.scores, upper_BP, lower_BP, where_BP=where_BP)
