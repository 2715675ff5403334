"""A net that borrows another's embedding against one with an embedding of its own and the same weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.errors import UserError
from cascade_kd.models.din import DIN, DINConfig
from cascade_kd.models.fields import FieldEmbedding
from cascade_kd.models.ranker import Ranker
from cascade_kd.models.settings import RankerConfig
from cascade_kd.models.sharing import SharedFields, settle, share
from cascade_kd.models.table import Table
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.streams import scoped_seed
from cascade_kd.types import ITEM_ID, USER_ID, Feature, Inputs

B, R, T = 5, 12, 4  # requests, rows, codes of a history

USER = Feature(USER_ID, "categorical", "user", "recall", 9, vocabulary=USER_ID)
AGE = Feature("age", "numeric", "user", "recall")
MOOD = Feature("mood", "vector", "user", "recall", length=3)
SEEN = Feature("seen", "history", "user", "recall", 11, T, ITEM_ID)
ITEM = Feature(ITEM_ID, "categorical", "item", "recall", 11, vocabulary=ITEM_ID)
GENRES = Feature("genres", "tags", "item", "recall", 6, T, "genres")
PRICE = Feature("price", "numeric", "item", "recall")
LOOKS = Feature("looks", "vector", "item", "recall", length=2)
RATE = Feature("rate", "statistic", "pair", "rank")
DWELL = Feature("dwell", "numeric", "pair", "never")
SHOP = Feature("shop", "categorical", "item", "rank", 7, vocabulary="shop")
ALL = (USER, AGE, MOOD, SEEN, ITEM, GENRES, PRICE, LOOKS, RATE, DWELL, SHOP)
LIGHT = (USER, AGE, MOOD, SEEN, ITEM, GENRES, PRICE, LOOKS)


def rows(seed: int = 0) -> Inputs:
    """Five requests and twelve rows of them, with every feature."""
    g = torch.Generator().manual_seed(seed)
    columns: dict[str, dict[str, Tensor]] = {"user": {}, "item": {}}
    for f in ALL:
        side, num = ("user", B) if f.side == "user" else ("item", R)
        if f.size:
            shape = (num,) if f.kind == "categorical" else (num, T)
            columns[side][f.name] = torch.randint(0, f.size, shape, generator=g)
        else:
            columns[side][f.name] = torch.randn((num, f.length) if f.kind == "vector" else (num,), generator=g)
    row_R = torch.cat([torch.arange(B), torch.randint(0, B, (R - B,), generator=g)])
    return Inputs(columns["user"], columns["item"], row_R)


def embedding(features: Sequence[Feature], seed: int, *, dim: int = 3, max_rows: int | None = None) -> FieldEmbedding:
    with scoped_seed(seed):
        made = FieldEmbedding(features, dim, 1.0, max_rows)
        for parameter in made.parameters():
            nn.init.normal_(parameter)
    return made


class Holder(nn.Module):
    """A net with an embedding and nothing else."""

    def __init__(self, fields: FieldEmbedding) -> None:
        super().__init__()
        self.fields = fields


def borrow(teacher: FieldEmbedding, student: FieldEmbedding, unshared: Sequence[str] = ()) -> SharedFields:
    holder = Holder(teacher)
    share(holder, Holder(student), ["embedding"], unshared)
    assert isinstance(holder.fields, SharedFields)
    return holder.fields


def numbers_of(fields: FieldEmbedding) -> dict[str, tuple[Tensor, ...]]:
    """The weights of every number and vector by name."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for side in (fields.user, fields.item):
        for k, f in enumerate(side.numbers):
            found[f.name] = (side.weight_FD[k], side.bias_FD[k])
        for f, line in zip(side.vectors, side.projections, strict=True):
            found[f.name] = tuple(line.parameters())
    return found


def equalise(alone: FieldEmbedding, student: FieldEmbedding, unshared: Sequence[str] = ()) -> set[str]:
    """Give an embedding of its own the weights that it would borrow; returns the vocabularies and names of those."""
    apart = {f.vocabulary for f in ALL if f.name in unshared}
    vocabularies = {v for v in alone.rows if v in student.rows and v not in apart}
    ours, theirs = numbers_of(alone), numbers_of(student)
    with torch.no_grad():
        for v in vocabularies:
            a, b = alone.rows[v], student.rows[v]
            alone.table.weight[a.first : a.end] = student.table.weight[b.first : b.end]
        names = {name for name in ours if name in theirs and name not in unshared}
        for name in names:
            for a, b in zip(ours[name], theirs[name], strict=True):
                a.copy_(b)
    return vocabularies | names


