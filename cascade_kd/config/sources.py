"""Values and where they were written: files laid over one another, and ``--set`` on top.

A :class:`Sources` answers for any key path which file and line it came from, so that a problem found after merging
still points at the place to mend.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from cascade_kd.config.lines import MAX_DEPTH, KeyPath
from cascade_kd.config.problems import Fault
from cascade_kd.config.words import choose, show_path
from cascade_kd.errors import Problem


@dataclass(frozen=True)
class Override:
    """One ``--set K=V``: ``path`` as written, its parts all text."""

    text: str
    path: KeyPath
    value: Any

    @property
    def shown(self) -> str:
        """How messages name it."""
        return f"--set {self.text}"


@dataclass(frozen=True)
class Layer:
    """Values from one place. ``base`` is where they stand in their file, ``key`` how messages write that place."""

    shown: str
    data: Mapping[Any, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    base: KeyPath = ()
    key: str = ""

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A problem with the value at ``path``, or at the deepest part of it that was written here."""
        written = self.base + path
        while written and written not in self.lines:
            written = written[:-1]
        key = ".".join(part for part in (self.key, show_path(path, self.data)) if part)
        return Problem(self.shown, self.lines.get(written, 0), key, message)


@dataclass(frozen=True)
class OverrideLayer:
    """The value of one ``--set``, as a nested table so that it can be looked up like a file's."""

    override: Override
    path: KeyPath  # relative to the table that the sources describe
    data: Mapping[Any, Any]

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A problem with the override; the key is given only where it lies deeper than what was set."""
        key = show_path(path) if len(path) > len(self.path) else ""
        return Problem(self.override.shown, 0, key, message)


@dataclass(frozen=True)
class Sources:
    """Layers of one table, the one that wins first."""

    layers: tuple[Layer | OverrideLayer, ...]

    def problem(self, fault: Fault) -> Problem:
        """The fault with the file and line of the layer that its value came from.

        A missing key is asked of the lowest layer that has the table around it: the file that should be complete.
        """
        for depth in range(len(fault.path), -1, -1):
            owners = self._owners(fault.path[:depth])
            if depth < len(fault.path):  # written nowhere: files first, an override may have nothing to do with it
                owners.sort(key=lambda owner: isinstance(owner, OverrideLayer))
            if owners:
                files = [owner for owner in owners if isinstance(owner, Layer)]
                owner = files[-1] if fault.missing and files else owners[0]
                return owner.problem(fault.path, fault.message)
        raise AssertionError("the last layer has the empty path")

    def _owners(self, path: KeyPath) -> list[Layer | OverrideLayer]:
        """The layers that the value at ``path`` came from, highest first: several for a table, one otherwise."""
        owners: list[Layer | OverrideLayer] = []
        for layer in self.layers:
            there, hides = _look_up(layer.data, path)
            if there:
                owners.append(layer)
            if hides or (isinstance(layer, OverrideLayer) and path[: len(layer.path)] == layer.path):
                break
        return owners


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, table by table; a list replaces a list."""
    merged = deepcopy(dict(base))
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if both else deepcopy(value)  # type: ignore[arg-type]
    return merged


def parse_override(text: str) -> Override | Problem:
    """Read ``key.path=value``; the value is TOML, and text that is not is taken as a string."""
    key, equals, value = _split(text)
    shown = f"--set {text}"
    if not equals:
        return Problem(shown, 0, "", "want KEY=VALUE, as in stage.prerank.keep=100")
    path = _path_of(key)
    if not path or len(path) > MAX_DEPTH:
        return Problem(shown, 0, "", f"'{key.strip()}' is no key; want names joined by dots")
    return Override(text, path, _value_of(value.strip()))


def apply_override(data: dict[str, Any], override: Override, path: KeyPath) -> OverrideLayer | Problem:
    """Set the value at ``path`` in place, making tables where there are none. Places of lists count from 0."""
    node: Any = data
    real: list[str | int] = []
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(node, list):
            place = _place(node, part)
            if place is None:
                have = f"it has the places 0 to {len(node) - 1}" if node else "it is empty"
                message = f"'{show_path(path[:depth])}' is a list and '{part}' none of its places; {have}"
                return Problem(override.shown, 0, "", message)
            part = place
        elif not isinstance(node, dict):
            return Problem(override.shown, 0, "", f"'{show_path(path[:depth])}' is a value and has no keys")
        real.append(part)
        if last:
            node[part] = deepcopy(override.value)
        elif isinstance(node, dict):
            node = node.setdefault(str(part), {})
        else:
            node = node[part]
    nested: Any = override.value
    for part in reversed(real):
        nested = {part: nested}
    return OverrideLayer(override, tuple(real), nested)


def entry_of(override: Override, names: Sequence[str]) -> int | Problem:
    """The place of the stage that ``stage.NAME.key=…`` means, or of the teacher that ``teacher.NAME.key=…`` does."""
    table = override.path[0]
    if len(override.path) < 3:
        example = "stage.prerank.keep=100" if table == "stage" else "teacher.big.copies=3"
        return Problem(override.shown, 0, "", f"want {table}.NAME.KEY=VALUE, as in {example}")
    name = str(override.path[1])
    if name in names:
        return list(names).index(name)
    message = f"no {table} is named '{name}'{choose(name, names)}"
    return Problem(override.shown, 0, "", message)


def _look_up(data: Any, path: KeyPath) -> tuple[bool, bool]:
    """Whether ``data`` has the path, and whether it hides the lower layers' values there (only tables merge)."""
    inside_list = False
    for part in path:
        if isinstance(data, Mapping):
            if part not in data:
                return False, inside_list
            data = data[part]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            inside_list, data = True, data[part]
        else:
            return False, True
    return True, inside_list or not isinstance(data, Mapping)


def _place(values: list[Any], part: str | int) -> int | None:
    place = int(part) if str(part).isdecimal() else -1
    return place if 0 <= place < len(values) else None


def _split(text: str) -> tuple[str, str, str]:
    """At the first equals sign outside quotes."""
    quote = ""
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "=":
            return text[:at], "=", text[at + 1 :]
    return text, "", ""


def _path_of(key: str) -> KeyPath:
    """A dotted TOML key as a path, () if it is none. Bare ``recall@10``, which TOML wants quoted, is let through."""
    try:
        nested: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        parts = tuple(part.strip() for part in key.split("."))
        return parts if all(parts) and not re.search(r"[\"'\s\[\]{}#]", "".join(parts)) else ()
    path: KeyPath = ()
    while isinstance(nested, dict):
        if len(nested) != 1:
            return ()
        path = (*path, *nested)
        nested = nested[path[-1]]
    return path


def _value_of(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"v = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["v"] if list(parsed) == ["v"] else text
