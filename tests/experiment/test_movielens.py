"""The main job on the real data (data, slow): the shipped experiment with one seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade_kd.config import load_experiment
from cascade_kd.experiment import run
from cascade_kd.train import ProgressLog

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_movielens_1m_cascade(data_folder: Path, tmp_path: Path) -> None:
    assert (data_folder / "movielens-1m" / "ratings.dat").exists()
    config = load_experiment(ROOT / "benchmarks" / "movielens-1m" / "logit.toml", overrides=["seeds=[0]"])
    result = run(config, tmp_path / "run", device="cpu", progress=ProgressLog(quiet=True))
    tree = result.report.seeds["0"]
    for stage in ("prerank", "rank"):
        assert tree["stages"][stage]["auc"]["mean"] > 0.75
    popular = tree["baseline"]["reference"]["popularity"]
    assert tree["stages"]["recall"]["recall@50"]["mean"] >= 1.3 * popular["recall@50"]["mean"]
    assert tree["cascade"]["recall@10"]["mean"] >= tree["stages"]["recall"]["recall@10"]["mean"]
    assert result.outside == []
