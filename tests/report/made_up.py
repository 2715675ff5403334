"""Made-up but plausible reports of a three-stage cascade."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cascade_kd.report import Report

STAGES = ("recall", "prerank", "rank")
KEEPS = (200, 50, 10)
HOSTILE = """</script><script>alert(1)</script> "a" & 'b' <!-- [red] 100%"""


def metric(mean: float, stderr: float | None = 0.0011, n: int = 97_214, **extra: Any) -> dict[str, Any]:
    return {"mean": mean, "stderr": stderr, "n": n, **extra}


def make_report(*, seeds: int = 3, distilled: bool = True, stages: tuple[str, ...] = STAGES) -> Report:
    """A report of MovieLens-like figures; ``stages`` are three names in funnel order."""
    generator = np.random.default_rng(7)
    trees = {str(seed): _seed_tree(stages, distilled, generator) for seed in range(seeds)}
    name = f"{stages[2]}->{stages[1]}:logit"
    return Report(
        run={
            "name": "movielens-1m-logit",
            "config_sha256": "9f2c4e0b7a3d5e6f8a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef",
            "data_sha256": "0b1d3f5a7c9e1b2d4f6a8c0e2b4d6f8091a3b5c7d9e1f30527496b8dacfe1032",
            "commit": "4be21d9",
            "versions": {"cascade-kd": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "polars": "2.1.0"},
            "device": "cpu",
            "threads": 2,
            "wall_s": 1383.4,
            "peak_rss_bytes": 1_932_735_283,
        },
        seeds=trees,
        config_toml=_config(stages, seeds, distilled),
        curves=_curves(stages, seeds, distilled, generator),
        calibration={stage: _calibration(shift) for stage, shift in zip(stages[1:], (0.35, -0.1), strict=True)},
        notes=["1,204 of 6,040 users have no test like and are left out of recall and ndcg."],
        agreement={name: _agreement(generator)} if distilled else {},
    )


def _seed_tree(stages: tuple[str, ...], distilled: bool, generator: np.random.Generator) -> dict[str, Any]:
    recall, prerank, rank = stages
    gain = 0.0048 * distilled

    def jitter(mean: float, scale: float = 0.0011) -> float:
        return mean + scale * float(generator.standard_normal())

    def side(gain: float) -> tuple[dict[str, Any], dict[str, Any]]:
        survival = [0.4312, 0.1985 + 2.5 * gain, 0.0871 + gain]
        survival = [jitter(share, 0.0015) for share in survival]
        found_by = dict(zip(stages, survival, strict=True))
        lost = dict(zip(stages, -np.diff([1.0, *survival]), strict=True))
        lists = {"recall@1": metric(jitter(0.0174), 0.0009, 4836), "recall@10": metric(survival[2], 0.0021, 4836)}
        lists |= {f"ndcg@{k}": metric(jitter(0.092 + 0.001 * k), 0.0019, 4836) for k in (1, 10)}
        trees = {
            recall: {
                "auc": metric(jitter(0.7214)),
                "gauc": metric(jitter(0.6632), 0.0024, 4_512, one_class_share=0.066),
                "logloss": {"mean": math.nan, "stderr": None, "n": 0, "why": "sampled softmax is no probability model"},
                "recall@1": metric(0.0079, 0.0006, 4836),
                "recall@10": metric(jitter(0.0613), 0.0017, 4836),
                "recall@200": metric(survival[0], 0.0041, 4836),
            },
            prerank: {
                "auc": metric(jitter(0.8031 + gain)),
                "gauc": metric(jitter(0.7512 + gain), 0.0021, 4_512),
                "logloss": metric(jitter(0.5342 - gain), 0.0009, calibrated="platt"),
                "ece": metric(0.0131, None),
                "recall@10": metric(jitter(0.0702 + gain), 0.0019, 4836),
                "recall@50": metric(survival[1], 0.0031, 4836),
            },
            rank: {
                "auc": metric(0.8195),
                "gauc": metric(0.7688, 0.0020, 4_512),
                "logloss": metric(0.5127, 0.0009),
                "ece": metric(0.0072, None),
                "recall@10": metric(survival[2], 0.0021, 4836),
            },
        }
        cascade = {
            **lists,
            "survival": {stage: metric(share, 0.004, 4836) for stage, share in found_by.items()},
            "lost": {stage: metric(float(share), 0.004, 4836) for stage, share in lost.items()},
            "found": metric(survival[2], 0.0021, 4836),
        }
        return trees, cascade

    base_stages, base_cascade = side(0.0)
    trained, cascade = side(gain) if distilled else (base_stages, base_cascade)
    if distilled:
        trained[recall] = base_stages[recall]
        cascade["survival"][recall] = base_cascade["survival"][recall]
        cascade["lost"][recall] = base_cascade["lost"][recall]
    reference = {
        "popularity": {"recall@1": metric(0.0041, 0.0004, 4836), "recall@10": metric(0.0388, 0.0014, 4836)},
        "random": {"recall@1": metric(0.0003, 0.0001, 4836), "recall@10": metric(0.0027, 0.0004, 4836)},
        "oracle": {"auc": metric(0.8412, 0.001)},
    }
    tree: dict[str, Any] = {
        "stages": trained,
        "cascade": cascade,
        "teachers": {},
        "baseline": {"stages": base_stages, "cascade": base_cascade, "reference": reference},
        "distill": {},
    }
    if distilled:
        tree["distill"][f"{rank}->{prerank}:logit"] = {
            "overlap@10": metric(jitter(0.612), 0.003, 4836),
            "overlap@50": metric(jitter(0.744), 0.002, 4836),
            "tau": metric(jitter(0.581), 0.003, 4836),
            "recovery": {"auc": jitter(0.29, 0.02), "gauc": jitter(0.27, 0.02), "logloss": None},
        }
    return tree


def _config(stages: tuple[str, ...], seeds: int, distilled: bool) -> str:
    lines = ['name = "movielens-1m-logit"', 'dataset = "movielens-1m"', f"seeds = {list(range(seeds))}"]
    for stage, keep in zip(stages, KEEPS, strict=True):
        quoted = stage.replace("\\", "\\\\").replace('"', '\\"')
        lines += ["", "[[stage]]", f'name = "{quoted}"', f"keep = {keep}"]
    if distilled:
        lines += ["", "[[distill]]", 'method = "logit"', 'loss = "kl"', "temperature = 2.0", "weight = 0.5"]
    return "\n".join(lines) + "\n"


def _curves(
    stages: tuple[str, ...], seeds: int, distilled: bool, generator: np.random.Generator
) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for seed in range(seeds):
        for training_round in range(1 + distilled):
            for place, stage in enumerate(stages):
                if training_round == 1 and place != 1:
                    continue
                for epoch in range(1, 9 + place):
                    loss = (3.1, 0.56, 0.52)[place] * (0.8 + 0.4 * math.exp(-epoch / 2)) + 0.01 * generator.random()
                    value = (0.19, 0.803, 0.82)[place] * (1 - 0.2 * math.exp(-epoch / 2)) + 0.004 * training_round
                    points.append(
                        {"seed": seed, "round": training_round, "stage": stage, "epoch": epoch, "step": epoch * 210}
                        | {"loss": loss, "metric": "recall@50" if place == 0 else "auc"}
                        | {"value": value + 0.002 * generator.random()}
                    )
    return points


def _calibration(shift: float) -> list[dict[str, Any]]:
    logits = np.linspace(-2.4, 2.4, 20)
    observed = 1 / (1 + np.exp(-logits * (1 - shift / 2) - shift))
    return [
        {"predicted": float(1 / (1 + math.exp(-x))), "observed": float(y), "n": 4861}
        for x, y in zip(logits, observed, strict=True)
    ]


def _agreement(generator: np.random.Generator) -> list[dict[str, Any]]:
    teacher = generator.normal(0.3, 1.3, 60_000)
    student = 0.85 * teacher + generator.normal(0, 0.55, teacher.size)
    probabilities = [1 / (1 + np.exp(-x)) for x in (teacher, student)]
    counts, _, _ = np.histogram2d(*probabilities, bins=20, range=[[0, 1], [0, 1]])
    middle = (np.arange(20) + 0.5) / 20
    return [
        {"teacher": float(middle[t]), "student": float(middle[s]), "n": int(counts[t, s])}
        for t, s in zip(*np.nonzero(counts), strict=True)
    ]
