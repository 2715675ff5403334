"""The training reader: every row once an epoch, a function of the step alone, whatever the windows and shards."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cascade_kd.data.stream import StreamReader, files
from cascade_kd.errors import DataError, UserError

laws = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, sizes: Sequence[int]) -> Path:
    """Files of the sizes given; `value` is 10 x the stream's row number."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    start = 0
    for number, size in enumerate(sizes):
        value = pl.int_range(start * 10, (start + size) * 10, 10, eager=True)
        frame = pl.DataFrame({"value": value, "score": value.cast(pl.Float32) / 4})
        frame.write_parquet(folder / f"{number:05d}.parquet", row_group_size=files.ROW_GROUP)
        start += size
    return folder


def epoch_of(reader: StreamReader, epoch: int) -> list[dict[str, Tensor]]:
    steps = reader.steps_per_epoch
    return [reader.batch(step) for step in range(epoch * steps, (epoch + 1) * steps)]


def samples(batches: Sequence[dict[str, Tensor]]) -> list[int]:
    return torch.cat([batch["sample"] for batch in batches]).tolist()


@laws
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    batch_size=st.integers(1, 30),
    window_rows=st.integers(1, 100),
    seed=st.integers(0, 3),
    world=st.integers(1, 4),
    group=st.sampled_from([7, 16, files.ROW_GROUP]),
)
def test_every_epoch_is_every_row_once(
    tmp_path: Path,
    sizes: list[int],
    batch_size: int,
    window_rows: int,
    seed: int,
    world: int,
    group: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ROW_GROUP", group)
        folder, rows = write(tmp_path / "train", sizes), sum(sizes)
        if rows < world:
            return
        readers = [
            StreamReader(
                folder, ["value", "score"], batch_size=batch_size, window_rows=window_rows, seed=seed, shard=(r, world)
            )
            for r in range(world)
        ]
        assert len({reader.steps_per_epoch for reader in readers}) == 1
        for epoch in range(2):
            shards = [epoch_of(reader, epoch) for reader in readers]
            assert sorted(itertools.chain.from_iterable(map(samples, shards))) == list(range(rows))
            for batches in shards:
                assert all(len(batch["sample"]) == batch_size for batch in batches[:-1])
                assert 1 <= len(batches[-1]["sample"]) <= batch_size + (world > 1)
                for batch in batches:
                    assert torch.equal(batch["value"], batch["sample"] * 10)
                    assert torch.equal(batch["score"], batch["value"].float() / 4)


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    folder = write(tmp_path, [30, 50, 20, 44])

    def reader(seed: int = 0) -> StreamReader:
        return StreamReader(folder, ["value"], batch_size=16, window_rows=60, seed=seed)

    whole = reader()
    straight = [batch["sample"] for batch in epoch_of(whole, 0) + epoch_of(whole, 1)]
    steps = len(straight)
    for begin in range(steps):  # resumed at any step: the same rest
        resumed = reader()
        for step in range(begin, steps):
            assert torch.equal(resumed.batch(step)["sample"], straight[step])
    jumping = reader()
    for step in np.random.default_rng(0).permutation(steps).tolist():
        assert torch.equal(jumping.batch(step)["sample"], straight[step])
    half = steps // 2
    assert not torch.equal(torch.cat(straight[:half]), torch.cat(straight[half:]))  # epochs differ
    assert samples(epoch_of(reader(seed=1), 0)) != torch.cat(straight[:half]).tolist()


def test_order_statistics_of_the_shuffle(tmp_path: Path) -> None:
    """Rows move as far as under a full shuffle (mean |displacement| M/3), and neighbours are parted."""
    rows = 40_000
    folder = write(tmp_path, [500] * 80)
    reader = StreamReader(folder, ["value"], batch_size=1000, window_rows=5_000, seed=0)
    order = np.array(samples(epoch_of(reader, 0)))
    displacement = np.abs(order - np.arange(rows)).mean()
    assert abs(displacement / (rows / 3) - 1) < 0.15
    assert (np.abs(np.diff(order)) == 1).mean() < 0.01
    for batch in epoch_of(reader, 1):  # a batch draws on many of the 80 stretches of time, not on one
        assert len(torch.unique(batch["sample"] // 500)) >= 9


def test_at_most_two_windows_are_kept_and_a_jump_reads_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, [100] * 20)
    reads: list[int] = []
    reader = StreamReader(folder, ["value"], batch_size=50, window_rows=200, seed=0)
    plain = reader._files.read_into

    def counted(out: dict[str, Tensor], at: int, first: int, count: int) -> None:
        reads.append(count)
        plain(out, at, first, count)

    # Of this reader alone: the threads of other tests' readers may still be reading ahead.
    monkeypatch.setattr(reader._files, "read_into", counted)
    reader.batch(21)
    for load in reader._loads.values():
        load.result()
    assert sum(reads) == 400
    for step in range(reader.steps_per_epoch):
        reader.batch(step)
        assert len(reader._loads) == 2
    for load in reader._loads.values():
        load.result()
    assert sum(reads) == 400 + 2000 + 200  # the epoch, and the first window of the next


def test_rows_in_stream_order(tmp_path: Path) -> None:
    reader = StreamReader(write(tmp_path, [5, 9, 3]), ["value", "score"], batch_size=4, seed=0)
    found = reader.rows(3, 16)
    assert found["sample"].tolist() == list(range(3, 16))
    assert found["value"].tolist() == [10 * row for row in range(3, 16)]
    assert reader.rows(0, 0)["value"].shape == (0,)
    assert reader.num_rows == 17


def test_mistakes_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "train", [3])
    with pytest.raises(UserError, match=r"no column 'valeu'; it has: value, score; did you mean 'value'"):
        StreamReader(folder, ["valeu"], batch_size=1, seed=0)
    with pytest.raises(UserError, match="3 rows cannot be shared by 4 workers"):
        StreamReader(folder, ["value"], batch_size=1, seed=0, shard=(0, 4))
    with pytest.raises(DataError, match="holds no Parquet file"):
        StreamReader(tmp_path / "none", ["value"], batch_size=1, seed=0)
