"""Checkpoints: save, resume, and the strict graft of pretrained networks. The only module that knows Orbax."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from colorjax.state import TEACHER_HEAD, TrainState, Tree

_ITEMS = ("params", "stats", "opt_state")


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


def exists(directory: str | Path) -> bool:
    """Whether a stage's directory holds a complete checkpoint."""
    return latest_step(directory) is not None


def latest_step(directory: str | Path) -> int | None:
    """The step of a stage's newest complete checkpoint, without opening it; None if there is none."""
    path = Path(directory)
    return max(ocp.utils.checkpoint_steps(path), default=None) if path.is_dir() else None


def load(directory: str | Path) -> tuple[int, Tree, Tree]:
    """The step, and the model's parameters and statistics, of a stage's newest checkpoint, as numpy arrays.

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
    restored["params"].pop(TEACHER_HEAD, None)
    return step, restored["params"], restored["stats"]["stats"]


def graft(target: Tree, source: Tree, *, networks: Sequence[str], what: str) -> Tree:
    """`target` with the subtrees `networks` of `source` in their places.

    Strict both ways, since a restore that skips what it does not find loses quality in silence.

    Args:
        target: a model's parameters, or its statistics.
        source: the same of a pretrained model.
        networks: names of top-level subtrees. One without a leaf (a network without statistics) may be absent from
        both.
        what: "parameters" or "statistics", for the error.

    Raises:
        ValueError: if a key is missing on either side or a shape differs: lists all of them.
    """
    wanted = _shapes({name: target[name] for name in networks if name in target})
    offered = _shapes({name: source[name] for name in networks if name in source})
    if wanted != offered:
        missing = sorted(set(wanted) - set(offered))
        surplus = sorted(set(offered) - set(wanted))
        differing = [
            f"{key}: model {wanted[key]}, checkpoint {offered[key]}"
            for key in sorted(set(wanted) & set(offered))
            if wanted[key] != offered[key]
        ]
        raise ValueError(
            f"the pretrained {what} do not fit the model; were both stages configured alike?\n"
            f"  in the model, not in the checkpoint: {missing}\n"
            f"  in the checkpoint, not in the model: {surplus}\n"
            f"  of another shape: {differing}"
        )
    return target | {name: source[name] for name in networks if name in source}


def _item(state: TrainState, name: str) -> Any:
    # Orbax takes neither a bare array nor a tree without leaves, which the statistics of GroupNorm are.
    return {"step": state.step, "stats": state.stats} if name == "stats" else getattr(state, name)


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}
