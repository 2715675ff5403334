"""One net reads what another net embeds (floor 3). N rows, F fields, D embedding.

The lender (a student) stays as it is: its tables, names and checkpoints are those of a net trained alone. The
borrower (its joint teacher) takes the lender's embedding of every feature that both read and has its own of the rest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from cascade_kd.errors import UserError
from cascade_kd.models.fields import FieldEmbedding, Side
from cascade_kd.models.table import Table
from cascade_kd.types import Feature, Inputs

EMBEDDING = "embedding"
_LAYER = re.compile(r"(.*\.)?mlp\.(\d+)")


def share(borrower: nn.Module, lender: nn.Module, names: Collection[str], unshared: Collection[str] = ()) -> None:
    """Let ``borrower`` use modules of ``lender``: ``embedding``, and layers named as ``mlp.0`` or ``user.mlp.1``.

    With ``embedding`` every feature that both read is embedded once, by the lender, but for the features ``unshared``
    and those of their vocabularies; so are other features of a vocabulary that the lender has rows for (a history of
    its items). A layer shares weight and bias, not its batch norm.
    Source: Zhou et al., Rocket Launching, AAAI 2018; Xu et al., KDD 2020, section 4.
    Raises UserError where a module is missing or of another shape.
    """
    for name in names:
        if name == EMBEDDING:
            _share_embedding(borrower, lender, unshared)
        elif match := _LAYER.fullmatch(name):
            _share_layer(borrower, lender, name, f"{match[1] or ''}mlp.linear", int(match[2]))
        else:
            raise UserError(f"share: no module '{name}'; want 'embedding', or a layer such as 'mlp.0'")


def borrowed_rows(net: nn.Module) -> list[tuple[nn.Parameter, slice]]:
    """What ``net`` computes with of the embedding that it borrows: parameters, and which of their rows."""
    fields = getattr(net, "fields", None)
    return fields.borrowed_rows() if isinstance(fields, SharedFields) else []


def settle(net: nn.Module) -> None:
    """Give a net that borrows an embedding one of its own, with the same weights: both nets then stand alone."""
    shared = getattr(net, "fields", None)
    if isinstance(shared, SharedFields):
        net.fields = shared.settled()
        shared.forget()


def _share_layer(borrower: nn.Module, lender: nn.Module, name: str, path: str, place: int) -> None:
    found: list[nn.ModuleList] = []
    shapes: list[tuple[int, ...]] = []
    for who, net in (("teacher", borrower), ("student", lender)):
        layers: Any = net
        for part in path.split("."):
            layers = getattr(layers, part, None)
        if not isinstance(layers, nn.ModuleList) or place >= len(layers):
            raise UserError(f"share: the {who} has no layer '{name}'; `cascade-kd list layers` names those there are")
        found.append(layers)
        shapes.append(tuple(cast(nn.Linear, layers[place]).weight.shape))
    of_borrower, of_lender = found
    if shapes[0] != shapes[1]:
        raise UserError(
            f"share: layer '{name}' maps {shapes[0][1]} units to {shapes[0][0]} in the teacher and {shapes[1][1]} to "
            f"{shapes[1][0]} in the student; give both the same features and widths, or leave it out"
        )
    of_borrower[place] = of_lender[place]


def _share_embedding(borrower: nn.Module, lender: nn.Module, unshared: Collection[str]) -> None:
    theirs, ours = getattr(borrower, "fields", None), getattr(lender, "fields", None)
    if not isinstance(theirs, FieldEmbedding) or not isinstance(ours, FieldEmbedding):
        raise UserError("share: one of the two models has no field embedding to share")
    if theirs.dim != ours.dim:
        raise UserError(
            f"share: the teacher embeds to {theirs.dim} numbers and the student to {ours.dim}; give both the same "
            'embedding_size, or leave "embedding" out'
        )
    features = {f.name: f for side in (ours.user, ours.item) for f in side.features}
    unknown = sorted(set(unshared) - set(features))
    if unknown:
        raise UserError(f"except: the student has no feature '{unknown[0]}' whose embedding could be shared")
    apart = {features[name].vocabulary for name in unshared} - {""}
    for vocabulary in sorted((theirs.rows.keys() & ours.rows.keys()) - apart):
        if theirs.rows[vocabulary].modulus != ours.rows[vocabulary].modulus:
            raise UserError(
                f"share: the teacher and the student do not compress the values of '{vocabulary}' alike; give both the "
                'same embedding_max_rows, or leave "embedding" out'
            )
    alone = {name for name, feature in features.items() if name in unshared or feature.vocabulary in apart}
    borrower.fields = SharedFields(theirs, ours, frozenset(alone), frozenset(apart))


@final
class SharedFields(nn.Module):
    """In the place of a borrower's :class:`FieldEmbedding`: the lender's fields, and its own for the rest.

    ``unshared`` are the features, ``apart`` their vocabularies, that it does not borrow. Its own weights start
    from those of the embedding it replaces.
    """

    def __init__(
        self, replaced: FieldEmbedding, lender: FieldEmbedding, unshared: frozenset[str], apart: frozenset[str]
    ) -> None:
        super().__init__()
        self.dim = replaced.dim
        self.held = held = {f.name for side in (lender.user, lender.item) for f in side.features} - unshared
        rest = [f for side in (replaced.user, replaced.item) for f in side.features if f.name not in held]
        borrowed = {v for v in lender.rows if v not in apart}
        more = [f for f in rest if f.vocabulary in borrowed]
        own = [f for f in rest if f.vocabulary not in borrowed]
        self.own = FieldEmbedding(own, self.dim, max_rows=replaced.max_rows)
        _copy(self.own, replaced, frozenset(self.own.rows))
        self.borrowed = frozenset(borrowed)
        self.user = _SharedSide(replaced.user, lender.user, lender, self.own.user, held, more)
        self.item = _SharedSide(replaced.item, lender.item, lender, self.own.item, held, more)
        self._lender = (lender,)  # in a tuple: a part of another net, not of this one
        self._features = (*replaced.user.features, *replaced.item.features)
        self._seen: tuple[Inputs, Tensor] | None = None
        self._hook = lender.register_forward_hook(self._remember)

    @property
    def lender(self) -> FieldEmbedding:
        """What it borrows from."""
        return self._lender[0]

    def forward(self, inputs: Inputs) -> Tensor:
        """As of a :class:`FieldEmbedding`."""
        lent: tuple[Tensor | None, ...] = (None, None)
        seen, self._seen = self._seen, None  # serves once: after the step the weights are others
        if seen is not None and seen[0] is inputs:
            lent = seen[1].split([len(self.user.lent_names), len(self.item.lent_names)], dim=1)
        user_RFD = self.user(inputs.user, self.own.table, lent[0], inputs.row_R)
        return torch.cat([user_RFD, self.item(inputs.item, self.own.table, lent[1])], dim=1)

    def user_fields(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[B, F, D] of the user and context features."""
        return self.user(columns, self.own.table)  # type: ignore[no-any-return]

    def item_fields(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[R, F, D] of the item and pair features."""
        return self.item(columns, self.own.table)  # type: ignore[no-any-return]

    def values(self, vocabulary: str, codes: Tensor) -> Tensor:
        """[..., D] embeddings of single values of a vocabulary, codes [...]."""
        return (self.lender if vocabulary in self.borrowed else self.own).values(vocabulary, codes)

    def _remember(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._seen = (args[0], output) if output.requires_grad else None

    def borrowed_rows(self) -> list[tuple[nn.Parameter, slice]]:
        """The rows of the lender's parameters that belong to what both read."""
        lender, names = self.lender, {f.name for f in self._features} & self.held
        vocabularies = sorted({f.vocabulary for f in self._features} & self.borrowed)
        found = [(lender.table.weight, slice(lender.rows[v].first, lender.rows[v].end)) for v in vocabularies]
        for side in (lender.user, lender.item):
            for place, number in enumerate(side.numbers):
                if number.name in names:
                    found += [(each, slice(place, place + 1)) for each in (side.weight_FD, side.bias_FD)]
            for vector, projection in zip(side.vectors, side.projections, strict=True):
                if vector.name in names:
                    found += [(each, slice(0, len(each))) for each in projection.parameters()]
        return found

    def forget(self) -> None:
        """Stop listening to the lender."""
        self._hook.remove()
        self._seen = None
        self.user.forget()
        self.item.forget()

    def settled(self) -> FieldEmbedding:
        """An embedding of its own with the weights that it has and borrows."""
        alone = FieldEmbedding(self._features, self.dim, max_rows=self.own.max_rows)
        _copy(alone, self.lender, self.borrowed)
        _copy(alone, self.own, frozenset(self.own.rows))
        return alone.to(self.lender.table.weight.device)


@final
class _SharedSide(nn.Module):
    """One side: the lender's fields as it embedded them for this step, then the borrower's others, in its own order."""

    def __init__(
        self,
        replaced: Side,
        lent: Side,
        lender: FieldEmbedding,
        own: Side,
        held: Collection[str],
        more: Sequence[Feature],
    ) -> None:
        super().__init__()
        self.names, self.lent_names = replaced.names, lent.names
        self._lent = (lent, lender)
        self._own = (own,)
        more = [f for f in more if f.name in replaced.names]
        self.more = Side(more, lender.rows, lender.dim, 0.0)
        self.borrows = any(name in held for name in replaced.names)
        there = [*(lent.names if self.borrows else ()), *self.more.names, *own.names]
        # A name of the lender that is not shared stands twice: the borrower's own comes later.
        place = {name: at for at, name in enumerate(there)}
        self.order_F: Tensor
        self.register_buffer("order_F", torch.tensor([place[name] for name in self.names], dtype=torch.int64), False)
        # What the lender embedded last: the same columns are not looked up again for the borrower.
        self._seen: tuple[Mapping[str, Tensor], Tensor] | None = None
        self._hook = lent.register_forward_hook(self._remember)

    def forward(
        self,
        columns: Mapping[str, Tensor],
        table: Table,
        lent_RFD: Tensor | None = None,
        row_R: Tensor | None = None,
    ) -> Tensor:
        """[N, F, D], fields in the order of ``names``; repeated for the rows ``row_R`` where they are given.

        ``lent_RFD`` are the lender's fields of the rows, where it has embedded them already.
        """
        lent, lender = self._lent
        groups: list[Tensor] = []
        seen, self._seen = self._seen, None  # serves once: after the step the weights are others
        if self.borrows and lent_RFD is None:
            if seen is None or seen[0] is not columns:
                whole = _with_blanks(columns, lent.features, columns[self.names[0]])
                seen = columns, lent.forward(whole, lender.table)
            groups.append(seen[1])
        if self.more.names:
            groups.append(self.more(columns, lender.table))
        if self._own[0].names:
            groups.append(self._own[0](columns, table))
        if row_R is not None:
            groups = [group.index_select(0, row_R) for group in groups]
        if self.borrows and lent_RFD is not None:
            groups.insert(0, lent_RFD)
        return torch.cat(groups, dim=1).index_select(1, self.order_F)

    def forget(self) -> None:
        """Stop listening to the lender."""
        self._hook.remove()
        self._seen = None

    def _remember(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._seen = (args[0], output) if output.requires_grad else None


def _with_blanks(columns: Mapping[str, Tensor], features: Sequence[Feature], like: Tensor) -> dict[str, Tensor]:
    """The columns, and zeros for those of ``features`` that are missing: nobody reads their fields."""
    blanks: dict[str, Tensor] = {}
    for f in features:
        if f.name not in columns:
            shape = (len(like), f.length) if f.kind in ("tags", "history", "vector") else (len(like),)
            blanks[f.name] = like.new_zeros(shape, dtype=torch.int64 if f.size else torch.float32)
    return {**columns, **blanks}


def _copy(target: FieldEmbedding, source: FieldEmbedding, vocabularies: frozenset[str]) -> None:
    """Give ``target`` the rows of ``vocabularies`` and the weights of numbers and vectors that ``source`` holds too."""
    with torch.no_grad():
        for vocabulary in vocabularies & target.rows.keys() & source.rows.keys():
            here, there = target.rows[vocabulary], source.rows[vocabulary]
            target.table.weight[here.first : here.end] = source.table.weight[there.first : there.end]
        for ours, theirs in ((target.user, source.user), (target.item, source.item)):
            for name in {f.name for f in ours.numbers} & {f.name for f in theirs.numbers}:
                k, at = ([f.name for f in side.numbers].index(name) for side in (ours, theirs))
                ours.weight_FD[k], ours.bias_FD[k] = theirs.weight_FD[at], theirs.bias_FD[at]
            lines = {f.name: projection for f, projection in zip(theirs.vectors, theirs.projections, strict=True)}
            for feature, projection in zip(ours.vectors, ours.projections, strict=True):
                if feature.name in lines:
                    projection.load_state_dict(lines[feature.name].state_dict())
