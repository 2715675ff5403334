"""A folder of weights: what is missing, late, broken or foreign never stops a peer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.train.codistill import share_of_rows, take_turns
from cascade_kd.train.exchange import Exchange


def net(value: float, width: int = 2) -> nn.Linear:
    made = nn.Linear(width, 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Exchange, nn.Linear, list[str]]]:
    """(the end of peer 0, its copy of peer 1, what was said)."""

    def end(*, in_step: bool = False, every: int = 10, first: int = 0) -> tuple[Exchange, nn.Linear, list[str]]:
        said: list[str] = []
        other = net(0.0)
        own = tmp_path / "own"
        made = Exchange(tmp_path / "meet", 0, {1: other}, own, said.append, every=every, first=first, in_step=in_step)
        return made, other, said

    return end


@pytest.fixture
def peer(tmp_path: Path) -> Exchange:
    """The end of peer 1, which others read."""
    return Exchange(
        tmp_path / "meet", 1, {0: net(0.0)}, tmp_path / "theirs", lambda text: None, every=10, first=0, in_step=False
    )


def held(module: nn.Linear) -> float:
    values: Tensor = torch.cat([parameter.flatten() for parameter in module.parameters()])
    assert bool((values == values[0]).all()), "weights of two steps are mixed"
    return float(values[0].detach())


def test_the_newest_is_read_and_a_later_one_takes_its_place(make, peer: Exchange) -> None:
    end, other, said = make()
    end.read(10)
    assert (held(other), end.used) == (0.0, {})
    peer.publish(10, net(1.0))
    end.read(10)
    assert (held(other), end.used) == (1.0, {1: 10})
    peer.publish(20, net(2.0))
    peer.publish(30, net(3.0))
    end.read(20)
    assert (held(other), end.used) == (3.0, {1: 30})
    assert said == [
        "peer 1: has published nothing yet; goes on without them",
        "peer 1: is back, with its weights of step 10",
    ]


def test_in_step_the_weights_of_the_step_are_read_and_else_the_newest(make, peer: Exchange) -> None:
    end, other, _ = make(in_step=True)
    for step in (10, 20):
        peer.publish(step, net(step))
    end.read(10)
    assert held(other) == 10.0
    end.read(40)
    assert held(other) == 20.0


def test_a_late_peer_teaches_with_its_last_weights_and_one_that_is_done_is_not_late(make, peer: Exchange) -> None:
    end, other, said = make()
    peer.publish(10, net(1.0))
    for step in (10, 20, 30):
        end.read(step)
    assert held(other) == 1.0
    assert said == ["peer 1: has published nothing newer; goes on with those of step 10"]  # once
    peer.publish(27, net(2.0), finished=True)
    end.read(40)
    end.read(50)
    assert held(other) == 2.0
    assert said[1:] == ["peer 1: is back, with its weights of step 27"]


@pytest.mark.parametrize("harm", ["cut", "noise", "foreign", "nan", "empty"])
def test_broken_weights_leave_the_last_good_ones(make, peer: Exchange, tmp_path: Path, harm: str) -> None:
    end, other, said = make()
    peer.publish(10, net(1.0))
    end.read(10)
    peer.publish(20, net(2.0, width=3) if harm == "foreign" else net(float("nan")) if harm == "nan" else net(2.0))
    path = tmp_path / "meet" / "peer-1" / "step-000000020.safetensors"
    if harm in ("cut", "noise", "empty"):
        content = path.read_bytes()
        path.write_bytes({"cut": content[:-3], "noise": b"\xff" * len(content), "empty": b""}[harm])
    end.read(20)
    assert (held(other), end.used) == (1.0, {1: 10})
    assert len(said) == 1
    assert said[0].startswith("peer 1: its weights of step 20 are of no use")
    assert said[0].endswith("goes on with those of step 10")
    peer.publish(30, net(3.0))
    end.read(30)
    assert held(other) == 3.0
    assert said[1] == "peer 1: is back, with its weights of step 30"


def test_a_resume_goes_on_with_the_weights_that_were_in_use(make, peer: Exchange) -> None:
    end, _, _ = make()
    peer.publish(10, net(1.0))
    end.read(10)
    end.settle()
    for step in (20, 30, 40):  # meanwhile the peer goes on, and its step 10 is gone
        peer.publish(step, net(step))
    again, other, _ = make()
    again.restore({"1": 10})
    assert (held(other), again.used) == (1.0, {1: 10})
    again.read(20)
    assert held(other) == 40.0
    again.settle()
    assert [path.name for path in again.own.iterdir()] == ["peer-1.step-000000040.safetensors"]


def test_a_resume_without_the_copy_says_so_and_goes_on(make) -> None:
    end, _, said = make()
    end.restore({"1": 10})
    assert end.used == {}
    assert "cannot be read again" in said[0]


def test_two_published_steps_are_kept(peer: Exchange, tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        peer.publish(step, net(step))
    names = sorted(path.name for path in (tmp_path / "meet" / "peer-1").glob("*.safetensors"))
    assert names == ["step-000000030.safetensors", "step-000000040.safetensors"]
    peer.clear()
    assert not list((tmp_path / "meet" / "peer-1").iterdir())


def test_exchanges_are_every_so_many_steps_from_the_one_that_ends_the_burn_in(make) -> None:
    end, _, _ = make(every=10, first=25)
    assert [step for step in range(60) if end.is_due(step)] == [20, 30, 40, 50]
    assert [end.next_after(step) for step in (0, 19, 20, 29, 30)] == [20, 20, 30, 30, 40]


def test_shares_are_disjoint_alike_in_size_and_all() -> None:
    rows_M = torch.arange(100, 201)
    shares = [share_of_rows(rows_M, peer, 3, seed=7) for peer in range(3)]
    assert sorted(len(share) for share in shares) == [33, 34, 34]
    assert torch.equal(torch.cat(shares).sort().values, rows_M)
    assert all(bool((share.diff() > 0).all()) for share in shares)


def test_the_last_one_goes_first() -> None:
    seen: list[tuple[str, int]] = []

    def training(name: str, *steps: int):
        for step in steps:
            seen.append((name, step))
            yield step
        seen.append((name, -1))

    take_turns([training("a", 20, 30), training("b", 10, 20, 30), training("c")])
    assert seen == [("a", 20), ("b", 10), ("c", -1), ("b", 20), ("a", 30), ("b", 30), ("a", -1), ("b", -1)]
