"""Every error that a user can cause, as a tree (floor 0).

CascadeKDError              carries the exit code of the command line
    UserError               2: the input is wrong; the message is all the user needs
        ConfigError         a TOML file: a list of problems, each with file, line and key
        DataError           a table: names table, column and, where it can, the row
        SignalError         a distiller asks a stage for a signal that it does not give
        RunError            a run directory: exists, differs, is incomplete
    ExpectationError        3: the run is good, its figures are outside the expected bands

Whatever else is raised is a bug of ours (exit code 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class CascadeKDError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UserError(CascadeKDError):
    """The user's input is wrong; the message says who, what was got, what is wanted, what to do."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a TOML file: ``file:line: key: message``. ``line`` is 1-based, 0 if unknown."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class ConfigError(UserError):
    """All problems found in the files of one experiment, reported together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(UserError):
    """A table cannot be used; names the table, the column and, where it can, the row (1-based, header excluded)."""

    def __init__(self, message: str, *, table: str = "", column: str = "", row: int | None = None) -> None:
        place = f"table '{table}'" if table else ""
        place += f", column '{column}'" if column else ""
        place += f", row {row}" if row is not None else ""
        super().__init__(f"{place.lstrip(', ')}: {message}" if place else message)


class SignalError(UserError):
    """A distiller needs a signal that the stage does not give."""


class RunError(UserError):
    """A run directory cannot be used as asked."""


class ExpectationError(CascadeKDError):
    """The run finished and its figures lie outside the bands of ``[expected]``."""

    exit_code = 3
