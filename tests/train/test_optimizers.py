"""From ``[train]`` to optimisers: the default is one fused Adam bit for bit, state is saved, restored and grown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cascade_kd.errors import RunError
from cascade_kd.models import DCNv2, Ranker, Table
from cascade_kd.models.shards import Shard
from cascade_kd.models.sharing import share
from cascade_kd.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from cascade_kd.train.optimizers import joint_optimizers, make_optimizers
from cascade_kd.train.row_optimizers import _blocks
from cascade_kd.train.settings import TrainConfig
from cascade_kd.types import Feature, Inputs

FEATURES = (
    Feature("user_id", "categorical", "user", "recall", size=40, vocabulary="user_id"),
    Feature("item_id", "categorical", "item", "recall", size=30, vocabulary="item_id"),
    Feature("liked", "history", "user", "recall", size=30, length=4, vocabulary="item_id"),
    Feature("hour", "numeric", "context", "recall"),
)
SPARSE = ("sparse-adam", "sparse-adagrad", "rowwise-adagrad")
B = 6


def config(**keys: Any) -> TrainConfig:
    return TrainConfig(label="click", learning_rate=0.05, **keys)


def ranker() -> DCNv2:
    torch.manual_seed(0)
    return DCNv2(DCNv2.Config(embedding_size=4, hidden=(6,), cross_layers=1, dropout=0.1), FEATURES)


def loss_at(model: nn.Module, step: int) -> torch.Tensor:
    torch.manual_seed(step)
    user = {"user_id": torch.randint(0, 40, (B,)), "liked": torch.randint(0, 30, (B, 4)), "hour": torch.randn(B)}
    inputs = Inputs(user, {"item_id": torch.randint(0, 30, (2 * B,))}, torch.arange(2 * B) // 2)
    loss: torch.Tensor = (model(inputs).logits_R - torch.randn(2 * B)).square().mean()
    return loss


def train(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    steps: range,
    penalty: Callable[[], torch.Tensor | float] = lambda: 0.0,
) -> None:
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss_at(model, step) + penalty()).backward()
        for optimizer in optimizers:
            optimizer.step()


def state_of(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, torch.Tensor]]:
    saved: dict[str, dict[str, torch.Tensor]] = {}
    for optimizer in optimizers:
        saved |= optimizer_state(model, optimizer)
    return saved


def restore_all(model: nn.Module, optimizers: list[torch.optim.Optimizer], state: Any) -> None:
    for optimizer in optimizers:
        restore_optimizer(model, optimizer, state)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_the_default_is_one_fused_adam_bit_for_bit(decay: float) -> None:
    ours, plain = ranker(), ranker()
    train(ours, make_optimizers(ours, config(weight_decay=decay)), range(6))
    train(plain, [torch.optim.Adam(plain.parameters(), lr=0.05, weight_decay=decay, fused=True)], range(6))
    assert_same(ours, plain)


def test_adagrad_is_torchs() -> None:
    ours, plain = ranker(), ranker()
    train(ours, make_optimizers(ours, config(optimizer="adagrad", weight_decay=0.1)), range(6))
    train(plain, [torch.optim.Adagrad(plain.parameters(), lr=0.05, weight_decay=0.1)], range(6))
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], msg=name)


def test_sparse_adagrad_is_dense_adagrad() -> None:
    ours, plain = ranker(), ranker()
    train(ours, make_optimizers(ours, config(optimizer="adagrad", embedding_optimizer="sparse-adagrad")), range(12))
    train(plain, make_optimizers(plain, config(optimizer="adagrad")), range(12))
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], msg=name)


def test_embedding_l2_adds_half_lambda_times_the_sum_of_squares_of_every_row() -> None:
    ours, plain = ranker(), ranker()
    train(ours, make_optimizers(ours, config(embedding_l2=0.05)), range(6))
    by_loss = make_optimizers(plain, config())
    train(plain, by_loss, range(6), lambda: 0.05 / 2 * plain.fields.table.weight.square().sum())
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], msg=name)
    without = ranker()
    train(without, make_optimizers(without, config()), range(6))
    assert not torch.allclose(ours.fields.table.weight, without.fields.table.weight, atol=1e-3)


@pytest.mark.parametrize("kind", ["same", *SPARSE])
def test_learning_rate_and_l2_of_the_tables_are_their_own(kind: Any) -> None:
    still, moved = ranker(), ranker()
    start = ranker()
    train(still, make_optimizers(still, config(embedding_optimizer=kind, embedding_learning_rate=1e-30)), range(3))
    assert torch.equal(still.fields.table.weight, start.fields.table.weight)
    assert not torch.equal(still.head.weight, start.head.weight)
    train(moved, make_optimizers(moved, config(embedding_optimizer=kind, embedding_l2=0.5)), range(3))
    usual = ranker()
    train(usual, make_optimizers(usual, config(embedding_optimizer=kind, weight_decay=0.5)), range(3))
    assert not torch.equal(usual.head.weight, moved.head.weight)  # whose weights decayed too


@pytest.mark.parametrize("norm", [0.05, 1e6])
def test_gradients_are_clipped_before_the_l2_is_added(norm: float) -> None:
    """As by hand; a norm that no gradient reaches changes no bit."""
    ours, plain, free = ranker(), ranker(), ranker()
    train(ours, make_optimizers(ours, config(weight_decay=0.01, max_gradient_norm=norm)), range(6))
    train(free, make_optimizers(free, config(weight_decay=0.01)), range(6))
    by_hand = torch.optim.Adam(plain.parameters(), lr=0.05, weight_decay=0.01, fused=True)
    before: list[float] = []
    for step in range(6):
        by_hand.zero_grad()
        loss_at(plain, step).backward()
        before.append(float(nn.utils.clip_grad_norm_(plain.parameters(), norm)))
        by_hand.step()
    assert min(before) > 0.05
    assert max(before) < 1e6
    if norm == 1e6:
        assert_same(ours, free)
    else:
        assert not torch.allclose(ours.fields.table.weight, free.fields.table.weight, atol=1e-3)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], msg=name)


def test_clipping_needs_the_gradients_of_all_rows() -> None:
    with pytest.raises(ValidationError, match="leave it out, or want embedding_optimizer = 'same'"):
        config(embedding_optimizer="sparse-adam", max_gradient_norm=1.0)
    with pytest.raises(ValidationError, match="greater than 0"):
        config(max_gradient_norm=0.0)


def joint_nets(*shared: str, apart: tuple[str, ...] = ()) -> tuple[DCNv2, DCNv2]:
    """A student and its joint teacher, which reads what they share from the student."""
    student, teacher = ranker(), ranker()
    share(teacher, student, shared, apart)
    student.add_module("beside", nn.ModuleDict({"teacher": teacher}))
    return student, teacher


def train_jointly(
    nets: tuple[DCNv2, DCNv2], of_student: TrainConfig, of_teacher: TrainConfig, *, by_loss: bool = False
) -> list[torch.optim.Optimizer]:
    """Six steps; ``by_loss`` has the penalties of both nets in the loss in the place of the optimisers."""
    student, teacher = nets
    keys = of_student, of_teacher
    if by_loss:
        keys = tuple(each.model_copy(update={"weight_decay": 0.0, "embedding_l2": 0.0}) for each in keys)
    made = joint_optimizers(student, keys[0], [student], {teacher: keys[1]})
    table_VD = student.fields.table.weight
    users = student.fields.rows["user_id"]

    def penalty() -> torch.Tensor:
        """What each net would add alone; of the table's rows the teacher reads all, or all but the users'."""
        total = torch.zeros(())
        for name, parameter in student.named_parameters():
            if not name.startswith("beside.") and parameter is not table_VD:
                total = total + of_student.weight_decay / 2 * parameter.square().sum()
        own = [p for name, p in teacher.named_parameters() if not name.endswith("table.weight")]
        for parameter in (*own, student.fields.user.weight_FD, student.fields.user.bias_FD):
            total = total + of_teacher.weight_decay / 2 * parameter.square().sum()
        read_VD = table_VD
        if teacher.fields.own.rows:
            read_VD = torch.cat([table_VD[: users.first], table_VD[users.end :]])
            total = total + of_teacher.embedding_l2 / 2 * teacher.fields.own.table.weight.square().sum()
        total = total + of_teacher.embedding_l2 / 2 * read_VD.square().sum()
        return total + of_student.embedding_l2 / 2 * table_VD.square().sum()

    def loss() -> torch.Tensor:
        return loss_at(teacher, 7) + (penalty() if by_loss else 0.0)

    train(student, made, range(6), loss)
    return made


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("apart", [(), ("user_id",)])
def test_what_joint_nets_share_gets_the_sum_of_their_l2(optimizer: Any, apart: tuple[str, ...]) -> None:
    """As with the penalties of both nets in the loss; what they keep apart gets that of its own net."""
    of_student = config(optimizer=optimizer, weight_decay=0.01, embedding_l2=0.03)
    of_teacher = config(optimizer=optimizer, weight_decay=0.02, embedding_l2=0.05)
    ours, plain, none = (joint_nets("embedding", "mlp.0", apart=apart) for _ in range(3))
    train_jointly(ours, of_student, of_teacher)
    train_jointly(plain, of_student, of_teacher, by_loss=True)
    for name, tensor in ours[0].state_dict().items():
        torch.testing.assert_close(tensor, plain[0].state_dict()[name], msg=name)
    train_jointly(none, of_student, config(optimizer=optimizer))
    for name in ("fields.table.weight", "fields.user.weight_FD", "mlp.linear.0.weight", "beside.teacher.head.weight"):
        assert not torch.allclose(ours[0].state_dict()[name], none[0].state_dict()[name], atol=1e-4), name


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("apart", [(), ("user_id",)])
def test_a_row_sparse_optimiser_adds_the_l2_of_other_nets_to_the_rows_they_read(
    kind: Any, apart: tuple[str, ...]
) -> None:
    """The sum of both, as if the student's had been that from the start; not of rows that are kept apart."""
    ours, summed = joint_nets("embedding", apart=apart), joint_nets("embedding", apart=apart)
    other = config(embedding_optimizer="sparse-adam", embedding_l2=0.25)
    made = train_jointly(ours, config(embedding_optimizer=kind, embedding_l2=0.5), other)
    train_jointly(summed, config(embedding_optimizer=kind, embedding_l2=0.75), config())
    users = ours[0].fields.rows["user_id"]
    got, want = (nets[0].fields.table.weight for nets in (ours, summed))
    assert torch.allclose(got, want, atol=1e-5) is not bool(apart)
    start = ranker().fields.table.weight
    assert not torch.equal(got[users.end :], start[users.end :])
    held = [parameter for each in made for group in each.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == set(ours[0].parameters())


def test_held_rows_of_a_shard_are_those_of_the_whole_table() -> None:
    """The second of two ranks has rows 5 to 9: the whole table's rows 6 and 7 lie at 1 and 2."""
    table = Table(5, 2, 1.0)
    table.shard = Shard(10, 1, 2)
    held = {table.weight: [(slice(6, 8), 0.25), (slice(0, 5), 1.0)]}
    blocks = list(_blocks(table, torch.arange(5), torch.zeros(5, 2), 0.5, held))
    assert len(blocks) == 1
    l2 = torch.tensor([0.5, 0.75, 0.75, 0.5, 0.5])
    torch.testing.assert_close(blocks[0][2], l2.unsqueeze(1) * table.weight.detach())


def test_nets_that_share_nothing_keep_their_own_l2() -> None:
    student, teacher = joint_nets()
    made = joint_optimizers(student, config(weight_decay=0.1), [student], {teacher: config(weight_decay=0.3)})
    found = {p: group["weight_decay"] for each in made for group in each.param_groups for p in group["params"]}
    assert {found[p] for p in teacher.parameters()} == {0.3}
    assert {found[p] for name, p in student.named_parameters() if not name.startswith("beside.")} == {0.1}


def test_defaults_follow_the_other_keys() -> None:
    made = config(weight_decay=0.2)
    assert (made.embedding_learning_rate, made.embedding_l2) == (0.05, 0.2)
    for wrong in ({"embedding_learning_rate": 0.0}, {"embedding_l2": -1.0}, {"embedding_optimizer": "row-adam"}):
        with pytest.raises(ValidationError):
            config(**wrong)


@pytest.mark.parametrize("kind", SPARSE)
def test_tables_collect_for_a_row_sparse_optimiser_alone(kind: Any) -> None:
    model = ranker()
    train(model, make_optimizers(model, config(embedding_optimizer=kind)), range(2))
    assert model.fields.table.touched is not None
    dense, again = make_optimizers(model, config()), ranker()
    again.load_state_dict(model.state_dict())
    train(model, dense, range(2))
    train(again, make_optimizers(again, config()), range(2))
    assert model.fields.table.touched is None
    assert_same(model, again)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("kind", ["same", *SPARSE])
def test_a_restored_training_goes_on_bit_for_bit(tmp_path: Path, optimizer: Any, kind: Any) -> None:
    keys = config(optimizer=optimizer, embedding_optimizer=kind, weight_decay=0.01)
    whole, half = ranker(), ranker()
    train(whole, make_optimizers(whole, keys), range(8))
    first = make_optimizers(half, keys)
    train(half, first, range(4))
    saved = state_of(half, first)
    assert saved.keys() == dict(half.named_parameters()).keys()
    save_checkpoint(tmp_path / "last.safetensors", Checkpoint(half.state_dict(), {}, saved))
    checkpoint = load_checkpoint(tmp_path / "last.safetensors")
    again = ranker()
    again.load_state_dict(dict(checkpoint.model))
    second = make_optimizers(again, keys)
    restore_all(again, second, {})  # nothing saved: a fresh start
    restore_all(again, second, checkpoint.optimizer)
    train(again, second, range(4, 8))
    assert_same(whole, again)


@pytest.mark.parametrize(
    ("then", "now", "kept", "wanted"),
    [
        ("same", "rowwise-adagrad", "exp_avg", "row_sum"),
        ("rowwise-adagrad", "sparse-adagrad", "row_sum", "'sum'"),
        ("sparse-adagrad", "same", "sum", "exp_avg"),
    ],
)
def test_the_state_of_another_optimiser_is_refused(then: Any, now: Any, kept: str, wanted: str) -> None:
    model = ranker()
    before = make_optimizers(model, config(embedding_optimizer=then))
    train(model, before, range(2))
    state = state_of(model, before)
    with pytest.raises(RunError, match=rf"init_from.*{kept}.*fields\.table\.weight.*{wanted}.*keep the stage's optim"):
        restore_all(model, make_optimizers(model, config(embedding_optimizer=now)), state)


def test_dense_and_lazy_adam_take_over_from_each_other() -> None:
    """Their state is the same: moments of every row and a step count."""
    model = ranker()
    before = make_optimizers(model, config())
    train(model, before, range(2))
    state = optimizer_state(model, before[0])
    after = make_optimizers(model, config(embedding_optimizer="sparse-adam"))
    restore_all(model, after, state)
    weight = model.fields.table.weight
    assert after[1].state[weight]["step"] == 2
    assert torch.equal(after[1].state[weight]["exp_avg"], state["fields.table.weight"]["exp_avg"])


def test_first_order_and_fields_have_a_table_each() -> None:
    model = Ranker(Ranker.Config(embedding_size=4, hidden=(6,), linear=True, interaction="fm"), FEATURES)
    optimizers = make_optimizers(model, config(embedding_optimizer="rowwise-adagrad"))
    assert sum(isinstance(module, Table) for module in model.modules()) == 2
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, optimizers, range(2))
    for name, tensor in model.state_dict().items():
        if not name.endswith("code_offset_F"):
            assert not torch.equal(tensor, before[name]), name
