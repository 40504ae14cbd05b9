"""Checkpoints: what they hold, saving, restoring, loading. The only module that knows Orbax."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from colorjax.model.program import Tree

_ITEMS = ("params", "stats", "opt_state")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, hence all that a checkpoint holds.

    Attributes:
        step: int32 scalar, the number of steps done.
        params: what is evaluated and handed on, float32: the trained parameters, or with `ema` their moving average.
        stats: running statistics: of BatchNorm, and the vectors of spectral normalization; averaged likewise.
        opt_state: the optimizer's; with `ema` an Unaveraged.
    """

    step: jax.Array
    params: Tree
    stats: Tree
    opt_state: Any


class Unaveraged(NamedTuple):
    """What a stage with `ema` trains, of which the state's own `params` and `stats` are the average."""

    params: Tree
    stats: Tree
    opt_state: Any


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Leaves the question to the training loop.

        Processes agree on where to stop by counting how often they asked. Orbax would ask at each save as well, with a
        count of its own, and a signal that came just then would be agreed upon for a count that has long passed.
        """
        return False


class Checkpoints:
    """The checkpoints of one stage's directory, with the items params, stats (and the step) and opt_state.

    Saving copies the state and writes in the background; a checkpoint appears under its name only when it is
    complete, so a process killed at any moment leaves the one before.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        """Args:
        directory: created if missing.
        keep: how many of the newest checkpoints stay.
        """
        self._manager = _Manager(
            Path(directory).absolute(),
            item_names=_ITEMS,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves under the state's own step, in the background; a step that is there already is left as it is."""
        step = int(state.step)
        if step != self._manager.latest_step():
            items = {name: ocp.args.StandardSave(_item(state, name)) for name in _ITEMS}
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint, with the shapes, dtypes and shardings of `like`.

        Raises:
            ValueError: if the checkpoint's parameters are not those of `like`: names both sides.
        """
        step = self._manager.latest_step()
        if step is None:
            raise ValueError(f"no checkpoint in {self._manager.directory}")
        abstract = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, _item(like, name)))
            for name in _ITEMS
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**abstract))
        return TrainState(
            step=restored["stats"]["step"],
            params=restored["params"],
            stats=restored["stats"]["stats"],
            opt_state=restored["opt_state"],
        )

    def wait(self) -> None:
        """Returns when everything asked for is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the directory."""
        self._manager.close()


def load_checkpoint(directory: str | Path) -> tuple[int, Tree, Tree]:
    """The step, parameters and statistics of a stage's newest checkpoint, as numpy arrays.

    Args:
        directory: a stage's checkpoint directory.

    Raises:
        FileNotFoundError: if there is no checkpoint in it.
    """
    path = Path(directory).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint directory {path}")
    handlers = {name: ocp.PyTreeCheckpointHandler() for name in _ITEMS}
    with ocp.CheckpointManager(path, item_names=_ITEMS, item_handlers=handlers) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"no finished checkpoint in {path}")
        metadata = manager.item_metadata(step)
        # As numpy, so that it does not matter on which devices the checkpoint was written.
        as_numpy = {
            name: ocp.args.PyTreeRestore(
                restore_args=jax.tree.map(
                    lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                    metadata[name].tree,
                    is_leaf=lambda x: hasattr(x, "shape"),
                )
            )
            for name in ("params", "stats")
        }
        restored = manager.restore(step, args=ocp.args.Composite(**as_numpy))
    return step, restored["params"], restored["stats"]["stats"]


def _item(state: TrainState, name: str) -> Any:
    # Orbax takes neither a bare array nor a tree without leaves, which the statistics of GroupNorm are.
    return {"step": state.step, "stats": state.stats} if name == "stats" else getattr(state, name)