def gradients(fields: FieldEmbedding) -> dict[str, list[Tensor]]:
    """By vocabulary or name of a number: what arrived there; zeros where nothing did."""
    found: dict[str, list[Tensor]] = {}
    grad = fields.table.weight.grad
    table = torch.zeros_like(fields.table.weight) if grad is None else grad
    for v, place in fields.rows.items():
        found[v] = [table[place.first : place.end]]
    for side in (fields.user, fields.item):
        for k, f in enumerate(side.numbers):
            of = (side.weight_FD, side.bias_FD)
            found[f.name] = [torch.zeros_like(p[k]) if p.grad is None else p.grad[k] for p in of]
        for f, line in zip(side.vectors, side.projections, strict=True):
            found[f.name] = [torch.zeros_like(p) if p.grad is None else p.grad for p in line.parameters()]
    return found


def clear(*nets: nn.Module) -> None:
    for net in nets:
        net.zero_grad(set_to_none=True)


CASES = {
    "all alike": (LIGHT, LIGHT, ()),
    "teacher with more": (ALL, LIGHT, ()),
    "teacher with less": ((USER, ITEM, RATE), LIGHT, ()),
    "another order": (ALL[::-1], LIGHT, ()),
    "except the user": (ALL, LIGHT, (USER_ID,)),
    "except the item, of whose vocabulary a history is": (ALL, LIGHT, (ITEM_ID,)),
    "except numbers and vectors": (ALL, LIGHT, ("age", "looks", "price")),
    "a history of the student's items": (ALL, (USER, ITEM), ()),
    "a history whose items are apart": (ALL, (USER, ITEM), (ITEM_ID,)),
    "the student reads a history only": (ALL, (USER, SEEN, GENRES), ()),
    "nothing in common on a side": ((USER, AGE, RATE, DWELL), (USER, ITEM), ()),
    "nothing in common at all": ((AGE, RATE), (USER, ITEM), ()),
}
case = pytest.mark.parametrize(("wide", "light", "unshared"), list(CASES.values()), ids=list(CASES))
compressed = pytest.mark.parametrize("max_rows", [None, 4], ids=["", "compressed"])


@case
@compressed
def test_borrowed_fields_are_those_of_an_embedding_with_equal_weights(
    wide: Sequence[Feature], light: Sequence[Feature], unshared: Sequence[str], max_rows: int | None
) -> None:
    student, teacher = embedding(light, 1, max_rows=max_rows), embedding(wide, 2, max_rows=max_rows)
    alone = deepcopy(teacher)
    common = equalise(alone, student, unshared)
    shared = borrow(teacher, student, unshared)
    inputs = rows()
    weight = torch.randn((R, len(wide), 3), generator=torch.Generator().manual_seed(3))

    own = (student(inputs) * 0.5).square().sum()
    own.backward()
    of_student = gradients(student)
    (alone(inputs) * weight).sum().backward()
    of_teacher = gradients(alone)
    clear(student)

    total = (student(inputs) * 0.5).square().sum()
    seen = shared(inputs)
    torch.testing.assert_close(seen, alone(inputs), rtol=0, atol=0)
    assert shared.user.names == alone.user.names
    (total + (seen * weight).sum()).backward()
    both, apart = gradients(student), gradients(shared.own)
    assert set(of_teacher) - common <= set(apart)
    for name, expected in of_teacher.items():
        got = both[name] if name in common else apart[name]
        plus = of_student[name] if name in common else [torch.zeros_like(g) for g in expected]
        for a, b, c in zip(got, expected, plus, strict=True):
            torch.testing.assert_close(a, b + c)
    for name in set(of_student) - common:
        for a, b in zip(both[name], of_student[name], strict=True):
            torch.testing.assert_close(a, b)


@case
def test_a_borrower_needs_the_columns_that_it_reads_and_no_others(
    wide: Sequence[Feature], light: Sequence[Feature], unshared: Sequence[str]
) -> None:
    student, teacher = embedding(light, 1), embedding(wide, 2)
    shared = borrow(teacher, student, unshared)
    inputs, names = rows(), {feature.name for feature in wide}
    own = [{name: column for name, column in side.items() if name in names} for side in (inputs.user, inputs.item)]
    assert torch.equal(shared(Inputs(own[0], own[1], inputs.row_R)), shared(inputs))


def test_touched_rows_of_a_row_sparse_table_are_the_dense_gradient() -> None:
    student, teacher = embedding(LIGHT, 1), embedding(ALL, 2)
    shared = borrow(teacher, student)
    inputs = rows()
    (student(inputs).square().sum() + shared(inputs).pow(3).sum()).backward()
    dense = student.table.weight.grad
    assert dense is not None
    clear(student, shared)
    student.table.touched = []
    (student(inputs).square().sum() + shared(inputs).pow(3).sum()).backward()
    assert student.table.weight.grad is None
    taken = student.table.take_touched()
    assert taken is not None
    rebuilt = torch.zeros_like(dense)
    rebuilt[taken[0]] = taken[1]
    torch.testing.assert_close(rebuilt, dense)


