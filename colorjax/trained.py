"""A trained colorizer as one value, by which prediction and export need only a path; and the portable folder.

A run's workdir holds Orbax checkpoints. The portable folder holds the colorizer alone, for any program to read:

    config.json         the configuration; of a path on the machine that trained it, the last name alone
    classes.json        the class names, in the order of the logits
    model.safetensors   every parameter and statistic; model-00001-of-00002.safetensors and so on with
                        model.safetensors.index.json where a size limit divides it; or model.npz

A tensor's key is its path with dots, `params.low_level.layers.0.conv.kernel` or `stats.…`; `step` counts the joint
stage's steps.
"""

import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from colorjax.config import Config, load_config, save_config
from colorjax.models import Colorizer
from colorjax.state import Program, Tree

_CLASSES = "classes.json"
_SAFETENSORS, _INDEX, _NPZ = "model.safetensors", "model.safetensors.index.json", "model.npz"
_DTYPES = ("float32", "bfloat16", "float16")
# NumPy's own format knows no bfloat16.
_FORMATS = {"safetensors": _DTYPES, "npz": ("float32", "float16")}
MAX_SHARD_SIZE = 5_000_000_000
"""Bytes of a safetensors file at most, unless told otherwise: as the Hugging Face Hub likes them."""
_MACHINE_PATHS = (("data", "dir"), ("data", "prior"), ("data", "teacher"), ("joint", "init_from"))

Tensors = dict[str, np.ndarray]
"""By their keys in the portable folder."""


@dataclass(frozen=True)
class Trained:
    """A colorizer.

    Attributes:
        config: what it was trained with; see configs/paper.py.
        class_names: of its classifier, in the order of the logits.
        step: of the joint stage.
        params: numpy arrays, float32, by network and layer.
        stats: running statistics, alike.
    """

    config: Config
    class_names: tuple[str, ...]
    step: int
    params: Tree
    stats: Tree

    def program(self) -> Program:
        """The colorizer as a function of parameters and statistics: models.Colorizer in evaluation and training."""
        return _abstract(self.config, self.class_names)[0]


def load_trained(path: str | Path) -> Trained:
    """The newest colorizer of a run, or the colorizer of a portable folder.

    Args:
        path: the --workdir of train.py, or a folder that `save_trained` wrote.

    Raises:
        FileNotFoundError: if the path holds neither, the run has no finished checkpoint of the joint stage, or the
            folder lacks a file.
        ValueError: if a file of the folder is damaged or foreign, or does not fit the folder's config.json.
    """
    path = Path(path).absolute()
    config = load_config(path)
    if is_portable(path):
        return _load_portable(path, config)
    directory = path / "joint" / "checkpoints"
    if not directory.is_dir():
        raise FileNotFoundError(
            f"no checkpoint directory {directory}, nor {_SAFETENSORS}, {_INDEX} or {_NPZ} in {path}"
        )
    # Here, since a portable folder is to be read where Orbax is not installed.
    from colorjax import checkpointing

    step, params, stats = checkpointing.load(directory)
    return Trained(config, load_class_names(path), step, params, stats)


def is_portable(path: Path) -> bool:
    """Whether a folder holds the tensors of a portable one."""
    return any((path / name).exists() for name in (_SAFETENSORS, _INDEX, _NPZ))


def save_trained(
    trained: Trained,
    folder: str | Path,
    *,
    format: str = "safetensors",
    dtype: str = "float32",
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Writes a portable folder, all of it or nothing.

    Args:
        trained: the colorizer.
        folder: must not exist yet, or be empty.
        format: safetensors or npz.
        dtype: what the tensors are rounded to: float32, float16, or bfloat16 (safetensors alone).
        max_shard_size: bytes of tensors a safetensors file holds at most; a single tensor may be larger.

    Raises:
        FileExistsError: if the folder holds something.
        ValueError: for an unknown format or dtype, or a value that the dtype cannot hold.
    """
    if format not in _FORMATS:
        raise ValueError(f"format is {format!r}; it must be {' or '.join(_FORMATS)}")
    if dtype not in _FORMATS[format]:
        raise ValueError(f"dtype is {dtype!r}; a tensor in {format} can be {', '.join(_FORMATS[format])}")
    if max_shard_size < 1:
        raise ValueError(f"max_shard_size is {max_shard_size}; it is a number of bytes, 1 or more")
    with new_folder(trained, folder) as partial:
        tensors = _rounded(trained, dtype) | {"step": np.asarray(trained.step, np.int32)}
        if format == "npz":
            with (partial / _NPZ).open("wb") as file:
                np.savez(file, allow_pickle=False, **tensors)
        else:
            _write_safetensors(partial, tensors, max_shard_size)


@contextmanager
def new_folder(trained: Trained, folder: str | Path) -> Iterator[Path]:
    """A folder with config.json and classes.json, to write the model into; it gets its name when the block is done.

    Raises:
        FileExistsError: if there is a folder of that name that holds something, or a file.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something already: choose another folder, or delete it")
    config: Config = ConfigDict(json.loads(trained.config.to_json()))
    for section, field in _MACHINE_PATHS:
        config[section][field] = Path(config[section][field]).name
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a save that was killed
    partial.mkdir(parents=True)
    try:
        save_config(config, partial)
        save_class_names(partial, trained.class_names)
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_class_names(workdir: Path, names: tuple[str, ...]) -> None:
    """Writes the data set's class names beside the checkpoints.

    Raises:
        ValueError: if other names are there, since then the data is not what the run began with.
    """
    path = workdir / _CLASSES
    if path.exists():
        if (there := load_class_names(workdir)) != names:
            raise ValueError(
                f"the classes of the data are no longer those that this run began with ({path}): {len(there)} there, "
                f"{len(names)} now, differing in {sorted(set(there) ^ set(names))[:5] or 'their order'}; "
                "point data.dir at the data of then, or take another --workdir"
            )
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(names, indent=1) + "\n")
    temporary.replace(path)


