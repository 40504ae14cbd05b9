"""A trained colorizer as one value, by which prediction and export need only a path."""

import json
from dataclasses import dataclass
from pathlib import Path

from colorjax import checkpointing
from colorjax.config import Config, load_config
from colorjax.state import Tree

_CLASSES = "classes.json"


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


def load_trained(path: str | Path) -> Trained:
    """The newest colorizer of a run.

    Args:
        path: the --workdir of train.py.

    Raises:
        FileNotFoundError: if the path holds no run, or the run has no finished checkpoint of the joint stage.
    """
    workdir = Path(path).absolute()
    config = load_config(workdir)
    step, params, stats = checkpointing.load(workdir / "joint" / "checkpoints")
    return Trained(config, load_class_names(workdir), step, params, stats)


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
    """
    path = workdir / _CLASSES
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {workdir} is not the workdir of a run that has begun to train")
    return tuple(json.loads(path.read_text()))
