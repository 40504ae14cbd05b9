"""Tensor files that any program can read: safetensors, safetensors in shards, and npz.

    model.safetensors   every tensor; model-00001-of-00002.safetensors and so on, with
                        model.safetensors.index.json, where a size limit divides it; or model.npz

A tensor's key is its path with dots, `params.low_level.layers.0.conv.kernel` or `stats.…`; `step` counts the joint
stage's steps. Every tensor has a CRC-32: in the metadata of a safetensors file under `crc32`, in an npz by its format.
A safetensors file without them is loaded unchecked.
"""

import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from colorjax.data.errors import first_few, one_line
from colorjax.model.program import Tree
from colorjax.run import trees

SAFETENSORS, INDEX, NPZ = "model.safetensors", "model.safetensors.index.json", "model.npz"
FILES = f"{SAFETENSORS}, {INDEX} or {NPZ}"
_DTYPES = ("float32", "bfloat16", "float16")
# NumPy's own format has no bfloat16.
_FORMATS = {"safetensors": _DTYPES, "npz": ("float32", "float16")}
MAX_SHARD_SIZE = 5_000_000_000
"""Default limit of a safetensors file in bytes: as the Hugging Face Hub likes them."""

Tensors = dict[str, np.ndarray]
"""Tensors by their keys in the files."""


def is_portable(path: Path) -> bool:
    """Whether a folder holds the tensors of a portable one."""
    return any((path / name).exists() for name in (SAFETENSORS, INDEX, NPZ))


def files(folder: Path) -> list[Path]:
    """The files of tensors in a folder, without an index, in the order of their names."""
    return sorted((*folder.glob("model*.safetensors"), *folder.glob(NPZ)))


def check_options(*, format: str, dtype: str, max_shard_size: int) -> None:
    """Refuses options that `write_tensors` cannot serve.

    Raises:
        ValueError: for an unknown format or dtype, or a size below 1.
    """
    if format not in _FORMATS:
        raise ValueError(f"format is {format!r}; it must be {' or '.join(_FORMATS)}")
    if dtype not in _FORMATS[format]:
        raise ValueError(f"dtype is {dtype!r}; a tensor in {format} can be {', '.join(_FORMATS[format])}")
    if max_shard_size < 1:
        raise ValueError(f"max_shard_size is {max_shard_size}; it is a number of bytes, 1 or more")


def write_tensors(
    folder: Path, params: Tree, stats: Tree, step: int, *, format: str, dtype: str, max_shard_size: int
) -> None:
    """Writes a model's tensors into a folder.

    Args:
        folder: must exist.
        params, stats: arrays by network and layer.
        step: of the joint stage.
        format, dtype, max_shard_size: as `check_options` accepts them.

    Raises:
        ValueError: for a value that the dtype cannot hold.
    """
    tensors = _rounded(params, stats, dtype) | {"step": np.asarray(step, np.int32)}
    if format == "npz":
        with (folder / NPZ).open("wb") as file:
            np.savez(file, allow_pickle=False, **tensors)
    else:
        _write_safetensors(folder, tensors, max_shard_size)


def read_tensors(folder: Path) -> tuple[Path, Tensors]:
    """The file or index in a folder, and its tensors.

    Raises:
        FileNotFoundError: if a shard is missing.
        ValueError: if a file is damaged or foreign, or there are two models.
    """
    readers = {SAFETENSORS: _read_safetensors, INDEX: _read_shards, NPZ: _read_npz}
    found = [name for name in readers if (folder / name).exists()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(found)}, each a whole model: delete all but one")
    path = folder / found[0]
    return path, readers[path.name](path)


def to_trees(tensors: Tensors, params: Tree, stats: Tree, *, path: Path) -> tuple[int, Tree, Tree]:
    """The step, parameters and statistics in tensors, float32, compared strictly with a model's.

    Args:
        tensors: of `read_tensors`.
        params, stats: of the model, arrays or shapes.
        path: of the file, for errors.

    Raises:
        ValueError: if they are not the model's.
    """
    expected = trees.flatten({"params": params, "stats": stats}) | {"step": np.zeros((), np.int32)}
    trees.require_same_shapes(
        expected, tensors, message=f"{path} does not fit the model that config.json and classes.json describe"
    )
    for key, x in tensors.items():
        if key == "step" and np.issubdtype(x.dtype, np.integer):
            continue
        if key == "step" or x.dtype.name not in _DTYPES:
            raise ValueError(f"{path}: {key} is {x.dtype}; tensors are {', '.join(_DTYPES)}, and step a whole number")
        if not np.isfinite(x.astype(np.float32, copy=False)).all():
            raise ValueError(f"{path}: {key} holds values that are not finite; fetch or export it again")
    tree = trees.nest({key: x.astype(np.float32, copy=False) for key, x in tensors.items() if key != "step"})
    return int(tensors["step"]), tree["params"], tree.get("stats", {})


