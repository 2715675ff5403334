"""What a delimited file looks like: encoding, separator, header; each guess with its reason."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cascade_kd.errors import UserError

SEPARATORS = ("::", "\t", ",", ";", "|", " ")
HEAD_BYTES = 1 << 18
HEAD_RECORDS = 500
AGREE = 0.9  # the share of records that must have one width

_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?")


@dataclass(frozen=True)
class Dialect:
    """How to read the file. ``columns`` are the header's names, or made up where there is none (``has_header``).

    ``renamed``: the header has names that are empty or repeated, so ``columns`` must stand in the TOML all the same.
    """

    separator: str
    encoding: str
    has_header: bool
    columns: tuple[str, ...]
    renamed: bool
    separator_why: str
    header_why: str

    @property
    def names_columns(self) -> bool:
        """Whether a TOML for the file must list ``columns``."""
        return self.renamed or not self.has_header


def sniff(path: Path) -> Dialect:
    """Guess from the first lines. Raises UserError for a file that is missing, empty or has one column only."""
    if not path.is_file():
        what = f"'{path}' is a folder" if path.is_dir() else f"there is no file '{path}'"
        raise UserError(f"{what}; want a text file of events, one row each")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        whole = not file.read(1)
    if not head.strip():
        raise UserError(f"'{path}' is empty; want a text file of events, one row each")
    if b"\0" in head:
        raise UserError(f"'{path}' is no text file; want csv or the like, in UTF-8 or an 8-bit encoding")
    encoding = _encoding(path)
    text = head.decode(encoding, errors="replace").lstrip("\ufeff").replace("\r\n", "\n")
    if not whole:
        text = text[: text.rfind("\n") + 1]
    widths = {separator: _width(text, separator) for separator in SEPARATORS}
    fitting = {separator: width for separator, width in widths.items() if width[0] >= 2 and width[1] >= AGREE}
    if not fitting:
        first = text.partition("\n")[0][:80]
        tried = ", ".join(repr(separator) for separator in SEPARATORS)
        raise UserError(f"'{path}' has no separator that parts every row alike (tried {tried}); it begins: {first!r}")
    separator = max(fitting, key=lambda name: (name != " ", fitting[name][1] >= 0.99, fitting[name][0]))
    records = _records(text, separator)
    has_header, header_why = _has_header(records)
    names = records[0] if has_header else [f"column_{n}" for n in range(1, len(records[0]) + 1)]
    columns = _distinct(names)
    return Dialect(
        separator=separator,
        encoding=encoding,
        has_header=has_header,
        columns=columns,
        renamed=columns != tuple(names),
        separator_why=f"{fitting[separator][0]} fields in {fitting[separator][1]:.0%} of the first rows",
        header_why=header_why,
    )


def _encoding(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            while file.read(HEAD_BYTES):
                pass
    except UnicodeDecodeError:
        return "iso-8859-1"
    return "utf8"


def _records(text: str, separator: str) -> list[list[str]]:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(separator) > 1:
        return [line.split(separator) for line in lines[:HEAD_RECORDS]]
    return list(islice(csv.reader(lines, delimiter=separator), HEAD_RECORDS))


def _width(text: str, separator: str) -> tuple[int, float]:
    """The number of fields of the first record, and the share of records that have as many."""
    widths = [len(record) for record in _records(text, separator)]
    return widths[0], widths.count(widths[0]) / len(widths)


def _has_header(records: list[list[str]]) -> tuple[bool, str]:
    first, rest = records[0], records[1:]
    typed = [value for value in first if _is_typed(value)]
    if typed:
        return False, f"the first row holds the value {typed[0]!r}"
    for place, name in enumerate(first):
        below = [record[place] for record in rest if place < len(record) and record[place].strip()]
        if below and sum(_is_typed(value) for value in below) >= AGREE * len(below):
            return True, f"numbers or dates stand below {name!r}"
    below_all = {value for record in rest for value in record}
    if len(set(first)) == len(first) and not below_all.intersection(first):
        return True, "no value of the first row comes again"
    return False, "values of the first row come again below it"


def _is_typed(value: str) -> bool:
    value = value.strip()
    try:
        float(value)
    except ValueError:
        return bool(_DATE.fullmatch(value))
    return value.lower() not in ("nan", "inf", "infinity")


def _distinct(names: list[str]) -> tuple[str, ...]:
    """The names, with empty and repeated ones replaced."""
    found: list[str] = []
    for number, name in enumerate(names, start=1):
        base = name if name.strip() else f"column_{number}"
        while base in found:
            base = f"{base}_{number}"
        found.append(base)
    return tuple(found)
