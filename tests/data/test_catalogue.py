"""The data sets that are shipped: every TOML loads, the official formats are read, the real files come to what they
should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cascade_kd.config import catalogue, load_dataset_definition
from cascade_kd.data import DatasetDefinition, load, prepare
from cascade_kd.data.schema import ExpectDefinition

NAMES = catalogue.names("datasets")
SHARED = (
    "citeulike", "citeulike-topology", "frappe", "gowalla", "jd-appliances", "movielens-100k", "movielens-1m",
    "movielens-1m-loo", "movielens-1m-sequence", "movietweetings", "retailrocket",
)  # fmt: skip
ABSENT = ("criteo", "kuairand-1k", "recflow", "recflow-stages")  # not at hand: read in their format only


@pytest.mark.parametrize("name", NAMES)
def test_it_loads(name: str) -> None:
    definition, file = load_dataset_definition(name)
    assert definition.name == file.stem == name
    assert definition.licence
    assert definition.description
    if name in SHARED:
        assert definition.expect.events
        assert definition.expect.users
        assert definition.expect.items
        assert set(definition.expect.label_rate) == set(definition.labels)


def test_all_are_accounted_for() -> None:
    assert set(NAMES) == {*SHARED, *ABSENT, "synthetic"}


@pytest.mark.data
@pytest.mark.parametrize("name", SHARED)
def test_the_real_files_come_to_what_they_should(name: str, data_folder: Path) -> None:
    definition, file = load_dataset_definition(name)
    if not (data_folder / str(definition.path)).is_dir():
        pytest.skip(f"{data_folder} holds no {definition.path}")
    dataset = load(prepare(definition, base=file.parent))  # verifies [expect]
    counts = dataset.meta["counts"]["rows"]
    if name == "movielens-100k":
        assert counts["train"] + counts["valid"] == 90_570  # ua.base
    if name == "gowalla":
        assert counts["train"] + counts["valid"] == 810_128
        assert counts["test"] == 217_242
    if name == "frappe":
        assert counts == {"train": 202_027, "valid": 57_722, "test": 28_860}
    if name == "retailrocket":
        assert counts["test"] == 2_174
    if name.endswith(("loo", "sequence", "citeulike", "topology")):
        assert counts["valid"] == counts["test"] == dataset.num_users
    if name == "jd-appliances":
        assert dataset.meta["counts"]["users"] == {"train": 800, "valid": 100, "test": 100}


def prepared(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """A set of the catalogue on made-up files, which come to other numbers than the real ones."""
    monkeypatch.setenv("CASCADE_KD_DATA", str(folder))
    definition, file = load_dataset_definition(name)
    small = DatasetDefinition.model_validate(
        definition.model_dump(exclude_unset=True) | {"expect": ExpectDefinition().model_dump()}
    )
    made = prepare(small, base=file.parent)
    tables = {table: pl.read_parquet(made / f"{table}.parquet") for table in ("users", "items", "events", "vocabulary")}
    return json.loads((made / "meta.json").read_text()), tables


def recflow_row(day: int, number: int) -> dict[str, int]:
    """One row of a day of RecFlow: the columns of its README."""
    stages = ["realshow", "rerank_pos", "rerank_neg", "rank_pos", "rank_neg", "coarse_neg", "prerank_neg"]
    views = ["effective_view", "long_view", "like", "follow", "forward", "comment"]
    request = 100 * day + number // 3
    stage = stages[number % len(stages)]
    return (
        {"request_id": request, "request_timestamp": 1_705_100_000_123 + 86_400_000 * day + 60_000 * (request % 100)}
        | {"user_id": number % 4, "device_id": number % 2, "age": number % 5, "gender": number % 2, "province": 3}
        | {
            "video_id": number,
            "author_id": number // 5,
            "category_level_one": number % 2,
            "category_level_two": number % 3,
        }
        | {"upload_type": 1, "upload_timestamp": 1_700_000_000 + number, "duration": 10_000 + number}
        | {name: int(name == stage) for name in stages}
        | {"rank_index": number, "rerank_index": number, "playing_time": 1000 * (number % 7)}
        | {name: int((number + day) % (place + 2) == 0) for place, name in enumerate(views)}
    )


@pytest.mark.parametrize(("name", "folder"), [("recflow", "realshow"), ("recflow-stages", "all_stage")])
def test_recflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str) -> None:
    (tmp_path / "RecFlow" / folder).mkdir(parents=True)
    days = 40
    for day in range(days):
        frame = pl.DataFrame([recflow_row(day, number) for number in range(12)])
        frame.write_ipc(
            tmp_path / "RecFlow" / folder / f"2024-{1 + day // 28:02d}-{1 + day % 28:02d}.feather", compression="lz4"
        )
    meta, tables = prepared(name, tmp_path, monkeypatch)
    events = tables["events"]
    assert meta["has_requests"]
    assert len(events) == days * 12
    assert events["time"].min() == 1_705_100_000
    assert events.filter(pl.col("part") == 2)["time"].min() > events.filter(pl.col("part") == 0)["time"].max()
    assert (meta["num_users"], meta["num_items"]) == (4, 12)
    if name == "recflow-stages":  # by their numbers: 0 and 7 shown, 1 and 8 first of re-ranking, ...
        labels = ("shown", "reranked", "ranked", "coarsely_ranked", "preranked")
        assert [events[f"label:{label}"].sum() / days for label in labels] == [2, 4, 8, 10, 11]


def test_kuairand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "KuaiRand-1K" / "data"
    folder.mkdir(parents=True)
    log = (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
        "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
    )
    marks = ["1,1,1,1,1,1,1", "1,0,0,0,0,0,1", "0,0,0,0,0,0,0"]
    for part, days in {"4_08_to_4_21": range(8, 22), "4_22_to_5_08": range(22, 30)}.items():
        rows = [
            f"{day % 3},{day * 3 + n},202204{day:02d},{100 * n + 5},{1_649_000_000_000 + day * 86_400_000 + n},"
            f"{marks[n]},{1000 * n},{5000 + day},0,0,0,0,{n}\n"
            for day in days
            for n in range(3)
        ]
        (folder / f"log_standard_{part}_1k.csv").write_text(log + "".join(rows))
    (folder / "log_random_4_22_to_5_08_1k.csv").write_text("left out")
    users = (
        "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
        "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
        "register_days_range," + ",".join(f"onehot_feat{n}" for n in range(18)) + "\n"
    )
    row = '{n},full_active,0,0,1,5,"(0,10]",312,"[100,1k)",0,0,3624,730+,' + ",".join("0" * 17) + ",\n"
    (folder / "user_features_1k.csv").write_text(users + "".join(row.format(n=n) for n in range(4)))
    items = (
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
        "music_id,music_type,tag\n"
    )
    tags = ['"12,65"', "12", ""]
    (folder / "video_features_basic_1k.csv").write_text(
        items
        + "".join(
            f"{n},{n % 4},{'AD' if n % 9 == 0 else 'NORMAL'},2022-03-01,ShortImport,1,{1000.0 * n if n % 5 else ''},"
            f"720,1280,98,{n % 3}.0,{tags[n % 3]}\n"
            for n in range(24, 100)
        )
    )
    meta, tables = prepared("kuairand-1k", tmp_path, monkeypatch)
    assert sum(meta["counts"]["rows"].values()) == 66
    assert (meta["num_users"], meta["num_items"]) == (3, 76)
    assert tables["events"]["time"].min() == 1_649_000_000 + 8 * 86_400
    features = {feature["name"]: feature for feature in meta["features"]}
    assert (features["tag"]["length"], features["tag"]["size"]) == (2, 3)
    words = dict.fromkeys(tables["vocabulary"].filter(pl.col("vocabulary") == "follow_range")["value"])
    assert list(words) == ["(0,10]"]
    hours = tables["vocabulary"].filter(pl.col("vocabulary") == "hour")["value"].to_list()
    assert hours == ["0", "1", "2"]
    rates = meta["counts"]["label_rate"]
    assert rates["click"]["train"] == pytest.approx(2 / 3, abs=0.02)
    assert rates["hate"]["train"] == pytest.approx(1 / 3, abs=0.02)


def test_criteo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No header, tabs, empty fields, counts below zero, hexadecimal categories that look like numbers."""
    rows = []
    for n in range(60):
        numbers = ["" if (n + place) % 7 == 0 else str(n * place - 3) for place in range(13)]
        codes = ["" if (n + place) % 11 == 0 else f"{(n % 3) * 16**7 + place:08x}" for place in range(26)]
        rows.append("\t".join([str(int(n % 4 == 0)), *numbers, *codes]))
    (tmp_path / "criteo").mkdir()
    (tmp_path / "criteo" / "train.txt").write_text("\n".join(rows) + "\n")
    meta, tables = prepared("criteo", tmp_path, monkeypatch)
    assert meta["counts"]["rows"] == {"train": 48, "valid": 6, "test": 6}
    assert (meta["num_users"], meta["num_items"], meta["has_time"]) == (1, 1, False)
    events = tables["events"]
    assert events["label:click"].to_list() == [float(n % 4 == 0) for n in range(60)]  # the order of the file
    assert meta["counts"]["missing"]["I1"] == 9
    kept = tables["vocabulary"].filter(pl.col("vocabulary") == "C2")["value"].to_list()
    assert kept == ["00000001", "10000001", "20000001"]


