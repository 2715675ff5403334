"""The requests that offline evaluation asks, and their positives. B requests, P (request, positive item) pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from cascade_kd.data.dataset import Dataset
from cascade_kd.types import Part, Requests


class EvaluationRequests(NamedTuple):
    """Requests with at least one positive; row b's are ``positive_P[offsets_B1[b]:offsets_B1[b + 1]]``, ascending.

    ``num_without`` requests of the part have no positive and are left out.
    """

    requests: Requests
    offsets_B1: Tensor
    positive_P: Tensor
    num_without: int


def evaluation_requests(dataset: Dataset, part: Part, label: str) -> EvaluationRequests:
    """One request for each request of the part if the set has requests, else one a user at the first event's time.

    Positives are the distinct items of the request's events whose ``label`` is true.
    """
    events = dataset.events
    rows_N = dataset.rows(part)
    group_N = events.user_N[rows_N] if events.request_N is None else events.request_N[rows_N]
    _, group_N = torch.unique(group_N, return_inverse=True)
    num_groups = int(group_N.max()) + 1 if len(group_N) else 0
    # Rows are sorted by user and time, so the smallest row of a group is its first event.
    first_G = torch.full((num_groups,), len(events.user_N), device=rows_N.device).scatter_reduce(
        0, group_N, rows_N, "amin"
    )
    positive_N = events.labels[label][rows_N] > 0
    width = dataset.num_items + 1
    pairs_P = torch.unique(group_N[positive_N] * width + events.item_N[rows_N][positive_N])
    count_G = torch.bincount(pairs_P // width, minlength=num_groups)
    asked_G = count_G > 0
    offsets_B1 = torch.cat([count_G.new_zeros(1), count_G[asked_G].cumsum(0)])
    requests = dataset.requests_of(first_G[asked_G], part=part)
    return EvaluationRequests(requests, offsets_B1, pairs_P % width, int((~asked_G).sum()))


@final
class PackedRequests:
    """Requests to take random rows of: their codes, int32, lie side by side.

    A row is then one access to memory and not one a column: of ten columns, a third of the time.
    """

    def __init__(self, requests: Requests) -> None:
        packed = {name: x for name, x in requests.context.items() if x.dim() == 1 and not x.is_floating_point()}
        self._names = list(packed)
        self._code_MC = requests.user_B.new_empty(len(requests), 1 + len(packed), dtype=torch.int32)
        for place, code_M in enumerate([requests.user_B, *packed.values()]):
            self._code_MC[:, place] = code_M
        others = {name: x for name, x in requests.context.items() if name not in packed}
        self._rest = replace(requests, user_B=requests.time_B, context=others)

    def __getitem__(self, rows_B: Tensor) -> Requests:
        """The requests of these rows, as ``Requests`` itself would give them."""
        user_B, *codes = self._code_MC.index_select(0, rows_B).T.to(torch.int64, memory_format=torch.contiguous_format)
        rest = self._rest[rows_B]
        return replace(rest, user_B=user_B, context={**dict(zip(self._names, codes, strict=True)), **rest.context})
