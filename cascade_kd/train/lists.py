"""Upstream lists: what the stages before would hand on, one list a training user (floor 6). U users, K places."""

from __future__ import annotations

from dataclasses import replace

import torch

from cascade_kd.cascade import Cascade
from cascade_kd.data import Dataset
from cascade_kd.stages import RetrievalStage
from cascade_kd.types import Candidates, Requests


def upstream_lists(upstream: Cascade, dataset: Dataset) -> Candidates:
    """[U + 1, K] the output of ``upstream`` for every training user as of the end of training, by user code.

    Items that the user has in training are left out, whatever the cascade does at evaluation. No event of the
    validation or test part is read: such items are neither removed nor added. Users without training events have an
    empty list.
    """
    first, *later = upstream.stages
    if isinstance(first, RetrievalStage):
        first = replace(first, mask_seen=True)
    requests = end_of_training_requests(dataset)
    lists = Cascade((first, *later)).trace(requests).steps[-1].kept
    shape = (dataset.num_users + 1, lists.width)
    device = lists.item_BK.device
    item_UK = torch.zeros(shape, dtype=torch.int64, device=device)
    score_UK = torch.full(shape, -torch.inf, device=device)
    valid_UK = torch.zeros(shape, dtype=torch.bool, device=device)
    item_UK[requests.user_B] = lists.item_BK
    score_UK[requests.user_B] = lists.score_BK
    valid_UK[requests.user_B] = lists.valid_BK
    return Candidates(item_UK, score_UK, valid_UK)


def end_of_training_requests(dataset: Dataset) -> Requests:
    """One request a training user, just after the last training event, in the context of the user's own last one."""
    rows = dataset.rows("train")
    user = dataset.events.user_N[rows]
    last = torch.ones_like(user, dtype=torch.bool)
    last[:-1] = user[1:] != user[:-1]  # events are sorted by user and time
    end = dataset.log_end("valid")
    requests = dataset.requests_of(rows[last], part="valid")
    return replace(requests, time_B=end.expand(len(requests)).clone(), request_B=None)