def load_class_names(workdir: Path) -> tuple[str, ...]:
    """The class names that `save_class_names` wrote.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if the file is no list of names.
    """
    path = workdir / _CLASSES
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: {workdir} is neither the workdir of a run that has begun to train "
            "nor an exported folder"
        )
    names = _read_json(path)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is no list of class names: take it from the run or the export again")
    return tuple(names)


def _abstract(config: Config, class_names: Sequence[str]) -> tuple[Program, Tree, Tree]:
    """The colorizer's function, and its parameters and statistics as shapes alone."""
    return Program.split(
        nnx.eval_shape(
            lambda key: Colorizer(
                config.model, classes=len(class_names), image_size=config.data.image_size, rngs=nnx.Rngs(key)
            ),
            jax.random.key(0),
        )
    )


def _load_portable(folder: Path, config: Config) -> Trained:
    readers = {_SAFETENSORS: _read_safetensors, _INDEX: _read_shards, _NPZ: _read_npz}
    found = [name for name in readers if (folder / name).exists()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(found)}, each a whole model: delete all but one")
    path = folder / found[0]
    class_names, tensors = load_class_names(folder), readers[path.name](path)
    try:
        _, params, stats = _abstract(config, class_names)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a colorizer: {error}") from error
    expected = {key: x.shape for key, x in _flat({"params": params, "stats": stats}).items()} | {"step": ()}
    _check(tensors, expected, path)
    step = int(tensors.pop("step"))
    tree = _nested({key: x.astype(np.float32, copy=False) for key, x in tensors.items()})
    return Trained(config, class_names, step, tree["params"], tree.get("stats", {}))


def _check(tensors: Tensors, expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    missing = sorted(expected.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - expected.keys())
    differing = [
        f"{key}: model {expected[key]}, file {tensors[key].shape}"
        for key in sorted(expected.keys() & tensors.keys())
        if expected[key] != tensors[key].shape
    ]
    if missing or surplus or differing:
        raise ValueError(
            f"{path} does not fit the model that {path.parent / 'config.json'} and {_CLASSES} describe:\n"
            f"  in the model, not in the file: {_some(missing)}\n"
            f"  in the file, not in the model: {_some(surplus)}\n"
            f"  of another shape: {_some(differing)}"
        )
    for key, x in tensors.items():
        if key == "step" and np.issubdtype(x.dtype, np.integer):
            continue
        if key == "step" or x.dtype.name not in _DTYPES:
            raise ValueError(f"{path}: {key} is {x.dtype}; tensors are {', '.join(_DTYPES)}, and step a whole number")


def _some(items: Sequence[str]) -> str:
    return f"{', '.join(items[:5]) or 'none'}{f' and {len(items) - 5} more' if len(items) > 5 else ''}"


def _rounded(trained: Trained, dtype: str) -> Tensors:
    rounded = {}
    for key, x in _flat({"params": trained.params, "stats": trained.stats}).items():
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
        names = [_SAFETENSORS]
    else:
        index = {
            "metadata": {"total_size": sum(x.nbytes for x in tensors.values())},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "flax"})
        # The library's files are for their owner alone.
        (folder / name).chmod((folder / _CLASSES).stat().st_mode)


def _read_safetensors(path: Path) -> Tensors:
    library = _safetensors()
    try:
        return library.numpy.load_file(path)
    except library.SafetensorError as error:
        raise ValueError(f"{path} is truncated, damaged or no safetensors file ({error})") from error


def _read_shards(path: Path) -> Tensors:
    index = _read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    # A name with a folder in it would read files from elsewhere.
    if not isinstance(places, dict) or not all(isinstance(x, str) and Path(x).name == x for x in places.values()):
        raise ValueError(f"{path} is no index of safetensors files: its weight_map must name a file for each tensor")
    tensors: Tensors = {}
    for name in sorted(set(places.values())):
        shard = path.parent / name
        if not shard.exists():
            raise FileNotFoundError(f"{shard} is missing, which {path} names: fetch or export the whole folder again")
        read = _read_safetensors(shard)
        if read.keys() != (named := {key for key, place in places.items() if place == name}):
            raise ValueError(f"{shard} and {path} disagree on where {_some(sorted(read.keys() ^ named))} should be")
        tensors |= read
    return tensors


def _read_npz(path: Path) -> Tensors:
    try:
        with zipfile.ZipFile(path):  # else NumPy would take a bare array as well
            pass
        with np.load(path, allow_pickle=False) as file:
            return {key: np.asarray(file[key]) for key in file.files}
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated, damaged or no .npz of plain arrays ({error})") from error


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error})") from error


def _flat(tree: Tree, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _nested(tensors: Tensors) -> Tree:
    tree: Tree = {}
    for key, x in tensors.items():
        *path, last = key.split(".")
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[last] = x
    return tree
