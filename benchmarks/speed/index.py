"""Every kind of index: recall@100 against exact search, build time, queries/s beside bare faiss, bytes per vector.

    OMP_NUM_THREADS=2 python benchmarks/speed/index.py [--shape 100000x128 1000000x64] [--vectors spread clustered] \\
        [--minutes 12] [--out benchmarks/results/index.jsonl]

Kinds are built with their defaults, so nprobe and ef_search are the smallest power of two whose recall on 256 held
queries is safely above .95; recall is then measured on other queries. A graph is built on one thread, so that it is the
same every time; above 500,000 items it has 16 links, 64 candidates and ef_search 1024, whatever recall that gives, as
the defaults take three times as long to build. A kind whose turn comes after ``--minutes`` is left out and said to be.
"Bare" calls the index of faiss itself, or ``IndexRefineFlat`` over it where we rerank, with the same parameters on the
same queries, in turns with ours in one process; ratio is the median over the turns of bare seconds / our seconds.

Vectors, items and queries alike: ``clustered`` is a mixture of 2000 clusters on the sphere, centre + .7 noise, both
standard normal, normalised; ``spread``, the default, overlaps them (1.7 noise), lets the variance of coordinate i fall
as 1/i and the norms vary by 20 % (log-normal), as those of a learned dot-product model do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cascade_kd.errors import UserError
from cascade_kd.retrieval import FaissRetriever, IndexConfig, Retriever, build_index, faiss_module
from cascade_kd.retrieval.check import Truth

KINDS: dict[str, dict[str, Any]] = {
    "torch": {"kind": "torch"},
    "flat": {"kind": "flat"},
    "ivf": {"kind": "ivf"},
    "sq fp16": {"kind": "sq"},
    "sq 8bit": {"kind": "sq", "sq_type": "8bit"},
    "ivfpq": {"kind": "ivfpq"},
    "hnsw": {"kind": "hnsw"},
}
CLUSTERS = 2000
MANY = 500_000
QUICK_GRAPH = {"hnsw_m": 16, "ef_construction": 64, "ef_search": 1024, "recall_floor": 0.01}


def clustered(num: int, dim: int, seed: int) -> Tensor:
    return normalize(_mixture(num, dim, seed, spread=0.7))


def spread(num: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    scale = torch.arange(1, dim + 1).float() ** -0.5
    norm = torch.exp(0.2 * torch.randn(num, 1, generator=generator))
    return normalize(_mixture(num, dim, seed, spread=1.7) * scale) * norm


def _mixture(num: int, dim: int, seed: int, spread: float) -> Tensor:
    centres = torch.randn(CLUSTERS, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, dim, generator=generator).mul_(spread)
    return x.add_(centres[torch.randint(0, CLUSTERS, (num,), generator=generator)])


def bare_search(retriever: FaissRetriever, vectors_ID: Tensor, query_BD: Tensor, k: int) -> Callable[[], object]:
    """The same search by faiss's own Python interface."""
    faiss, plan, index = faiss_module.load_faiss(), retriever.plan, retriever._index
    query, parameters = query_BD.numpy(), None
    if plan.kind == "hnsw":
        parameters = faiss.SearchParametersHNSW(efSearch=retriever.effort)
    elif plan.effort_key:
        parameters = faiss.SearchParametersIVF(nprobe=retriever.effort)
    if plan.rerank:
        index = faiss.IndexRefineFlat(index, faiss.swig_ptr(vectors_ID.numpy()))
        parameters = faiss.IndexRefineSearchParameters(k_factor=plan.rerank, base_index_params=parameters)
    return lambda: index.search(query, k, params=parameters)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(
    name: str, vectors_ID: Tensor, query_BD: Tensor, held_QD: Tensor, args: argparse.Namespace
) -> dict[str, Any]:
    config = KINDS[name] | (QUICK_GRAPH if name == "hnsw" and len(vectors_ID) > MANY else {})
    try:
        index = build_index(IndexConfig(**config), vectors_ID, held_QD, args.k)
    except UserError as error:
        return {"refused": str(error)}  # below the floor, with the key to change
    retriever: Retriever = index.retriever
    recall = float(Truth(vectors_ID, query_BD[:512], args.k).recall(retriever).mean())
    facts = {key: value for key, value in index.facts.items() if not key.startswith("recall@") and key != "kind"}
    single = [seconds(lambda i=i: retriever.search(query_BD[i : i + 1], args.k)) for i in range(30)]
    ours: list[float] = []
    bare: list[float] = []
    direct = None
    if isinstance(retriever, FaissRetriever):
        direct = bare_search(retriever, vectors_ID, query_BD, args.k)
        direct()
    retriever.search(query_BD, args.k)
    for turn in range(args.turns):
        ours_first = turn % 2 == 0
        if direct is not None and not ours_first:
            bare.append(seconds(direct))
        ours.append(seconds(lambda: retriever.search(query_BD, args.k)))
        if direct is not None and ours_first:
            bare.append(seconds(direct))
    figures: dict[str, Any] = {
        "recall": round(recall, 4),
        "queries_per_s": round(len(query_BD) / statistics.median(ours)),
        "one_query_ms": round(1000 * statistics.median(single), 3),
        **{key: round(value, 2) if isinstance(value, float) else value for key, value in facts.items()},
    }
    if bare:
        figures["bare_queries_per_s"] = round(len(query_BD) / statistics.median(bare))
        ratios = [theirs / mine for theirs, mine in zip(bare, ours, strict=True)]
        figures["ratio"] = round(statistics.median(ratios), 3)
        figures["ratio_of_best"] = round(min(bare) / min(ours), 3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["100000x128", "1000000x64"], metavar="ITEMSxDIM")
    parser.add_argument("--vectors", nargs="+", default=["spread"], choices=["clustered", "spread"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=12.0, help="begin no kind after so many")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--out", type=Path, help="append one JSON line a row")
    args = parser.parse_args()
    threads, started = torch.get_num_threads(), time.perf_counter()
    for shape in args.shape:
        num, dim = map(int, shape.split("x"))
        for vectors in args.vectors:
            make = {"clustered": clustered, "spread": spread}[vectors]
            vectors_ID, query_BD, held_QD = make(num, dim, 0), make(args.queries, dim, 1), make(256, dim, 2)
            print(f"\n{num:,} x {dim}, {vectors}, top {args.k}, {args.queries} queries, {threads} threads")
            print("kind     recall   build s  bytes  1 query ms  queries/s       bare  ratio  (of best)  parameters")
            for kind in args.kinds:
                if time.perf_counter() - started > 60 * args.minutes:
                    row = {"refused": f"not measured: {args.minutes:g} minutes were over"}
                else:
                    row = measure(kind, vectors_ID, query_BD, held_QD, args)
                about = {"benchmark": "index", "items": num, "dim": dim, "vectors": vectors, "kind": kind, "k": args.k}
                about |= {"threads": threads, "load": round(os.getloadavg()[0], 2)}
                if args.out:
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(about | row) + "\n")
                print(f"{kind:8}", line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    if "refused" in row:
        return str(row["refused"])
    text = f"{row['recall']:.4f} {row['build_seconds']:9.1f} {row['bytes_per_vector']:6.0f} {row['one_query_ms']:11.2f}"
    text += f" {row['queries_per_s']:10,} {row.get('bare_queries_per_s', '-'):>10} {row.get('ratio', '-'):>6}"
    text += f" {row.get('ratio_of_best', '-'):>10}  "
    keys = ("nlist", "nprobe", "pq_m", "pq_bits", "rerank", "hnsw_m", "ef_construction", "ef_search")
    return text + " ".join(f"{key} {row[key]}" for key in keys if key in row)


if __name__ == "__main__":
    main()
