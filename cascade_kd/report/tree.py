"""Trees of metrics: nested dicts whose leaves are metrics.

A leaf is a dict with a number (or None) under "mean", or a plain number or None (``recovery``). Order is kept
everywhere: a tree is written in the order in which it was built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

Tree = Mapping[str, Any]
NOT_FINITE = {True: "not a number", False: "infinite"}  # keyed by isnan


def is_leaf(node: object) -> bool:
    """Whether ``node`` is a metric: a dict with a number or None under "mean", or itself a number or None.

    A stage that is called "mean" is no leaf, since a dict stands under its name.
    """
    if isinstance(node, Mapping):
        return "mean" in node and not isinstance(node["mean"], Mapping)
    return not isinstance(node, (Sequence, str))


def leaf_mean(leaf: Any) -> float | None:
    """The value of a leaf, None when it is missing or not finite."""
    value = leaf.get("mean") if isinstance(leaf, Mapping) else leaf
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def lookup(tree: Any, *keys: str) -> Any:
    """The node under ``keys``, None when there is none."""
    for key in keys:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def leaves(tree: Tree, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every (path, leaf) of a tree, depth first, in order."""
    for key, node in tree.items():
        if is_leaf(node):
            yield (*prefix, key), node
        elif isinstance(node, Mapping):
            yield from leaves(node, (*prefix, key))


def summarise(trees: Sequence[Tree]) -> dict[str, Any]:
    """One tree over seeds: {"mean", "sd", "seeds"} at every leaf.

    ``sd`` is the sample standard deviation (n - 1), null for one seed. A leaf that some seeds lack, or have as null,
    is averaged over those that have it, and "seeds" counts them; with none left, "mean" is null with the "why" of
    the first seed that gives one.
    """
    keys = dict.fromkeys(key for tree in trees for key in tree)
    summary: dict[str, Any] = {}
    for key in keys:
        nodes = [tree[key] for tree in trees if key in tree]
        branches = [node for node in nodes if isinstance(node, Mapping) and not is_leaf(node)]
        if branches:
            summary[key] = summarise(branches)
        elif is_leaf(nodes[0]):
            summary[key] = summarise_leaf(nodes)
    return summary


def summarise_leaf(nodes: Sequence[Any]) -> dict[str, Any]:
    """{"mean", "sd", "seeds"} of one metric over seeds; see :func:`summarise`."""
    values = [value for value in map(leaf_mean, nodes) if value is not None]
    if not values:
        reasons = [node["why"] for node in map(jsonable, nodes) if isinstance(node, Mapping) and "why" in node]
        return {"mean": None, "sd": None, "seeds": 0, "why": reasons[0] if reasons else "no seed has a value"}
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return {"mean": mean, "sd": None, "seeds": 1}
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return {"mean": mean, "sd": math.sqrt(variance), "seeds": len(values)}


def jsonable(node: Any) -> Any:
    """The same tree of JSON types only: NumPy numbers become Python's, NaN and infinities null.

    A metric whose mean or standard error was not finite gets a "why" unless it brings one. Raises TypeError on a
    value that JSON does not know.
    """
    if isinstance(node, Mapping):
        clean = {str(key): jsonable(value) for key, value in node.items()}
        if is_leaf(node) and "why" not in clean:
            if clean["mean"] is None:
                clean["why"] = _reason(node["mean"])
            elif "stderr" in clean and clean["stderr"] is None and node["stderr"] is not None:
                clean["why"] = f"standard error: {_reason(node['stderr'])}"
        return clean
    if isinstance(node, (list, tuple)):
        return [jsonable(value) for value in node]
    if node is None or isinstance(node, (str, bool)):
        return node
    if isinstance(node, Integral):
        return int(node)
    if isinstance(node, Real):
        return float(node) if math.isfinite(node) else None
    raise TypeError(f"a report holds numbers, text, lists and dicts; got {type(node).__name__}")


def _reason(value: Any) -> str:
    return NOT_FINITE[math.isnan(value)] if isinstance(value, Real) else "not given"
