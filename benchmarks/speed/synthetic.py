"""Rows a second of the embedded world's generator: ``python benchmarks/speed/synthetic.py --rows 1000000``."""

from __future__ import annotations

import argparse
import json
import time

from cascade_kd.data.synthetic import WorldConfig, generate


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the generator of the embedded data set; prints one JSON line.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    config = WorldConfig(rows=options.rows, users=options.users, items=options.items)
    generate(config.model_copy(update={"rows": min(options.rows, 10_000)}))  # warm-up: imports, first allocations
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        generate(config)
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    median = seconds[len(seconds) // 2]
    print(json.dumps({"rows": options.rows, "median_s": round(median, 4), "rows_per_s": round(options.rows / median)}))


if __name__ == "__main__":
    main()