def _rounded(params: Tree, stats: Tree, dtype: str) -> Tensors:
    rounded = {}
    for key, x in trees.flatten({"params": params, "stats": stats}).items():
        # In C order, since safetensors writes the memory as it lies.
        with np.errstate(over="ignore"):
            rounded[key] = np.array(x, order="C").astype(jnp.dtype(dtype))
        if not np.isfinite(rounded[key].astype(np.float32)).all():
            raise ValueError(f"{key} reaches {np.abs(x).max():g}, which {dtype} cannot hold: take dtype=bfloat16")
    return rounded


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("this folder's format needs a package: pip install safetensors") from error
    return safetensors


def _write_safetensors(folder: Path, tensors: Tensors, max_shard_size: int) -> None:
    save_file = _safetensors().numpy.save_file
    shards: list[Tensors] = [{}]
    size = 0
    for key, x in tensors.items():
        if shards[-1] and size + x.nbytes > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][key] = x
        size += x.nbytes
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [SAFETENSORS]
    else:
        index = {
            "metadata": {"total_size": sum(x.nbytes for x in tensors.values())},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for name, shard in zip(names, shards, strict=True):
        checksums = {key: _crc32(x) for key, x in shard.items()}
        save_file(shard, folder / name, metadata={"format": "flax", "crc32": json.dumps(checksums)})
        # The library's files are for their owner alone.
        (folder / name).chmod(folder.stat().st_mode & 0o666)


def _read_safetensors(path: Path) -> Tensors:
    library = _safetensors()
    try:
        with library.safe_open(path, framework="np") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            checksums = json.loads((file.metadata() or {}).get("crc32", "null"))
    except Exception as error:  # of the types that the library raises for foreign bytes, it exports one
        raise ValueError(f"{path} is truncated, damaged or no safetensors file ({one_line(error)})") from error
    if checksums is not None:
        checksums = checksums if isinstance(checksums, dict) else {}
        wrong = [key for key, x in tensors.items() if checksums.get(key) != _crc32(x)]
        if wrong:
            raise ValueError(
                f"{path} is damaged: {first_few(wrong)} differs from its checksum; fetch or export it again"
            )
    return tensors


def _crc32(x: np.ndarray) -> int:
    return zlib.crc32(x.reshape(-1).view(np.uint8))


def _read_shards(path: Path) -> Tensors:
    try:
        index: Any = json.loads(path.read_text())
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({one_line(error)})") from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    # A name with a folder in it would read files from elsewhere.
    if not isinstance(places, dict) or not all(map(_is_file_name, places.values())):
        raise ValueError(f"{path} is no index of safetensors files: its weight_map must name a file for each tensor")
    tensors: Tensors = {}
    for name in sorted(set(places.values())):
        shard = path.parent / name
        if not shard.exists():
            raise FileNotFoundError(f"{shard} is missing, which the index names: fetch or export the folder again")
        read = _read_safetensors(shard)
        if read.keys() != (named := {key for key, place in places.items() if place == name}):
            raise ValueError(
                f"{shard} and {path.name} disagree on where {first_few(sorted(read.keys() ^ named))} should be"
            )
        tensors |= read
    return tensors


def _read_npz(path: Path) -> Tensors:
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file):  # else NumPy would take a bare array as well
                pass
            with np.load(file, allow_pickle=False) as arrays:
                return {key: np.asarray(arrays[key]) for key in arrays.files}
    except Exception as error:  # for damaged headers NumPy and zipfile raise errors of many types
        raise ValueError(f"{path} is truncated, damaged or no .npz of plain arrays ({one_line(error)})") from error


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]{1,200}", name, re.ASCII) is not None