def test_values_of_a_vocabulary_are_the_lenders_where_it_is_shared() -> None:
    student, teacher = embedding(LIGHT, 1), embedding(ALL, 2)
    shop = teacher.values("shop", torch.arange(7)).detach()
    shared = borrow(teacher, student)
    codes = torch.tensor([[0, 3], [10, 3]])
    assert torch.equal(shared.values(ITEM_ID, codes), student.values(ITEM_ID, codes))
    assert torch.equal(shared.values("shop", torch.arange(7)), shop)
    apart = borrow(embedding(ALL, 2), student, (ITEM_ID,))
    assert torch.equal(apart.values(ITEM_ID, codes), embedding(ALL, 2).values(ITEM_ID, codes))


# -- what the student looked up is not looked up again, and nothing else is taken for it


class Counted:
    """How often a table was asked, through either of its two ways."""

    def __init__(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        plain, pooled = Table.forward, Table.weighted_sum

        def one(this: Table, *args: Tensor) -> Tensor:
            self.times += this is table
            return plain(this, *args)

        def many(this: Table, *args: Tensor) -> Tensor:
            self.times += this is table
            return pooled(this, *args)

        monkeypatch.setattr(Table, "forward", one)
        monkeypatch.setattr(Table, "weighted_sum", many)

    def during(self) -> int:
        times, self.times = self.times, 0
        return times


def test_every_field_is_looked_up_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = embedding(LIGHT, 1), embedding(ALL, 2)
    shared = borrow(teacher, student)
    count = Counted(student.table, monkeypatch)
    for step in range(3):
        inputs = rows(step)
        student(inputs)
        assert count.during() == 4  # codes and a pooled column, of either side
        shared(inputs)
        assert count.during() == 0


def test_a_feature_of_a_lent_vocabulary_costs_one_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    student = embedding((USER, ITEM), 1)
    shared = borrow(embedding(ALL, 2), student)
    count = Counted(student.table, monkeypatch)
    inputs = rows()
    student(inputs)
    assert count.during() == 2
    shared(inputs)
    assert count.during() == 1  # the history of items


def test_what_was_looked_up_before_is_never_taken_for_now() -> None:
    student, teacher = embedding(LIGHT, 1), embedding(LIGHT, 2)
    alone = deepcopy(teacher)
    shared = borrow(teacher, student)
    first, second = rows(0), rows(1)

    def right(inputs: Inputs) -> bool:
        equalise(alone, student)
        return torch.equal(shared(inputs), alone(inputs))

    student(first)
    assert right(second)  # another batch: the student's look-up is of the first
    assert right(first)
    student(first)
    shared(first)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(2)
    assert right(first)  # the step moved the weights; the memory of them was used up
    with torch.no_grad():
        student(first)
    assert shared(first).requires_grad  # what was seen without a gradient serves no step
    student(first)
    with torch.no_grad():
        assert right(first)


def test_a_lender_holds_nothing_of_a_step_once_its_fields_were_taken() -> None:
    student, teacher = embedding(LIGHT, 1), embedding(LIGHT, 2)
    shared = borrow(teacher, student)
    inputs = rows()
    looked_up = [student.user_fields(inputs.user), student.item_fields(inputs.item)]
    alive = [weakref.ref(fields) for fields in looked_up]
    shared(inputs)
    del looked_up
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


# -- in the models


def two_tower(features: Sequence[Feature] = LIGHT, *, size: int = 3, max_rows: int | None = None) -> TwoTower:
    with scoped_seed(4):
        config = TwoTowerConfig(
            embedding_size=size, embedding_std=1.0, embedding_max_rows=max_rows, hidden=(6, 5), output_size=4
        )
        return TwoTower(config, features)


def ranker(features: Sequence[Feature] = ALL, **keys: object) -> Ranker:
    with scoped_seed(5):
        given = {"embedding_size": 3, "embedding_std": 1.0, "hidden": (6, 5), "linear": True, "interaction": "fm"}
        return Ranker(RankerConfig.model_validate(given | keys), features)


def din(features: Sequence[Feature] = ALL) -> DIN:
    with scoped_seed(6):
        return DIN(DINConfig(embedding_size=3, embedding_std=1.0, hidden=(6,), attention_hidden=(4,)), features)


MODELS = {"ranker": ranker, "din": din, "two-tower": lambda: two_tower()}


@pytest.mark.parametrize("make", list(MODELS.values()), ids=list(MODELS))
@pytest.mark.parametrize("unshared", [(), (USER_ID,), (ITEM_ID,)])
@compressed
def test_a_teacher_that_borrows_scores_as_one_with_equal_weights_and_stands_alone_once_settled(
    make: object, unshared: tuple[str, ...], max_rows: int | None
) -> None:
    assert callable(make)
    student, teacher = two_tower(max_rows=max_rows), make()
    if max_rows is not None:
        teacher.fields = embedding([*teacher.fields.user.features, *teacher.fields.item.features], 7, max_rows=max_rows)
    alone = deepcopy(teacher)
    equalise(alone.fields, student.fields, unshared)
    share(teacher, student, ["embedding"], unshared)
    inputs = rows()
    expected = alone(inputs).logits_R
    assert torch.equal(teacher(inputs).logits_R, expected)
    student(inputs)
    assert torch.equal(teacher(inputs).logits_R, expected)

    settle(teacher)
    assert isinstance(teacher.fields, FieldEmbedding)
    assert teacher.state_dict().keys() == alone.state_dict().keys()
    lender = weakref.ref(student.fields)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(teacher(inputs).logits_R, expected)
    assert not student.fields.user._forward_hooks  # a served student does nothing for a teacher that is gone
    assert not student.fields.item._forward_hooks
    del student
    gc.collect()
    assert lender() is None
    assert torch.equal(teacher(inputs).logits_R, expected)


def test_a_shared_layer_is_one_object_and_batch_norm_is_not_shared() -> None:
    student, teacher = ranker(LIGHT, batch_norm=True), ranker(LIGHT, batch_norm=True, interaction="none")
    share(teacher, student, ["mlp.1"])
    assert teacher.mlp.linear[1] is student.mlp.linear[1]
    assert teacher.mlp.linear[0] is not student.mlp.linear[0]
    assert teacher.mlp.norm[1] is not student.mlp.norm[1]
    lender, borrower = two_tower(), two_tower()
    share(borrower, lender, ["user.mlp.0", "item.mlp.1"])
    assert borrower.user.mlp.linear[0] is lender.user.mlp.linear[0]
    assert borrower.item.mlp.linear[1] is lender.item.mlp.linear[1]
    assert borrower.item.mlp.linear[0] is not lender.item.mlp.linear[0]


def test_shared_parameters_are_counted_once() -> None:
    student, teacher = two_tower(), ranker()
    before = sum(p.numel() for net in (student, teacher) for p in net.parameters())
    assert teacher.fields is not None
    own = embedding([RATE, DWELL, SHOP], 0)
    replaced = sum(p.numel() for p in teacher.fields.parameters())
    share(teacher, student, ["embedding"])
    both = nn.ModuleList([student, teacher])
    assert sum(p.numel() for p in both.parameters()) == before - replaced + sum(p.numel() for p in own.parameters())


@pytest.mark.parametrize(
    ("teacher", "student", "names", "unshared", "message"),
    [
        (ranker, two_tower, ["tower"], (), "share: no module 'tower'; want 'embedding', or a layer such as 'mlp.0'"),
        (ranker, two_tower, ["mlp.0"], (), "share: the student has no layer 'mlp.0'; `cascade-kd list layers`"),
        (ranker, lambda: ranker(LIGHT), ["mlp.2"], (), "share: the teacher has no layer 'mlp.2'"),
        (ranker, lambda: ranker(LIGHT), ["mlp.0"], (), "layer 'mlp.0' maps 33 units to 6 in the teacher and 24 to 6"),
        (ranker, lambda: two_tower(size=2), ["embedding"], (), "the teacher embeds to 3 numbers and the student to 2;"),
        (ranker, two_tower, ["embedding"], ("usr",), "except: the student has no feature 'usr' whose embedding"),
        (
            lambda: ranker(hidden=(), interaction="none"),
            two_tower,
            ["embedding"],
            (),
            "one of the two models has no field embedding to share",
        ),
        (
            ranker,
            lambda: two_tower(max_rows=4),
            ["embedding"],
            (),
            "student do not compress the values of 'genres' alike; give both the same embedding_max_rows",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_with_a_remedy(
    teacher: object, student: object, names: list[str], unshared: tuple[str, ...], message: str
) -> None:
    assert callable(teacher)
    assert callable(student)
    with pytest.raises(UserError) as refused:
        share(teacher(), student(), names, unshared)
    assert message in str(refused.value)


def test_a_vocabulary_that_is_apart_may_be_compressed_as_each_likes() -> None:
    student, teacher = embedding((USER, GENRES), 1, max_rows=8), embedding((USER, GENRES), 2)
    inputs = rows()
    shared = borrow(teacher, student, (USER_ID,))
    expected = shared(inputs)
    assert torch.equal(shared.settled()(inputs), expected)
