"""The raw MovieLens-1M files by pandas, read as fast as it goes; for the run by hand and the conversions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

VALID = TEST = 0.1


def read_ratings(folder: Path) -> pd.DataFrame:
    """user, item, rating, time. ``::`` is read as ``:`` with empty columns: the C parser takes one character only."""
    frame = pd.read_csv(folder / "ratings.dat", sep=":", header=None, usecols=[0, 2, 4, 6], dtype=np.int64)
    return frame.set_axis(["user", "item", "rating", "time"], axis=1)


def read_users(folder: Path) -> pd.DataFrame:
    """user, sex, age, occupation; all but the user as text."""
    frame = pd.read_csv(folder / "users.dat", sep=":", header=None, usecols=[0, 2, 4, 6], dtype=str)
    frame = frame.set_axis(["user", "sex", "age", "occupation"], axis=1)
    return frame.assign(user=frame["user"].astype(np.int64))


def read_items(folder: Path) -> pd.DataFrame:
    """item, title, genres (``A|B``), year (of release, text). Titles hold colons, so lines are split by hand."""
    lines = (folder / "movies.dat").read_text("iso-8859-1").splitlines()
    frame = pd.DataFrame([line.split("::") for line in lines], columns=["item", "title", "genres"])
    return frame.assign(item=frame["item"].astype(np.int64), year=frame["title"].str[-5:-1])


def in_time_order(ratings: pd.DataFrame) -> pd.DataFrame:
    """By user, time and row."""
    order = np.lexsort((ratings["time"].to_numpy(), ratings["user"].to_numpy()))
    return ratings.take(order).reset_index(drop=True)


def parts(ratings: pd.DataFrame) -> np.ndarray:
    """0 train, 1 valid, 2 test of rows sorted by user and time: of each user the last tenth and the one before it."""
    user_N = ratings["user"].to_numpy()
    _, start_U, count_U = np.unique(user_N, return_index=True, return_counts=True)
    place_N = np.arange(len(user_N)) - np.repeat(start_U, count_U)
    test_N = np.repeat(np.floor(count_U * TEST + 0.5), count_U)
    later_N = test_N + np.repeat(np.floor(count_U * VALID + 0.5), count_U)
    left_N = np.repeat(count_U, count_U) - place_N  # this event and those after it
    return (left_N <= later_N).astype(np.int64) + (left_N <= test_N)
