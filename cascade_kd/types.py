"""The nouns that every floor shares: features, requests, candidates, model inputs and outputs (floor 1).

Axes: B requests, K candidates of a request, R rows (request, item) of a model's input, T tags or history length,
U users, I items, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the check of a TOML needs levels and sides, and no torch
    from torch import Tensor

Level = Literal["recall", "prerank", "rank", "never"]
LEVELS: tuple[Level, ...] = ("recall", "prerank", "rank", "never")
Kind = Literal["categorical", "numeric", "tags", "history", "statistic", "vector"]
Side = Literal["user", "item", "context", "pair"]
Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")

USER_ID = "user_id"  # the feature made of the user's own code; every data set has it
ITEM_ID = "item_id"  # likewise of the item; histories index its vocabulary


@dataclass(frozen=True)
class Feature:
    """One input of a model and the first stage that has it online (its *availability*).

    A feature that is later than a student's level is *privileged* for that student; ``never`` is known only after
    the event. ``size`` counts embedding rows, code 0 (unknown, padding) included, and is 0 for numbers and vectors.
    ``length`` is the most codes that tags or a history hold, and the width of a vector.
    """

    name: str
    kind: Kind
    side: Side
    available: Level
    size: int = 0
    length: int = 1
    vocabulary: str = ""

    @property
    def is_number(self) -> bool:
        """True for numeric and statistic features: a float32 column, not embedding codes."""
        return self.kind in ("numeric", "statistic")

    def online_at(self, level: Level) -> bool:
        """Whether a stage of ``level`` may see this feature."""
        return LEVELS.index(self.available) <= LEVELS.index(level)


@dataclass(frozen=True)
class Requests:
    """What a stage is asked: B users at B moments (unix seconds), with the columns of the context side.

    ``part`` says which log a look-up may read: rows of the train part are answered from the train part, of the test
    part from train and validation, always strictly before the request's moment.
    """

    user_B: Tensor
    time_B: Tensor
    context: Mapping[str, Tensor] = field(default_factory=dict)
    request_B: Tensor | None = None
    part: Part = "test"

    def __len__(self) -> int:
        return self.user_B.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Requests:
        """The requests of ``rows`` (a slice or row numbers)."""
        request_B = None if self.request_B is None else self.request_B[rows]
        context = {name: column[rows] for name, column in self.context.items()}
        return Requests(self.user_B[rows], self.time_B[rows], context, request_B, self.part)


@dataclass(frozen=True)
class Candidates:
    """The only thing that flows between stages: B lists of at most K distinct items, best first.

    Rows are sorted by score, ties by the smaller item code; padded places have ``valid`` false, item 0, score -inf
    and come last. Make one with :meth:`ranked`, which sorts.
    """

    item_BK: Tensor
    score_BK: Tensor
    valid_BK: Tensor

    @staticmethod
    def ranked(item_BK: Tensor, score_BK: Tensor, valid_BK: Tensor | None = None) -> Candidates:
        """Sort every row by score, highest first, ties by smaller code, padding last. Items are int64 codes."""
        import torch

        if valid_BK is None:
            valid_BK = item_BK > 0
        score_BK = score_BK.masked_fill(~valid_BK, -torch.inf)
        item_BK = item_BK.masked_fill(~valid_BK, 0)
        # Two stable sorts: by code (padding last), then by score; equal scores keep the order of the codes.
        by_code_BK = item_BK.masked_fill(~valid_BK, torch.iinfo(item_BK.dtype).max).argsort(dim=1, stable=True)
        by_score_BK = score_BK.gather(1, by_code_BK).argsort(dim=1, descending=True, stable=True)
        order_BK = by_code_BK.gather(1, by_score_BK)
        return Candidates(item_BK.gather(1, order_BK), score_BK.gather(1, order_BK), valid_BK.gather(1, order_BK))

    def top(self, k: int) -> Candidates:
        """The first ``k`` places of every row."""
        return Candidates(self.item_BK[:, :k], self.score_BK[:, :k], self.valid_BK[:, :k])

    def with_scores(self, score_BK: Tensor) -> Candidates:
        """The same items under new scores, sorted anew."""
        return Candidates.ranked(self.item_BK, score_BK, self.valid_BK)

    def __len__(self) -> int:
        return self.item_BK.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Candidates:
        """The lists of ``rows`` (a slice or row numbers)."""
        return Candidates(self.item_BK[rows], self.score_BK[rows], self.valid_BK[rows])

    @property
    def width(self) -> int:
        """K, the number of places of a row."""
        return self.item_BK.shape[1]

    @staticmethod
    def concat(parts: list[Candidates]) -> Candidates:
        """Stack batches of requests of one width."""
        import torch

        return Candidates(
            torch.cat([part.item_BK for part in parts]),
            torch.cat([part.score_BK for part in parts]),
            torch.cat([part.valid_BK for part in parts]),
        )


@dataclass(frozen=True)
class Inputs:
    """A model's input: the user and context side once a request, the item and pair side once a row.

    ``row_R`` names the request of every row, so that a history is pooled once however many candidates it meets.
    Codes are int64 ([B], [R], or [.., T] padded with 0), numbers float32.
    """

    user: Mapping[str, Tensor]  # [B] or [B, T]
    item: Mapping[str, Tensor]  # [R] or [R, T]
    row_R: Tensor

    def drop(self, names: frozenset[str]) -> Inputs:
        """The same rows without the named features (what a leak test removes)."""
        return replace(
            self,
            user={name: x for name, x in self.user.items() if name not in names},
            item={name: x for name, x in self.item.items() if name not in names},
        )


@dataclass(frozen=True)
class Output:
    """What a model returns: raw logits (never probabilities) and the hidden states that were asked for by name."""

    logits_R: Tensor
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
