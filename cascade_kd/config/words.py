"""Words for messages: near names, lists of names, values and key paths as a TOML writes them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cascade_kd.config.lines import KeyPath

LISTED = 12  # longer lists of allowed keys or names are cut

_DATE = "__date__"


def suggest(word: str, options: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest option, or nothing."""
    near = difflib.get_close_matches(word.lower().replace("_", "-"), plain := _plain(options), n=1, cutoff=0.6)
    return f"; did you mean '{plain[near[0]]}'?" if near else ""


def choose(word: str, options: Collection[str]) -> str:
    """What to write instead of ``word``: the nearest option, and all of them."""
    near = suggest(word, options)
    return f"{near}{' There' if near else '; there'} are: {listing(options)}"


def listing(options: Collection[str]) -> str:
    """The options, quoted and comma-separated; a long list is cut."""
    shown = ", ".join(f"'{option}'" for option in list(options)[:LISTED])
    more = len(options) - LISTED
    return f"{shown} and {more} more" if more > 0 else shown or "none"


def marked(value: object) -> dict[str, str]:
    """A date or time, which JSON lacks, as a table that no key wants and :func:`show` knows."""
    return {_DATE: str(value)}


def show(value: object) -> str:
    """A value as it is written in TOML, shortened; tables and lists by their kind where they are long."""
    if isinstance(value, Mapping):
        return str(value.get(_DATE, "a table"))
    text = json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, list) and len(text) > 60:
        return f"a list of {len(value)}"
    return text if len(text) <= 60 else text[:57] + "..."


def show_path(path: KeyPath, data: object = None) -> str:
    """Key path as text; a list entry that has a name is shown by it: ``stage.prerank.keep``."""
    parts: list[str] = []
    for part in path:
        data = step(data, part)
        name = data.get("name") if isinstance(part, int) and isinstance(data, dict) else None
        text = name if isinstance(name, str) and name else str(part)
        parts.append(text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else json.dumps(text, ensure_ascii=False))
    return ".".join(parts)


def step(data: object, part: str | int) -> Any:
    """What stands under a key or a list place, None if nothing does."""
    if isinstance(data, Mapping):
        return data.get(part)
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return None


def _plain(options: Iterable[str]) -> dict[str, str]:
    return {option.lower().replace("_", "-"): option for option in options}
