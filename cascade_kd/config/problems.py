"""What pydantic found wrong, in plain words: a key path and a message that says what is wanted and what was got."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from cascade_kd.config.lines import KeyPath
from cascade_kd.config.words import LISTED, listing, marked, show, step, suggest

M = TypeVar("M", bound=BaseModel)

_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text in quotes",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_BOUNDS = {"greater_than": ("gt", ">"), "greater_than_equal": ("ge", ">="), "less_than": ("lt", "<")}
_BOUNDS |= {"less_than_equal": ("le", "<="), "multiple_of": ("multiple_of", "a multiple of")}
_CORE_ERRORS = frozenset(get_args(ErrorType))
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'")


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a value: where it stands (relative to what was checked) and what to write instead.

    ``missing`` marks a key that is required and absent: its path exists in no file.
    """

    path: KeyPath
    message: str
    missing: bool = False


def validate(model: type[M], data: Mapping[str, Any]) -> tuple[M | None, list[Fault]]:
    """The validated object, or None and all faults. Types are strict: "200" is no number and 1.0 no whole number."""
    try:
        text = json.dumps(data, default=marked)  # JSON mode: strict about types, but a list may become a tuple
        return model.model_validate_json(text, strict=True, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, _faults(error.errors(include_url=False), model, data)


def salvage(
    model: type[M], data: Mapping[str, Any], *, fill: Mapping[str, Any] | None = None
) -> tuple[M | None, list[Fault]]:
    """As :func:`validate`, but the object is built of what is right, so that later checks can say more at once.

    Wrong keys are dropped until the rest is valid. ``fill`` stands in for required keys that are missing or wrong;
    None where another required key stands in the way.
    """
    found, faults = validate(model, data)
    rest: Any = deepcopy(dict(data))
    wrong = faults
    while found is None:
        paths = {_droppable(rest, fault) for fault in wrong} - {()}
        for path in sorted(paths, key=_last_first):
            _drop(rest, path)
        filled = {**(fill or {}), **rest}
        if not paths and filled == rest:
            return None, faults
        rest = filled
        found, wrong = validate(model, rest)
    return found, faults


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys that a table of this model may hold, as the file writes them."""
    return [_written(name, field) for name, field in model.model_fields.items()]


def _written(name: str, field: FieldInfo) -> str:
    return field.validation_alias if isinstance(field.validation_alias, str) else name


def _faults(errors: list[ErrorDetails], model: type[BaseModel], data: Mapping[str, Any]) -> list[Fault]:
    """One fault a place. What another fault deeper inside explains is left out: branches of a union, short lists."""
    groups: dict[KeyPath, list[ErrorDetails]] = {}
    branched: set[KeyPath] = set()
    for error in errors:
        if error["type"] == "default_factory_not_called":  # only says that another key is wrong
            continue
        path = _clean(error["loc"], model, data)
        if len(path) < len(error["loc"]) or error["type"] == "too_short":  # entries that are wrong do not count
            branched.add(path)
        groups.setdefault(path, []).append(error)
    return [
        _fault(path, group, model)
        for path, group in groups.items()
        if not (path in branched and any(other[: len(path)] == path for other in groups if other != path))
    ]


def _clean(loc: tuple[str | int, ...], model: type[BaseModel], data: object) -> KeyPath:
    """pydantic's place without its marks for the branches of a union."""
    path: KeyPath = ()
    for part in loc:
        inside = step(data, part)
        known = {key for found in _models_at(model, path) for key in keys_of(found)}
        if inside is not None or part in known:
            path, data = (*path, part), inside
    return path


def _fault(path: KeyPath, group: list[ErrorDetails], model: type[BaseModel]) -> Fault:
    first = group[0]
    kind = first["type"]
    if kind == "extra_forbidden":
        return Fault(path, _unknown_key(str(path[-1]), _models_at(model, path[:-1])))
    if kind == "missing":
        return Fault(path, "required key is missing" + _meaning(path, model), missing=True)
    said = [error for error in group if error["type"] == "value_error" or error["type"] not in _CORE_ERRORS]
    if said:  # our own words, from a validator
        context = said[0].get("ctx", {})
        return Fault(path, str(context.get("error", said[0]["msg"])))
    wants = list(dict.fromkeys(_want(error) for error in group))
    got = first["input"]
    choices = [name for error in group if error["type"] == "literal_error" for name in _choices(error)]
    hint = suggest(got, choices) if isinstance(got, str) else ""
    if isinstance(got, Mapping) and wants == ["a list"]:
        hint = f"; a list of tables is written [[{path[-1]}]], with two brackets"
    return Fault(path, f"want {' or '.join(wants)}, got {show(got)}{hint}")


def _want(error: ErrorDetails) -> str:
    kind = error["type"]
    context = error.get("ctx", {})
    if kind in _WANTED:
        return _WANTED[kind]
    if kind in _BOUNDS:
        key, sign = _BOUNDS[kind]
        return f"a number {sign} {context[key]:g}"
    if kind == "literal_error":
        choices = _choices(error)
        return f"'{choices[0]}'" if len(choices) == 1 else f"one of {listing(choices)}"
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        num = context["min_length" if least else "max_length"]
        return f"{'at least' if least else 'at most'} {num} {'entry' if num == 1 else 'entries'}"
    if kind == "string_pattern_mismatch":
        return f"text of the form {context['pattern']}"
    if kind == "string_too_short":
        return "text that is not empty"
    return error["msg"][:1].lower() + error["msg"][1:]


def _choices(error: ErrorDetails) -> list[str]:
    return _QUOTED.findall(str(error.get("ctx", {}).get("expected", "")))


def _unknown_key(key: str, models: list[type[BaseModel]]) -> str:
    known = [name for model in models for name in keys_of(model)]
    hint = suggest(key, known)
    if not hint:  # perhaps it belongs into a table below
        below = [f"{n}.{key}" for m in models for n in keys_of(m) for sub in _models_at(m, (n,)) if key in keys_of(sub)]
        hint = f"; did you mean '{below[0]}'?" if below else ""
    listed = f"{' Known' if hint else '; known'} keys: {listing(known)}" if not hint or len(known) <= LISTED else ""
    return f"unknown key{hint}{listed}"


def _meaning(path: KeyPath, model: type[BaseModel]) -> str:
    """What the missing key is for: the first sentence of its description."""
    for found in _models_at(model, path[:-1]):
        for name, field in found.model_fields.items():
            if _written(name, field) == path[-1] and field.description:
                sentence = re.split(r"(?<=\.)\s", field.description)[0].rstrip(".").replace("`", "")
                return f": {sentence[:1].lower()}{sentence[1:]}"
    return ""


def _models_at(model: type[BaseModel], path: KeyPath) -> list[type[BaseModel]]:
    """The models that may stand at a path; none where the path leads into free tables."""
    found: list[Any] = [model]
    for part in path:
        found = [inner for annotation in found for inner in _inside(annotation, part)]
    return [annotation for annotation in found if _is_model(annotation)]


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _inside(annotation: Any, part: str | int) -> list[Any]:
    """The annotations one step inside; unions are opened."""
    if _is_model(annotation):
        fields = annotation.model_fields.items()
        return [leaf for name, field in fields if _written(name, field) == part for leaf in _leaves(field.annotation)]
    args = get_args(annotation)
    return _leaves(args[-1] if args[-1] is not Ellipsis else args[0]) if args else []


def _leaves(annotation: Any) -> list[Any]:
    """The members of a union, annotations stripped; containers stay whole."""
    origin = getattr(annotation, "__origin__", None)
    if hasattr(annotation, "__metadata__"):
        return _leaves(origin)
    if (origin is None and get_args(annotation)) or str(origin) == "typing.Union":
        return [leaf for member in get_args(annotation) for leaf in _leaves(member)]
    return [annotation]


def _droppable(data: object, fault: Fault) -> KeyPath:
    """The deepest part of a fault's path that stands in the data; the table around it where a key is missing."""
    path: KeyPath = ()
    for part in fault.path:
        data = step(data, part)
        if data is None:
            break
        path = (*path, part)
    return path


def _last_first(path: KeyPath) -> tuple[int, list[tuple[bool, int, str]]]:
    """Sort key: deep paths first, and of a list the later places first, so that a drop moves no other path."""
    return -len(path), [(isinstance(p, str), -p if isinstance(p, int) else 0, str(p)) for p in path]


def _drop(data: Any, path: KeyPath) -> None:
    for part in path[:-1]:
        data = data[part]
    del data[path[-1]]