def test_jd_appliances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a loop over sessions: first views, running times, what followed on the page, parts by session."""
    sessions = [
        [
            ((n * step) % 5 + 100, 1 + (n + step) % 10, (n * step) % 5 % 2, step + n % 3, 7 * step)
            for step in range(1, 12)
        ]
        for n in range(1, 1001)
    ]
    text = "\n".join(" ".join("+".join(map(str, step)) for step in session) for session in sessions)
    (tmp_path / "jd-appliances").mkdir()
    (tmp_path / "jd-appliances" / "JD_Applicances_sample").write_text(text + "\n")
    meta, tables = prepared("jd-appliances", tmp_path, monkeypatch)
    want = []
    for number, session in enumerate(sessions, start=1):
        clock, rows = 0, dict[int, dict[str, Any]]()
        for sku, kind, _, pause, _ in session:
            row = rows.setdefault(sku, {"time": 1_000_000 * number + clock, "detail": 0, "cart": 0, "order": 0})
            row["detail"] |= kind in (6, 7, 8)
            row["cart"] |= kind == 9
            row["order"] |= kind == 10
            clock += pause
        part = (number > 800) + (number > 900)
        want += [
            (number, sku, row["time"], part, row["detail"], row["cart"], row["order"]) for sku, row in rows.items()
        ]
    events = tables["events"]
    skus = tables["vocabulary"].filter(pl.col("vocabulary") == "item_id")["value"].to_list()
    columns = ["user", "item", "time", "part", *(f"label:{label}" for label in ("detail", "cart", "order"))]
    got = [(user, int(skus[item - 1]), *rest) for user, item, *rest in events.select(columns).iter_rows()]
    assert sorted(got) == sorted(want)
    assert meta["counts"]["users"] == {"train": 800, "valid": 100, "test": 100}


def test_retailrocket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a pair, at its first behaviour; a test row stands after the user's last one."""
    folder = tmp_path / "retailrocket"
    folder.mkdir()
    views = [(user, item, 1000 * user + 10 * item) for user in range(3) for item in range(20)]
    files = {
        "train_view": views,
        "train_cart": [(0, 3, 35), (0, 4, 30), (1, 50, 1500)],  # after its view, before it, without one
        "train_buy": [(0, 3, 95), (1, 50, 1700), (2, 51, 2900)],
    }
    for name, rows in files.items():
        text = "".join(f"{user}\t{item}\t{time}\n" for user, item, time in rows)
        (folder / f"{name}.tsv").write_text("user\titem\ttimestamp\n" + text)
    (folder / "test_buy.tsv").write_text("user\titem\n" + "".join(f"{user}\t{60 + user}\n" for user in range(3)))
    _, tables = prepared("retailrocket", tmp_path, monkeypatch)
    items = tables["vocabulary"].filter(pl.col("vocabulary") == "item_id")["value"].to_list()
    events = tables["events"].select("user", "item", "time", "part", "label:cart", "label:buy")
    got = {(user - 1, int(items[item - 1])): tuple(rest) for user, item, *rest in events.iter_rows()}
    assert len(got) == len(events) == 60 + 2 + 3
    assert got[0, 3] == (30, 0, 1, 1)
    assert got[0, 4] == (30, 0, 1, 0)
    assert got[0, 5] == (50, 0, 0, 0)
    assert got[1, 50] == (1500, 1, 1, 1)  # the last of the user's training rows
    assert got[2, 51] == (2900, 1, 1, 1)
    assert [got[user, 60 + user] for user in range(3)] == [(191, 2, 1, 1), (1701, 2, 1, 1), (2901, 2, 1, 1)]
