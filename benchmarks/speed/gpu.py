"""Does everything run on CUDA, does it agree with the CPU, and how fast is it? One command on a machine with a GPU.

    python benchmarks/speed/gpu.py [--out benchmarks/results/gpu.jsonl] [--device cuda] [--small] [--only checks|times]

Checks, each a line with what differed most and the tolerance:

- stage: every stage of the catalogue trains ``STEPS`` steps on the embedded world on both devices from the same weights
  and batches, dropout 0. The losses agree within ``LOSS_TOLERANCE`` (relative) at every step.
- metrics: the stage with the CPU's trained weights on both devices; every figure of ``evaluate`` agrees within
  ``METRIC_TOLERANCE`` (absolute; rounding may swap neighbours in a list).
- index: every kind, built and searched on both; its recall@100 against exact search differs by at most
  ``RECALL_TOLERANCE``, and exact kinds return the same scores within ``SCORE_TOLERANCE`` of |query| |item|. With a
  faiss that sees the GPU, flat and IVF must lie on it and answer with tensors of the device; else it says who serves.

Times, after a warm-up, device synchronised, median of the turns: a training step of DeepFM and DCN-V2 at batches of
4,096 and 65,536, in float32 and bfloat16, with sampling, look-ups and optimiser; full-ranking evaluation of Gowalla's
size (29,858 users x 40,981 items, width 64, top 20, 30 items excluded a user); exact search of 1,000,000 x 64, top 100.

``--device cpu`` compares the CPU with itself, to try the script. Exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cascade_kd.cascade import Cascade
from cascade_kd.config import StageConfig, load_experiment
from cascade_kd.config.catalogue import names
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.evaluate import EvaluateConfig, evaluate
from cascade_kd.evaluate.evaluation import Labelled, list_metrics
from cascade_kd.experiment.nets import stage_features
from cascade_kd.experiment.training import as_stage
from cascade_kd.memory import kept_memory
from cascade_kd.metrics import hits
from cascade_kd.retrieval import ExactRetriever, FaissRetriever, IndexConfig, build_index, search_excluding
from cascade_kd.retrieval import faiss_module as faiss
from cascade_kd.retrieval.check import Truth
from cascade_kd.stages import RetrievalStage
from cascade_kd.streams import scoped_seed
from cascade_kd.train.loop import sum_of
from cascade_kd.train.optimizers import make_optimizers
from cascade_kd.train.task import Task, make_loss, make_sampler
from cascade_kd.types import Candidates

ROOT = Path(__file__).resolve().parents[2]
STEPS, SEED, LIST = 20, 1, 50
LOSS_TOLERANCE, METRIC_TOLERANCE, RECALL_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-3, 0.02, 1e-5
KINDS: dict[str, dict[str, Any]] = {
    "torch": {"kind": "torch"},
    "flat": {"kind": "flat"},
    "ivf": {"kind": "ivf"},
    "ivfpq": {"kind": "ivfpq"},
    "sq": {"kind": "sq"},
    "hnsw": {"kind": "hnsw"},
}
TIMED = ("rank/deepfm", "rank/dcnv2")
Row = dict[str, Any]


# -- the embedded world and one stage over it


def experiment(stage: str, folder: Path, rows: int, **train: object) -> Any:
    """An experiment whose last stage is the catalogue's ``stage``, on a world of ``rows`` rows, without dropout."""
    text = (ROOT / "datasets" / "synthetic.toml").read_text("utf-8")
    for key, was, now in (("rows", "200_000", rows), ("users", "2_000", rows // 100), ("items", "1_000", rows // 100)):
        assert text.count(f"\n{key} = {was}\n") == 1, key
        text = text.replace(f"\n{key} = {was}\n", f"\n{key} = {now}\n")
    (folder / "world.toml").write_text(text, "utf-8")
    uses = [("recall", "recall/two-tower")] + ([("stage", stage)] if not stage.startswith("recall/") else [])
    lines = ['name = "gpu"', 'dataset = "world.toml"', "seeds = [0]"]
    for name, use in uses:
        lines += ["[[stage]]", f'name = "{name}"', f'use = "{use}"']
        label = "conversion" if use == "rank/esmm" else "click"
        lines += [f'train.label = "{label}"', *(f"train.{key} = {json.dumps(value)}" for key, value in train.items())]
        if "dropout" in stage_text(use):
            lines.append("model.dropout = 0.0")
    path = folder / "experiment.toml"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return load_experiment(path)


def stage_text(use: str) -> str:
    return (ROOT / "stages" / f"{use}.toml").read_text("utf-8")


class Trained:
    """A stage of the catalogue on a device, its weights drawn on the CPU, trained step by step."""

    def __init__(self, stage: StageConfig, dataset: Dataset, device: str) -> None:
        self.stage, self.dataset, self.device = stage, dataset.to(device), torch.device(device)
        features = stage_features(stage, stage.model_type, self.dataset)
        with scoped_seed(SEED):
            model = stage.model_type(stage.model, features)
        self.model = model.to(self.device)
        assert stage.train is not None
        task = Task(
            stage.name,
            self.model,
            features,
            self.dataset,
            stage.train,
            self.dataset.rows("train"),
            SEED,
            lists=random_lists(self.dataset),
        )
        self.train, self.features = stage.train, features
        self.optimizers = make_optimizers(self.model, stage.train)
        self.sampler = make_sampler(task)
        self.loss_parts = make_loss(task, self.sampler)

    def step(self, number: int) -> float:
        batch = self.sampler.batch(number)
        low = self.train.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            loss = sum_of(list(self.loss_parts(batch, number, 1000).values()))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def evaluated(self) -> Row:
        """Every figure of the stage behind a recall stage of random lists, by name."""
        stage = as_stage(self.stage, self.model, self.features, self.dataset)
        first = () if isinstance(stage, RetrievalStage) else (Popular(self.dataset),)
        asked = Labelled(self.train.label, self.train.loss == "bce")
        labelled = {s.name: asked for s in (*first, stage)}
        done = evaluate(Cascade((*first, stage)), self.dataset, labelled, EvaluateConfig(k=(1, 10)))
        return dict(numbers({"stages": done.stages, "cascade": done.cascade}))


class Popular:
    """A recall stage for all rankers: the most shown items first, the same for everyone."""

    name, level, keep, signals = "popular", "recall", LIST, frozenset({"ranking"})

    def __init__(self, dataset: Dataset) -> None:
        counts = torch.bincount(dataset.events.item_N, minlength=dataset.num_items + 1)[1:]
        self.item_K = counts.argsort(descending=True, stable=True)[:LIST] + 1

    def order(self, requests: Any, candidates: Candidates | None = None) -> Candidates:
        item_BK = self.item_K.expand(len(requests), -1)
        score_K = -torch.arange(len(self.item_K), device=item_BK.device).float()
        return Candidates.ranked(item_BK, score_K.expand_as(item_BK))

    def __call__(self, requests: Any, candidates: Candidates | None = None) -> Candidates:
        return self.order(requests, candidates)


def random_lists(dataset: Dataset) -> Candidates:
    """[U + 1, LIST] upstream lists, drawn on the CPU."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (dataset.num_users + 1, dataset.num_items)
    item_UK = torch.rand(shape, generator=generator).argsort(1)[:, :LIST] + 1
    item_UK = item_UK.to(dataset.events.item_N.device)
    return Candidates.ranked(item_UK, -torch.arange(LIST, device=item_UK.device).float().expand(item_UK.shape))


def numbers(tree: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The means of a metric tree by their path; times and the facts of an index are no metrics."""
    for key, value in tree.items():
        if isinstance(value, dict) and key != "index":
            yield from numbers(value, f"{name}/{key}")
        elif key == "mean" and value is not None:
            yield name, float(value)


# -- checks


def check_stage(use: str, dataset: Dataset, stage: StageConfig, device: str, steps: int) -> list[Row]:
    here, there = Trained(stage, dataset, "cpu"), Trained(stage, dataset, device)
    losses = [(here.step(step), there.step(step)) for step in range(steps)]
    gap = max(abs(a - b) / max(abs(a), 1e-6) for a, b in losses)
    there.model.load_state_dict(here.model.state_dict())
    mine, theirs = here.evaluated(), there.evaluated()
    far = max(mine, key=lambda name: abs(mine[name] - theirs.get(name, float("inf"))))
    difference = abs(mine[far] - theirs.get(far, float("inf")))
    tables = {"first_loss": losses[0][0], "last_loss": losses[-1][0]}
    return [
        verdict("stage", use, gap, LOSS_TOLERANCE, steps=steps, **tables),
        verdict("metrics", use, difference, METRIC_TOLERANCE, figures=len(mine), farthest=far),
    ]


def check_index(kind: str, device: str, num: int, dim: int) -> Row:
    item_ID, query_QD, held_QD = vectors(num, dim, 0), vectors(256, dim, 1), vectors(256, dim, 2)
    config, k = IndexConfig(**KINDS[kind]), min(100, num)
    cpu = build_index(config, item_ID, held_QD, k)
    gpu = build_index(config, item_ID.to(device), held_QD.to(device), k)
    score_QK, row_QK = gpu.retriever.search(query_QD.to(device), k)
    want_QK, _ = cpu.retriever.search(query_QD, k)
    assert score_QK.device.type == row_QK.device.type == torch.device(device).type
    recalls = [
        float(Truth(x_ID, query_QD.to(x_ID.device), k).recall(index.retriever).mean())
        for x_ID, index in ((item_ID, cpu), (item_ID.to(device), gpu))
    ]
    placed = "faiss" if isinstance(gpu.retriever, FaissRetriever) else "torch"
    on_gpu = isinstance(gpu.retriever, FaissRetriever) and gpu.retriever.on_gpu
    about = {"recall_cpu": recalls[0], "recall_device": recalls[1], "served_by": placed, "faiss_on_gpu": on_gpu}
    if config.is_exact:
        scale = float(query_QD.norm(dim=1).max() * item_ID.norm(dim=1).max())
        gap, tolerance = float((score_QK.cpu() - want_QK).abs().max()) / scale, SCORE_TOLERANCE
    else:
        gap, tolerance = abs(recalls[0] - recalls[1]), RECALL_TOLERANCE
    row = verdict("index", kind, gap, tolerance, notes=list(gpu.notes), **about)
    if torch.device(device).type == "cuda" and faiss_sees_gpu() and kind in ("flat", "ivf") and not on_gpu:
        row |= {"ok": False, "why": "faiss sees the GPU and the index is not on it"}
    return row


def faiss_sees_gpu() -> bool:
    return faiss.faiss_is_installed() and faiss.sees_gpu()


def verdict(check: str, what: str, gap: float, tolerance: float, **about: object) -> Row:
    return {"check": check, "what": what, "ok": gap <= tolerance, "gap": gap, "tolerance": tolerance, **about}


def vectors(num: int, dim: int, seed: int) -> Tensor:
    """A mixture of 500 clusters on the sphere."""
    centre_CD = torch.randn(500, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    noise_ND = 0.7 * torch.randn(num, dim, generator=generator)
    return normalize(noise_ND + centre_CD[torch.randint(0, len(centre_CD), (num,), generator=generator)])


# -- times


def seconds(work: Callable[[], object], device: str, turns: int) -> float:
    """Median over the turns, after one that is not counted."""

    def one() -> float:
        start = time.perf_counter()
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    one()
    return statistics.median(one() for _ in range(turns))


def time_steps(dataset: Dataset, stage: StageConfig, device: str, turns: int) -> Row:
    trained, number = Trained(stage, dataset, device), iter(range(10**9))
    took = seconds(lambda: trained.step(next(number)), device, turns)
    batch, precision = trained.train.batch_size, trained.train.precision
    rows = min(batch, len(dataset.rows("train")))
    return {"batch": batch, "precision": precision, "step_ms": 1000 * took, "samples_per_s": rows / took}


def time_evaluation(device: str, users: int, items: int, turns: int) -> Row:
    query_BD, item_ID = vectors(users, 64, 1).to(device), vectors(items, 64, 0).to(device)
    generator = torch.Generator().manual_seed(SEED)
    own_BE = torch.randint(0, items, (users, 40), generator=generator).sort(1).values.to(device)
    offsets_B1 = torch.arange(users + 1, device=device) * 30
    retriever = ExactRetriever()
    retriever.build(item_ID)
    positive_BP = own_BE[:, 30:]  # ascending; a repeated one would be counted twice
    first_BP = torch.ones_like(positive_BP, dtype=torch.bool)
    first_BP[:, 1:] = positive_BP[:, 1:] != positive_BP[:, :-1]
    count_B = first_BP.sum(1)
    starts_B1 = torch.cat([count_B.new_zeros(1), count_B.cumsum(0)])

    def one() -> None:
        found = search_excluding(retriever, query_BD, 20, offsets_B1, own_BE[:, :30].flatten())
        hit_BK = hits(found.row_BK, found.valid_BK, starts_B1, positive_BP[first_BP])
        list_metrics(hit_BK, count_B, (10, 20))

    took = seconds(one, device, turns)
    return {"users": users, "items": items, "seconds": took, "users_per_s": users / took}


def time_search(device: str, num: int, turns: int) -> Row:
    item_ID, query_QD = vectors(num, 64, 0).to(device), vectors(2048, 64, 1).to(device)
    rows: Row = {"items": num}
    for kind in ("torch", "flat"):
        retriever = build_index(IndexConfig(kind=kind), item_ID, None, 100).retriever
        took = seconds(lambda retriever=retriever: retriever.search(query_QD, 100), device, turns)  # type: ignore[misc]
        rows[f"{kind}_queries_per_s"] = 2048 / took
    return rows


# -- all of it


def results(options: argparse.Namespace) -> Iterator[Row]:
    device, small = options.device, options.small
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as name:
        folder = Path(name)

        def made(use: str, rows: int, **train: object) -> tuple[Dataset, StageConfig]:
            config = experiment(use, folder, rows, **train)
            return load(prepare(config.definition, base=config.dataset_file.parent)), config.stages[-1]

        if options.only != "times":
            for use in options.stages or names("stages"):
                dataset, stage = made(use, 10_000 if small else 50_000, batch_size=1024)
                yield from check_stage(use, dataset, stage, device, 3 if small else STEPS)
            for kind in KINDS:
                yield check_index(kind, device, 12_000 if small else 200_000, 32 if small else 64)
        if options.only != "checks":
            turns = 2 if small else 20
            for use in TIMED:
                for batch in (4096, 65536):
                    for precision in ("float32", "bfloat16"):
                        train = {"batch_size": batch, "precision": precision}
                        dataset, stage = made(use, 10_000 if small else 200_000, **train)
                        yield {"time": "step", "what": use, **time_steps(dataset, stage, device, turns)}
            users, items = (600, 1000) if small else (29_858, 40_981)
            yield {"time": "evaluation", "what": "full ranking", **time_evaluation(device, users, items, turns)}
            num = 20_000 if small else 1_000_000
            yield {"time": "search", "what": "exact, top 100", **time_search(device, num, turns)}


def describe(device: str) -> Row:
    about: Row = {"benchmark": "gpu", "device": device, "torch": torch.__version__, "faiss": None}
    if torch.device(device).type == "cuda":
        about["device"] = torch.cuda.get_device_name()
    if faiss.faiss_is_installed():
        about["faiss"] = f"{faiss.load_faiss().__version__}, GPU {'seen' if faiss_sees_gpu() else 'not seen'}"
    return about


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--only", choices=["checks", "times"])
    parser.add_argument("--stages", nargs="+", metavar="USE", help="check these of the catalogue; all unless given")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--out", type=Path, help="append one JSON line a result")
    options = parser.parse_args(argv)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this torch sees no CUDA device; --device cpu --small tries the script without one")
    about, failed = describe(options.device), 0
    with kept_memory():
        for row in results(options):
            failed += row.get("ok") is False
            print(line(row), flush=True)
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(about | row) + "\n")
    return 1 if failed else 0


def line(row: Row) -> str:
    if "check" in row:
        state = "ok    " if row["ok"] else "FAILED"
        gap = f"gap {row['gap']:.1e} of {row['tolerance']:.0e}"
        return f"{state} {row['check']:8} {row['what']:18} {gap}  {short(row)}"
    return f"time   {row['time']:8} {row['what']:18} {short(row)}"


def short(row: Row) -> str:
    shown = ("check", "time", "what", "ok", "gap", "tolerance")
    more = {key: f"{x:,.4g}" if isinstance(x, float) else str(x) for key, x in row.items() if key not in shown}
    return "  ".join(f"{key} {text}" for key, text in more.items())


if __name__ == "__main__":
    raise SystemExit(main())
