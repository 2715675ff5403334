"""The embedded world: a generated log whose click probabilities are known (floor 2).

Who clicks on what, for user u, item i of category c(i) and context x (hour, device):

    logit(u, i, x) = bias + known(u, i, x) + hidden(u, i)
    known          = user_effect * (segment(u) + age(u)) + item_effect * (tags(i) - price(i))
                     + context_effect * (hour + device)
    hidden(u, i)   = affinity_effect * A[u, c(i)] + taste_effect * <p_u, q_i> + hidden_effect * (mood(u) + quality(i))

A, p, q, mood and quality are never shown. A and q lean on the observed segment and tags by ``observed_share``, so
attributes tell a part; clicks in the past tell more: A is what a point-in-time user x category click rate reveals.
A request draws ``candidates`` items by popularity (Zipf), and a noisy logging policy shows ``slate`` of them by
Gumbel top-k. ``dwell`` and ``conversion`` are drawn after the click and depend on ``hidden`` beyond it.

Axes: N rows, B requests of a chunk, K candidates, S places of the slate, U users, I items, C categories, D tastes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

START = 1_704_067_200  # 2024-01-01 00:00 UTC, the first second of the log
SEGMENTS = ("student", "worker", "parent", "retired", "traveller", "night-owl")
DEVICES = ("phone", "tablet", "desktop")
CHUNK = 8192  # requests generated at a time: their arrays stay in the processor's cache


class WorldConfig(BaseModel):
    """The parameters of one world; the same values give the same log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["world"] = "world"
    rows: int = Field(200_000, ge=1)
    users: int = Field(2_000, ge=1, le=100_000_000)
    items: int = Field(1_000, ge=1, le=10_000_000)
    seed: int = Field(0, ge=0)
    days: int = Field(60, ge=1, le=3650)
    slate: int = Field(5, ge=1, le=100)  # items shown per request
    candidates: int = Field(16, ge=1, le=1000)  # items drawn by popularity, of which the policy shows `slate`
    categories: int = Field(8, ge=1, le=1000)
    tags: int = Field(24, ge=1, le=1000)
    tastes: int = Field(4, ge=1, le=256)  # D of p_u and q_i
    popularity_exponent: float = Field(0.8, ge=0, le=3)  # Zipf exponent of the items
    activity_exponent: float = Field(0.4, ge=0, le=3)  # Zipf exponent of the users
    policy_strength: float = Field(0.7, ge=0, le=10)  # 0: the slate is a random draw of the candidates
    observed_share: float = Field(0.25, ge=0, le=1)  # share of the variance of A and q that the attributes explain
    bias: float = Field(-2.2, ge=-20, le=20)
    user_effect: float = Field(0.3, ge=0, le=10)
    item_effect: float = Field(0.4, ge=0, le=10)
    context_effect: float = Field(0.25, ge=0, le=10)
    hidden_effect: float = Field(0.35, ge=0, le=10)
    affinity_effect: float = Field(1.0, ge=0, le=10)
    taste_effect: float = Field(0.7, ge=0, le=10)
    dwell_effect: float = Field(0.5, ge=0, le=10)  # of `hidden` on log dwell
    conversion_effect: float = Field(0.8, ge=0, le=10)  # of `hidden` on the log-odds of a conversion

    @model_validator(mode="after")
    def _fits(self) -> WorldConfig:
        if self.candidates < self.slate:
            raise ValueError(f"candidates must be at least slate = {self.slate}, got {self.candidates}")
        if self.items < self.candidates:
            raise ValueError(f"items must be at least candidates = {self.candidates}, got {self.items}")
        return self


@dataclass(frozen=True)
class _World:
    """What is drawn once: the tables that users and items look up, by 0-based number."""

    segment_U: Ints
    age_U: Ints
    category_I: Ints
    tag_IT: Ints  # three tags, an item shows the first `tag_count_I`
    tag_count_I: Ints
    price_I: Floats
    known_U: Floats
    known_I: Floats
    mood_U: Floats
    quality_I: Floats
    affinity_UC: Floats
    taste_UD: Floats
    taste_ID: Floats
    item_of_rank_I: Ints  # popularity rank -> item


def generate(config: WorldConfig) -> dict[str, pl.DataFrame]:
    """The tables ``events`` (exactly ``config.rows`` rows, in time order), ``users`` and ``items`` of one world.

    Events: user, item, time [unix seconds], request, hour [0-23], device, click [0/1], true_probability (of the
    click, given all that the world knows), dwell [seconds], conversion [0/1]. Memory beside the result: one chunk.
    """
    rng = np.random.default_rng(config.seed)
    world = _draw_world(config, rng)
    return {"events": _events(config, world, rng), "users": _users(world), "items": _items(world)}


