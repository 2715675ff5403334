"""Lists of RecFlow's format with a known cascade behind them: python benchmarks/objectives/world.py [--lists N]

Writes `data/all_stage/*.feather` beside this file (or under --out), with the columns that the authors' README names.
A request draws 100 videos by popularity; a noisy pre-ranker, a less noisy coarse ranker and a good ranker keep 60, 25
and 10 of them. Every list logs ten videos of each outcome: kept by the ranker (`rank_pos`), dropped by it (`rank_neg`),
by the coarse ranker, by the pre-ranker. A user likes <taste, vector of the video> + quality, of which the features show
a part: vectors lean on author and category, tastes on age and gender.

B requests of a day, K candidates, U users, I videos.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

HERE = Path(__file__).parent
CANDIDATES, KEPT, LOGGED = 100, (60, 25, 10), 10
NOISE = (1.5, 0.9, 0.3)  # of the pre-ranker, the coarse ranker, the ranker: standard deviations beside utilities of 1
DAYS, START_MS = 20, 1_708_000_000_000
USERS, ITEMS, AUTHORS, CATEGORIES, TASTES = 500, 800, 80, 16, 6


def world(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What is drawn once: users, videos, tastes."""
    author_I = rng.integers(AUTHORS, size=ITEMS)
    category_of_author = rng.integers(CATEGORIES, size=AUTHORS)
    vector_I = 0.5 * rng.standard_normal((CATEGORIES, TASTES))[category_of_author[author_I]]
    vector_I += 0.5 * rng.standard_normal((AUTHORS, TASTES))[author_I] + 0.7 * rng.standard_normal((ITEMS, TASTES))
    age_U, gender_U = rng.integers(7, size=USERS), rng.integers(3, size=USERS)
    taste_U = 0.5 * rng.standard_normal((21, TASTES))[age_U * 3 + gender_U]
    taste_U += 0.85 * rng.standard_normal((USERS, TASTES))
    share_I = np.arange(1, ITEMS + 1) ** -0.6
    return {
        "author": author_I,
        "category": category_of_author[author_I],
        "utility": (taste_U @ vector_I.T) / np.sqrt(TASTES) + 0.3 * rng.standard_normal(ITEMS),
        "share": share_I / share_I.sum(),
        "age": age_U,
        "gender": gender_U,
        "province": rng.integers(30, size=USERS),
        "duration": rng.integers(5_000, 120_000, size=ITEMS),
        "upload": rng.integers(4, size=ITEMS),
    }


def day(number: int, requests: int, made: dict[str, np.ndarray], rng: np.random.Generator) -> pl.DataFrame:
    """The rows of one day, 40 a request."""
    user_B = rng.integers(USERS, size=requests)
    # Gumbel top-k: distinct videos, popular ones more often.
    wait_BI = rng.gumbel(size=(requests, ITEMS)) + np.log(made["share"])
    item_BK = np.argpartition(-wait_BI, CANDIDATES, axis=1)[:, :CANDIDATES]
    utility_BK = made["utility"][user_B[:, None], item_BK]
    utility_BK = utility_BK / made["utility"].std()
    level_BK = np.zeros(item_BK.shape, np.int64)
    left_BK = np.ones(item_BK.shape, bool)
    for level, (noise, keep) in enumerate(zip(NOISE, KEPT, strict=True), start=1):
        score_BK = np.where(left_BK, utility_BK + noise * rng.standard_normal(item_BK.shape), -np.inf)
        kth_B1 = np.partition(score_BK, -keep, axis=1)[:, -keep][:, None]
        left_BK &= score_BK >= kth_B1
        level_BK[left_BK] = level
    # Ten of every level, drawn alike, then in an order that tells nothing.
    draw_BK = rng.random(item_BK.shape)
    logged = [
        np.argpartition(np.where(level_BK == level, draw_BK, 2.0), LOGGED, axis=1)[:, :LOGGED] for level in range(4)
    ]
    place_BL = rng.permuted(np.concatenate(logged, axis=1), axis=1)
    item_BL, level_BL = (np.take_along_axis(x, place_BL, axis=1) for x in (item_BK, level_BK))
    user_BL = np.broadcast_to(user_B[:, None], item_BL.shape)
    request_BL = np.broadcast_to(number * 1_000_000 + np.arange(requests)[:, None], item_BL.shape)
    time_B = START_MS + number * 86_400_000 + np.sort(rng.integers(86_400_000, size=requests))
    shown_BL = (level_BL == 3) & (rng.random(item_BL.shape) < 0.6)
    liking_BL = np.take_along_axis(utility_BK, place_BL, axis=1)
    viewed_BL = shown_BL & (rng.random(item_BL.shape) < 1 / (1 + np.exp(-liking_BL)))
    columns = {
        "request_id": request_BL,
        "user_id": user_BL,
        "request_timestamp": np.broadcast_to(time_B[:, None], item_BL.shape),
        "device_id": user_BL,
        "age": made["age"][user_BL],
        "gender": made["gender"][user_BL],
        "province": made["province"][user_BL],
        "video_id": item_BL,
        "author_id": made["author"][item_BL],
        "category_level_one": made["category"][item_BL] // 4,
        "category_level_two": made["category"][item_BL],
        "upload_type": made["upload"][item_BL],
        "duration": made["duration"][item_BL],
        "realshow": shown_BL,
        "rerank_pos": np.zeros_like(shown_BL),
        "rerank_neg": np.zeros_like(shown_BL),
        "rank_pos": level_BL == 3,
        "rank_neg": level_BL == 2,
        "coarse_neg": level_BL == 1,
        "prerank_neg": level_BL == 0,
        "effective_view": viewed_BL,
        "long_view": viewed_BL,
        **{name: viewed_BL & (rng.random(item_BL.shape) < 0.1) for name in ("like", "follow", "forward", "comment")},
        "playing_time": np.where(viewed_BL, made["duration"][item_BL], 0),
    }
    return pl.DataFrame({name: np.ascontiguousarray(x).reshape(-1).astype(np.int64) for name, x in columns.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=8_000)
    parser.add_argument("--out", type=Path, default=HERE / "data")
    options = parser.parse_args()
    folder = options.out / "all_stage"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    made = world(rng)
    for number in range(DAYS):
        path = folder / f"day-{number:02}.feather"
        day(number, options.lists // DAYS, made, rng).write_ipc(path)
    print(f"{options.lists // DAYS * DAYS:,} lists of 40 in {folder}")


if __name__ == "__main__":
    main()
