"""Where every key of a TOML text stands: a small index key path -> line, and reading a file with it.

A path is a tuple of keys and list places: ``("stage", 0, "model", "hidden")``. The scanner assumes a text that
tomllib has accepted; it decides nothing but positions.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from cascade_kd.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]

MAX_DEPTH = 100  # what checks and copies values goes down by recursion

_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # what a terminal should not get
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^\s,\]}#]+(?: \d[^\s,\]}#]*)?")  # a date and its time may be parted by a space


@dataclass(frozen=True)
class Document:
    """A TOML file as read: its data, and the line (1-based) of every key path. ``shown`` is its name in messages."""

    path: Path
    shown: str
    data: dict[str, Any]
    lines: dict[KeyPath, int]


def read_document(path: Path) -> Document:
    """Read a TOML file (UTF-8, a byte order mark is skipped). Raises ConfigError with file and line."""
    shown = shown_path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError([Problem(shown, 0, "", f"cannot be read: {error.strerror or error}")]) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(shown, line, "", "not UTF-8 text; save the file as UTF-8")]) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_problem(shown, text, str(error))]) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, hundreds of nested brackets
        raise ConfigError([Problem(shown, 0, "", f"cannot be read: {error}")]) from error
    lines = line_index(text)
    for key, line in lines.items():
        if len(key) > MAX_DEPTH:
            raise ConfigError([Problem(shown, line, "", f"lists or tables are nested more than {MAX_DEPTH} deep")])
    return Document(path, shown, data, lines)


def shown_path(path: Path) -> str:
    """The path as messages print it: relative to the working directory where it lies inside."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def line_index(text: str) -> dict[KeyPath, int]:
    """Line of every table, list entry and key. A table's own header wins over an earlier mention in another header."""
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.lines


def _syntax_problem(shown: str, text: str, message: str) -> Problem:
    """tomllib's message, its position moved to the front, the line itself behind it."""
    rows = text.splitlines() or [""]
    found = _AT.search(message)
    line = int(found[1]) if found and found[1] else len(rows)
    column = f" (column {found[2]})" if found and found[2] else " at the end of the file"
    row = _CONTROL.sub("\ufffd", rows[min(line, len(rows)) - 1].strip())
    return Problem(shown, line, "", f"not TOML: {message[: found.start()] if found else message}{column}: {row[:80]}")


@final
class _Scanner:
    """One pass over the text with a cursor; ``lines`` is the result."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.line = 1
        self.lines: dict[KeyPath, int] = {}
        self.counts: dict[KeyPath, int] = {}  # arrays of tables: entries so far

    def scan(self) -> None:
        """Read statements to the end of the text."""
        table: KeyPath = ()
        while self._skip_blank():
            if self.text.startswith("[[", self.at):
                table = self._array_header()
            elif self.text[self.at] == "[":
                table = self._header()
            else:
                self._key_value(table)

    def _skip_blank(self) -> bool:
        """Move over white space, newlines and comments; False at the end."""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif char == "\n":
                self.line += 1
                self.at += 1
            elif char.isspace():
                self.at += 1
            else:
                return True
        return False

    def _header(self) -> KeyPath:
        line, self.at = self.line, self.at + 1
        path = self._resolve(self._key())
        self.at += 1  # ]
        self._mention(path, line)
        self.lines[path] = line
        return path

    def _array_header(self) -> KeyPath:
        line, self.at = self.line, self.at + 2
        *parents, last = self._key()
        self._skip_space()
        self.at += 2  # ]]
        array = (*self._resolve(parents), last)
        self._mention(array, line)
        path = (*array, self.counts.get(array, 0))
        self.counts[array] = path[-1] + 1  # type: ignore[operator]
        self.lines[path] = line
        return path

    def _resolve(self, keys: list[str]) -> KeyPath:
        """Header keys to a path: a key that names an array of tables means its last entry."""
        path: KeyPath = ()
        for key in keys:
            path = (*path, key)
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        return path

    def _mention(self, path: KeyPath, line: int) -> None:
        for depth in range(1, len(path) + 1):
            self.lines.setdefault(path[:depth], line)

    def _key_value(self, table: KeyPath) -> None:
        path = (*table, *self._key())
        self._mention(path, self.line)
        self.at += 1  # =
        self._value(path)

    def _key(self) -> list[str]:
        """A dotted key; the cursor stops at what follows it."""
        keys: list[str] = []
        while True:
            self._skip_space()
            if self.text[self.at] in "\"'":
                start = self.at
                self._string()
                keys.append(tomllib.loads(f"k = {self.text[start : self.at]}")["k"])
            else:
                bare = _BARE.match(self.text, self.at)
                assert bare, f"a key was expected at line {self.line}"
                keys.append(bare[0])
                self.at = bare.end()
            self._skip_space()
            if self.text[self.at] != ".":
                return keys
            self.at += 1

    def _skip_space(self) -> None:
        while self.text[self.at] in " \t":
            self.at += 1

    def _value(self, path: KeyPath) -> None:
        self._skip_space()
        char = self.text[self.at]
        if char in "\"'":
            self._string()
        elif char == "[":
            self._array(path)
        elif char == "{":
            self._inline_table(path)
        else:
            scalar = _SCALAR.match(self.text, self.at)
            assert scalar, f"a value was expected at line {self.line}"
            self.at = scalar.end()

    def _array(self, path: KeyPath) -> None:
        self.at += 1
        place = 0
        while self._skip_blank() and self.text[self.at] != "]":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self.lines[(*path, place)] = self.line
            self._value((*path, place))
            place += 1
        self.at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        while self._skip_blank() and self.text[self.at] != "}":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self._key_value(path)
        self.at += 1

    def _string(self) -> None:
        """Move over a string of any of the four kinds."""
        quote = self.text[self.at]
        long = self.text.startswith(quote * 3, self.at)
        end = quote * 3 if long else quote
        self.at += len(end)
        while not self.text.startswith(end, self.at):
            if self.text[self.at] == "\\" and quote == '"':
                self.at += 1
            if self.text[self.at] == "\n":
                self.line += 1
            self.at += 1
        self.at += len(end)
        for _ in range(2):  # a long string may end in one or two quotes of its own
            if long and self.text.startswith(quote, self.at):
                self.at += 1