def _standardised(x: Floats | Ints) -> Floats:
    """``x`` with mean 0 and standard deviation 1 (0 where constant)."""
    spread = float(x.std())
    return np.asarray((x - x.mean()) / (spread if spread > 0 else 1.0), dtype=np.float32)


def _draw_world(config: WorldConfig, rng: np.random.Generator) -> _World:
    """Users, items and their tastes."""

    def normal(*shape: int) -> Floats:
        return np.asarray(rng.standard_normal(shape, dtype=np.float32))

    known, unknown = np.sqrt(np.array([config.observed_share, 1 - config.observed_share], np.float32))
    users, items, width = config.users, config.items, config.tastes
    segment_U = rng.integers(len(SEGMENTS), size=users, dtype=np.int32)
    category_I = rng.integers(config.categories, size=items, dtype=np.int32)
    tag_IT = rng.integers(config.tags, size=(items, 3), dtype=np.int32)
    tag_count_I = rng.integers(1, 4, size=items, dtype=np.int32)
    price_I = np.exp(normal(items) * np.float32(0.6) + np.float32(2.5))
    taste_of_tag = normal(config.tags, width)[tag_IT[:, 0]]
    tag_effect_I = normal(config.tags)[tag_IT[:, 0]]
    age_U = rng.integers(16, 80, size=users, dtype=np.int32)
    segment_effect_U = normal(len(SEGMENTS))[segment_U]
    return _World(
        segment_U=segment_U,
        age_U=age_U,
        category_I=category_I,
        tag_IT=tag_IT,
        tag_count_I=tag_count_I,
        price_I=price_I,
        known_U=np.float32(config.user_effect) * _standardised(segment_effect_U + _standardised(age_U)),
        known_I=np.float32(config.item_effect) * _standardised(tag_effect_I - _standardised(np.log(price_I))),
        mood_U=normal(users),
        quality_I=normal(items),
        affinity_UC=known * normal(len(SEGMENTS), config.categories)[segment_U]
        + unknown * normal(users, config.categories),
        taste_UD=normal(users, width),
        taste_ID=(known * taste_of_tag + unknown * normal(items, width)) / np.sqrt(np.float32(width)),
        item_of_rank_I=rng.permutation(items).astype(np.int32),
    )


def _zipf(uniform: Floats, size: int, exponent: float) -> Ints:
    """Inverse of the bounded power law: rank r in 0..size-1 has mass proportional to the integral of x^-exponent."""
    if exponent == 0:
        ranks = uniform * np.float32(size)
    elif exponent == 1:
        ranks = np.power(np.float32(size + 1), uniform) - 1
    else:
        power = 1 - exponent
        span = np.float32((size + 1) ** power - 1)
        ranks = np.power(uniform * span + np.float32(1), np.float32(1 / power)) - 1
    return np.asarray(np.clip(ranks, 0, size - 1), dtype=np.int32)


def _candidates(config: WorldConfig, rng: np.random.Generator, requests: int) -> Ints:
    """Popularity ranks [B, K], distinct in a row: a repeated draw moves on to the next free rank.

    Sorted draws x_j become ``min(max_{i<=j}(x_i - i) + j, I - K + j)``, which rises strictly and stays below I.
    """
    uniform = rng.random((requests, config.candidates), dtype=np.float32)
    places = np.arange(config.candidates, dtype=np.int32)
    rank_BK = np.sort(_zipf(uniform, config.items, config.popularity_exponent), axis=1) - places
    np.maximum.accumulate(rank_BK, axis=1, out=rank_BK)
    np.minimum(rank_BK, config.items - config.candidates, out=rank_BK)
    rank_BK += places
    return rank_BK


