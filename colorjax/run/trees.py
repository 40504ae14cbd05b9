"""Trees of arrays by path: flattened, nested, compared strictly, and grafted onto one another; their checksum."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from colorjax.data.errors import first_few, one_line
from colorjax.model.program import Tree


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict keyed by paths with dots, `low_level.layers.0.conv.kernel`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def nest(flat: Mapping[str, Any]) -> Tree:
    """The inverse of `flatten`."""
    tree: Tree = {}
    for path, value in flat.items():
        *folders, last = path.split(".")
        node = tree
        for name in folders:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def checksum(flat: Mapping[str, Any]) -> str:
    """The SHA-256 of arrays by name: of names, shapes and values in float32, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(flat):
        array = np.ascontiguousarray(flat[name], "<f4")
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array)
    return digest.hexdigest()


def require_same_shapes(model: Mapping[str, Any], given: Mapping[str, Any], *, message: str) -> None:
    """Refuses arrays that are not exactly a model's, since a load that skips keys would go unnoticed.

    Args:
        model: path -> array, or anything with a shape, of the model.
        given: path -> the same of a checkpoint or a file.
        message: what does not fit, the beginning of the error.

    Raises:
        ValueError: if a path is missing on either side or a shape differs; lists the first of each.
    """
    missing, surplus = sorted(model.keys() - given.keys()), sorted(given.keys() - model.keys())
    differing = [
        f"{path} (model {np.shape(model[path])}, given {np.shape(given[path])})"
        for path in sorted(model.keys() & given.keys())
        if np.shape(model[path]) != np.shape(given[path])
    ]
    kinds = {"missing": missing, "not in the model": surplus, "of another shape": differing}
    if any(kinds.values()):
        listed = "; ".join(f"{kind}: {first_few(paths)}" for kind, paths in kinds.items() if paths)
        raise ValueError(f"{message}; {one_line(listed, limit=180)}")


def graft(target: Tree, source: Tree, *, networks: Sequence[str], what: str, keep: Sequence[str] = ()) -> Tree:
    """`target` with the networks of `source` in their places, compared strictly.

    Args:
        target: a model's parameters, or its statistics.
        source: the same of a pretrained model.
        networks: names of top-level subtrees. A network without leaves (no statistics) may be absent from both.
        what: "parameters" or "statistics", for the error.
        keep: paths of layers, `global_features.dense3`, that stay the target's own.

    Raises:
        ValueError: if a path is missing on either side or a shape differs.
    """

    def grafted(tree: Tree) -> dict[str, Any]:
        flat = flatten({name: tree[name] for name in networks if name in tree})
        return {path: x for path, x in flat.items() if not path.startswith(tuple(f"{layer}." for layer in keep))}

    given = grafted(source)
    require_same_shapes(
        grafted(target),
        given,
        message=f"the pretrained {what} do not fit the model; were both stages configured alike?",
    )
    return nest(flatten(target) | given)
