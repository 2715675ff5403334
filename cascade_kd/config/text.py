"""TOML text with comments, written line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tomlkit


def line(key: str, value: str, why: str) -> str:
    """``key = value  # why``, the comments of short lines below one another."""
    return f"{f'{key} = {toml(value)}':31s} # {plain(why)}"


def toml(value: str | list[str]) -> str:
    """A value as TOML writes it."""
    return tomlkit.item(value).as_string()


def plain(text: str) -> str:
    """Text that may stand in a comment: on one line, without control characters."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)


def slug(text: str) -> str:
    """A name for a TOML: letters, digits, - and _, in lower case."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", text)
    return re.sub(r"[^a-z0-9-]+", "_", words.lower()).strip("_-")


def free(name: str, taken: set[str]) -> str:
    """The name, with a number behind it if it is taken; it is taken then."""
    chosen = next(option for option in _numbered(name) if option not in taken)
    taken.add(chosen)
    return chosen


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1