def _events(config: WorldConfig, world: _World, rng: np.random.Generator) -> pl.DataFrame:
    """The log, chunk by chunk."""
    requests = -(-config.rows // config.slate)
    second_B = np.sort(rng.integers(config.days * 86_400, size=requests, dtype=np.int64))
    chunks = [_chunk(config, world, rng, second_B[start : start + CHUNK], start) for start in range(0, requests, CHUNK)]
    columns = {name: np.concatenate([chunk[name] for chunk in chunks])[: config.rows] for name in chunks[0]}
    device = pl.Series("device", DEVICES).gather(columns.pop("device"))
    events = pl.DataFrame(columns).with_columns(device)
    return events.select(
        "user", "item", "time", "request", "hour", "device", "click", "true_probability", "dwell", "conversion"
    )


def _chunk(
    config: WorldConfig, world: _World, rng: np.random.Generator, second_B: npt.NDArray[np.int64], first: int
) -> dict[str, npt.NDArray[np.generic]]:
    """The rows of requests ``first``, ``first + 1``, ... at the given seconds; every array is flat [B * S]."""
    requests, slate = len(second_B), config.slate
    user_B = _zipf(rng.random(requests, dtype=np.float32), config.users, config.activity_exponent)
    item_BK = world.item_of_rank_I[_candidates(config, rng, requests)]

    # The logging policy knows quality and affinity, not the finer tastes; Gumbel top-k makes its choice noisy.
    # argmin of log(exponential) - score is argmax of score + Gumbel.
    affinity_BK = world.affinity_UC.ravel()[(user_B * np.int64(config.categories))[:, None] + world.category_I[item_BK]]
    key_BK = np.log(rng.standard_exponential(item_BK.shape, dtype=np.float32) + np.float32(1e-30))  # a draw may be 0
    key_BK -= np.float32(config.policy_strength) * (affinity_BK + world.quality_I[item_BK])
    if slate < config.candidates:
        shown_BS = np.sort(np.argpartition(key_BK, slate - 1, axis=1)[:, :slate], axis=1)
        item_BS = np.take_along_axis(item_BK, shown_BS, axis=1)
        affinity_BS = np.take_along_axis(affinity_BK, shown_BS, axis=1)
    else:
        item_BS, affinity_BS = item_BK, affinity_BK

    hour_B = (second_B // 3600 % 24).astype(np.int32)
    device_B = rng.choice(len(DEVICES), p=(0.6, 0.1, 0.3), size=requests)
    context_B = (hour_B.astype(np.float32) - 11.5) / 6.9 + np.array([0.5, 0.0, -0.5], np.float32)[device_B]
    known_B = np.float32(config.bias) + world.known_U[user_B] + np.float32(config.context_effect) * context_B
    taste_BS = np.einsum("bd,bsd->bs", world.taste_UD[user_B], world.taste_ID[item_BS])
    hidden_BS = np.float32(config.affinity_effect) * affinity_BS + np.float32(config.taste_effect) * taste_BS
    hidden_BS += np.float32(config.hidden_effect) * (world.mood_U[user_B][:, None] + world.quality_I[item_BS])
    logit_BS = hidden_BS + world.known_I[item_BS] + known_B[:, None]
    probability_BS = 1 / (1 + np.exp(-logit_BS.astype(np.float32)))
    click_BS = rng.random(item_BS.shape, dtype=np.float32) < probability_BS

    # Dwell tells of the tastes more than of the click itself, else a teacher would read the label off it.
    noise_BS = rng.standard_normal(item_BS.shape, dtype=np.float32)
    dwell_BS = np.exp(
        np.float32(1.5) + np.float32(0.25) * click_BS + np.float32(config.dwell_effect) * hidden_BS + noise_BS * 0.7
    )
    buy_BS = 1 / (1 + np.exp(np.float32(2.0) - np.float32(config.conversion_effect) * hidden_BS))
    conversion_BS = click_BS & (rng.random(item_BS.shape, dtype=np.float32) < buy_BS)
    return {
        "user": np.repeat(user_B + 1, slate).astype(np.int64),
        "item": (item_BS.ravel() + 1).astype(np.int64),
        "time": np.repeat(second_B + START, slate),
        "request": np.repeat(np.arange(first + 1, first + 1 + requests, dtype=np.int64), slate),
        "hour": np.repeat(hour_B, slate),
        "device": np.repeat(device_B, slate),
        "click": click_BS.ravel().astype(np.int8),
        "true_probability": probability_BS.ravel(),
        "dwell": dwell_BS.ravel().astype(np.float32),
        "conversion": conversion_BS.ravel().astype(np.int8),
    }


def _users(world: _World) -> pl.DataFrame:
    """One row a user: user, segment, age [years]."""
    number_U = np.arange(1, len(world.segment_U) + 1, dtype=np.int64)
    segment = pl.Series("segment", SEGMENTS).gather(world.segment_U)
    return pl.DataFrame({"user": number_U, "segment": segment, "age": world.age_U})


def _items(world: _World) -> pl.DataFrame:
    """One row an item: item, category, tags (joined by ``|``), price."""
    first, second, third = world.tag_IT.T
    second_shown = (world.tag_count_I > 1) & (second != first)
    third_shown = (world.tag_count_I > 2) & (third != first) & (third != second)
    items = pl.DataFrame(
        {
            "item": np.arange(1, len(world.category_I) + 1, dtype=np.int64),
            "category": world.category_I,
            "price": world.price_I,
            "first": first,
            "second": second,
            "third": third,
            "second_shown": second_shown,
            "third_shown": third_shown,
        }
    )
    tags = pl.concat_str(
        pl.format("tag-{}", "first"),
        pl.when("second_shown").then(pl.format("tag-{}", "second")),
        pl.when("third_shown").then(pl.format("tag-{}", "third")),
        separator="|",
        ignore_nulls=True,
    )
    return items.select("item", pl.format("category-{}", "category").alias("category"), tags.alias("tags"), "price")
