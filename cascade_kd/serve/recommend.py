"""Recommendations for one user, in the user's own ids (floor 6)."""

from __future__ import annotations

import polars as pl
import torch

from cascade_kd.cascade import Cascade
from cascade_kd.data import Dataset
from cascade_kd.errors import UserError
from cascade_kd.types import ITEM_ID, USER_ID, Requests


def recommend(cascade: Cascade, dataset: Dataset, user: str | int, *, k: int = 10) -> pl.DataFrame:
    """The user's top ``k`` as columns ``item`` (own id), ``score`` (logit of the last stage), best first.

    Asked just after the last event of the data set, in the context of the user's own last event; what the user has
    already in training and validation is left out as the recall stage is set. Raises UserError for an unknown user
    and k below 1.
    """
    if k < 1:
        raise UserError(f"k = {k}: want at least one recommendation")
    code = dataset.code_of(USER_ID, user)
    events = dataset.events
    own = (events.user_N == code).nonzero().squeeze(1)
    if code == 0 or len(own) == 0:
        raise UserError(f"user {user!r} is not in data set '{dataset.name}' ({dataset.num_users:,} users)")
    last = dataset.requests_of(own[-1:], part="test")
    requests = Requests(last.user_B, events.time_N.max().reshape(1) + 1, last.context)
    found = cascade(requests).top(k)
    valid_K = found.valid_BK[0].cpu()
    values = dataset.vocabularies[ITEM_ID]
    items = values.gather((found.item_BK[0].cpu()[valid_K] - 1).tolist())
    scores = found.score_BK[0].cpu()[valid_K].to(torch.float64).numpy()
    return pl.DataFrame({"item": items, "score": scores})
