"""A trained colorizer: loaded from a run or from a portable folder, and saved as one.

A run's workdir holds Orbax checkpoints. A portable folder holds the colorizer alone, for any program to read:
config.json (of a path on the machine that trained it, the last name alone), classes.json, prior.npz (the colors of its
training photos, by which it is evaluated and decoded; absent if they were not counted) and the tensors
(run/portable.py).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from colorjax import atomic
from colorjax.data.errors import one_line
from colorjax.data.prior import Prior
from colorjax.model.decode import Decoder, make_decoder
from colorjax.model.program import Program, Tree, abstract_model, build_program
from colorjax.run import portable
from colorjax.run.config import DECODING, Config, validate
from colorjax.run.trees import flatten, require_same_shapes
from colorjax.run.workdir import (
    checkpoint_dir,
    config_file,
    counted_prior,
    load_class_names,
    load_config,
    local_path,
    prior_file,
    save_class_names,
    save_config,
)

_MACHINE_PATHS = (("data", "dir"), ("data", "prior"), ("data", "teacher"), ("joint", "init_from"))


@dataclass(frozen=True)
class Trained:
    """A colorizer.

    Attributes:
        config: what it was trained with; see configs/paper.py.
        class_names: of its classifier, in the order of the logits.
        step: of the joint stage.
        params: numpy arrays, float32, by network and layer.
        stats: running statistics, alike.
        prior: the colors of its training photos; None if they were not counted.
    """

    config: Config
    class_names: tuple[str, ...]
    step: int
    params: Tree
    stats: Tree
    prior: Prior | None = None

    def program(self) -> Program:
        """The colorizer as a function of parameters and statistics."""
        return build_program(self.config, "joint", classes=len(self.class_names))

    def decoder(self) -> Decoder:
        """How ab is read from what the program predicts.

        Raises:
            ValueError: if the configuration asks for an unweighting, and there is no prior.
        """
        return make_decoder(self.config, None if self.prior is None else self.prior.p)


def load_trained(path: str | Path) -> Trained:
    """The newest colorizer of a run, or the colorizer of a portable folder.

    Args:
        path: the --workdir of train.py, or a folder that `save_trained` wrote.

    Raises:
        FileNotFoundError: if the path holds neither, the run has no finished checkpoint of the joint stage, or the
            folder lacks a file.
        ValueError: if a file of the folder or the prior is damaged or foreign, or does not fit config.json.
    """
    path = local_path(path)
    config = load_config(path)
    if portable.is_portable(path):
        return _load_portable(path, config)
    directory = checkpoint_dir(path, "joint")
    if not directory.is_dir():
        raise FileNotFoundError(
            f"{path} holds neither a run's joint stage ({directory}) nor an exported model ({portable.FILES})"
        )
    # Here, since a portable folder can be read where Orbax is not installed.
    from colorjax.run.checkpoints import load_checkpoint

    step, params, stats = load_checkpoint(directory)
    class_names = load_class_names(path)
    model_params, model_stats = _model_shapes(path, config, class_names)
    require_same_shapes(
        flatten({"params": model_params, "stats": model_stats}),
        flatten({"params": params, "stats": stats}),
        message=f"{directory} does not fit the model that config.json and classes.json describe",
    )
    return Trained(config, class_names, step, params, stats, _prior(prior_file(config, path)))


def save_trained(
    trained: Trained,
    folder: str | Path,
    *,
    format: str = "safetensors",
    dtype: str = "float32",
    max_shard_size: int = portable.MAX_SHARD_SIZE,
) -> None:
    """Writes a portable folder, all of it or nothing.

    Args:
        trained: the colorizer.
        folder: must not exist yet, or be empty.
        format: safetensors or npz.
        dtype: what the tensors are rounded to: float32, float16, or bfloat16 (safetensors only).
        max_shard_size: limit of a safetensors file in bytes of tensors; a single tensor may be larger.

    Raises:
        FileExistsError: if the folder holds something.
        ValueError: for an unknown format or dtype, or a value that the dtype cannot hold.
    """
    with new_folder(trained, folder) as partial:
        write_trained(trained, partial, format=format, dtype=dtype, max_shard_size=max_shard_size)


def write_trained(trained: Trained, folder: Path, *, format: str, dtype: str, max_shard_size: int) -> None:
    """Writes the tensors and the prior into a folder of `new_folder`; arguments as of `save_trained`.

    Raises:
        ValueError: for an unknown format or dtype, or a value that the dtype cannot hold.
    """
    portable.check_options(format=format, dtype=dtype, max_shard_size=max_shard_size)
    portable.write_tensors(
        folder,
        trained.params,
        trained.stats,
        trained.step,
        format=format,
        dtype=dtype,
        max_shard_size=max_shard_size,
    )
    if trained.prior is not None:
        trained.prior.save(counted_prior(folder))


@contextmanager
def new_folder(trained: Trained, folder: str | Path) -> Iterator[Path]:
    """A folder with config.json and classes.json, to write the model into; it gets its name when the block is done.

    Raises:
        FileExistsError: if there is a folder of that name that holds something, or a file.
    """
    config: Config = ConfigDict(json.loads(trained.config.to_json()))
    for section, field in _MACHINE_PATHS:
        config[section][field] = Path(config[section][field]).name
    with atomic.new_folder(folder) as partial:
        save_config(config, partial)
        save_class_names(partial, trained.class_names)
        yield partial


def _load_portable(folder: Path, config: Config) -> Trained:
    class_names = load_class_names(folder)
    path, tensors = portable.read_tensors(folder)
    params, stats = _model_shapes(folder, config, class_names)
    prior = _prior(counted_prior(folder))
    return Trained(config, class_names, *portable.to_trees(tensors, params, stats, path=path), prior)


def _prior(path: Path) -> Prior | None:
    return Prior.load(path) if path.exists() else None


def _model_shapes(folder: Path, config: Config, class_names: tuple[str, ...]) -> tuple[Tree, Tree]:
    """The parameters and statistics, as shapes, of the model that a folder's configuration describes."""
    try:
        _, params, stats = abstract_model(config, "joint", classes=len(class_names))
        validate(config, fields=DECODING)
    except Exception as error:  # a foreign configuration fails in ways of many types
        raise ValueError(f"{config_file(folder)} does not describe a colorizer ({one_line(error)})") from error
    return params, stats
