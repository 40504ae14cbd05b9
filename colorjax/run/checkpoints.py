"""Checkpoints: a stage's state on disk, saved, restored, loaded and checked. The only module that knows Orbax.

Each checkpoint holds a CRC-32 of every array. One that was written before there were checksums is loaded unchecked.
"""

import functools
import gc
import logging
import os
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from colorjax.data.errors import one_line
from colorjax.model.program import TEACHER_HEAD, Tree
from colorjax.run.sharding import barrier, is_lost_host
from colorjax.run.trees import require_same_shapes

_log = logging.getLogger(__name__)

_ITEMS = ("params", "stats", "opt_state")
_CHECKSUMS = "crc32"
# How Orbax ends the name of a checkpoint that it is still writing.
_UNFINISHED = ".orbax-checkpoint-tmp"


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


class Checkpoints:
    """The checkpoints of one stage's directory, with the items params, stats (and the step) and opt_state.

    Saving copies the state and writes in the background; a checkpoint appears under its name only when it is
    complete, so a process killed at any moment leaves the one before. A save that fails is logged, and the next one
    tries again; `wait`, `close` and the end of a `with` block raise if the last one has failed.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        """Args:
        directory: created if missing.
        keep: how many of the newest checkpoints stay.
        """
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._saving: Future[None] | None = None
        self._failure: OSError | None = None
        _quiet_orbax()
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            for path in self._directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)
        barrier("checkpoints")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and is_lost_host(error):
            return  # a save ends on all hosts, or not at all
        try:
            self.close()
        except OSError:
            # The error that ends the block is the one to report: the failed save has been logged.
            if error is None:
                raise

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step."""
        return max(_steps(self._directory), default=None)

    def save(self, state: TrainState) -> None:
        """Saves under the state's own step, in the background; a step that is there already is left as it is."""
        self._join()
        step = int(state.step)
        if step in _steps(self._directory):
            return
        items = {name: _item(state, name) for name in _ITEMS}
        try:
            require_space(self._directory, state)
            checksums: Any = {path: _crc32(x) for path, x in _by_path(items).items()}
            response = ocp.save_checkpointables_async(
                str(self._directory / str(step)), items, custom_metadata={_CHECKSUMS: checksums}
            )
        except OSError as error:
            self._fail(step, error)
        else:
            self._saving = self._thread.submit(self._finish, step, response)

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint, with the shapes, dtypes and shardings of `like`.

        Raises:
            ValueError: if there is none, or its arrays are not those of `like`: names both sides.
        """
        step = self.latest_step()
        if step is None:
            raise ValueError(f"no checkpoint in {self._directory}")
        path = self._directory / str(step)
        items = {name: _item(like, name) for name in _ITEMS}
        saved = ocp.checkpointables_metadata(str(path)).metadata
        for name in _ITEMS:
            require_same_shapes(
                _by_path({name: items[name]}),
                _by_path({name: saved[name]}),
                message=f"{path} is not a checkpoint of the configured model",
            )
        restored = ocp.load_checkpointables(
            str(path), jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items)
        )
        return TrainState(
            step=restored["stats"]["step"],
            params=restored["params"],
            stats=restored["stats"]["stats"],
            opt_state=restored["opt_state"],
        )

    def saving(self) -> bool:
        """Whether a save is running in the background."""
        return self._saving is not None and not self._saving.done()

    def wait(self) -> None:
        """Returns when everything asked for is on disk.

        Raises:
            OSError: if the last save failed.
        """
        self._join()
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Waits, and ends the background thread.

        Raises:
            OSError: if the last save failed.
        """
        self._join()
        self._thread.shutdown()
        if self._failure:
            raise self._failure

    def _join(self) -> None:
        if self._saving:
            self._saving.result()
            self._saving = None

    def _finish(self, step: int, response: ocp.AsyncResponse[None]) -> None:
        """Waits for a save and removes the checkpoints that are too many. Runs in the background."""
        try:
            response.result()
        except Exception as error:  # TensorStore's errors have no types
            self._fail(step, error)
        else:
            self._failure = None
            self._remove_old()

    def _remove_old(self) -> None:
        if jax.process_index() == 0:
            for old in sorted(_steps(self._directory))[: -self._keep]:
                # Renamed first, so that a process killed meanwhile leaves no half of a checkpoint under its name.
                doomed = self._directory / f"{old}{_UNFINISHED}"
                (self._directory / str(old)).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _fail(self, step: int, error: Exception) -> None:
        # The text of TensorStore's errors holds the system's code.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        text = str(error) if isinstance(error, OSError) else error
        reason = f"{os.strerror(int(code[1]))} in {self._directory}" if code else one_line(text, limit=200)
        self._failure = OSError(f"the checkpoint of step {step} is not saved: {reason}")
        latest = self.latest_step()
        kept = "there is none before it" if latest is None else f"that of step {latest} is the newest"
        _log.warning("%s; %s. The next save tries again.", self._failure, kept)
        if jax.process_index() == 0:
            shutil.rmtree(self._directory / f"{step}{_UNFINISHED}", ignore_errors=True)


def require_space(directory: Path, state: Any) -> None:
    """Refuses a disk that has no room for a checkpoint. All hosts must call it, and get the answer of the first.

    Args:
        directory: of the checkpoints; may not exist yet.
        state: a tree of arrays or shapes, uncompressed the size of a checkpoint.

    Raises:
        OSError: if the disk has no room.
    """
    needed = sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(state))
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if not multihost_utils.broadcast_one_to_all(np.asarray(free >= needed)):
        raise OSError(
            f"a checkpoint takes {needed / 1e6:,.0f} MB, and the disk of {directory} has {free / 1e6:,.0f} MB left"
        )


def set_aside_damaged(directory: Path) -> None:
    """Renames the damaged checkpoints that are newer than the newest good one, with a warning: N becomes N.damaged.

    Training then goes on from the good one. All hosts must call it.

    Args:
        directory: of a stage's checkpoints; may not exist yet.

    Raises:
        ValueError: if there are checkpoints, and all of them are damaged.
    """
    if not _steps(directory):
        return
    good, _ = _load_newest(directory, _ITEMS)
    barrier("damaged checkpoints")  # no host is still reading
    if jax.process_index() == 0:
        for step in _steps(directory):
            if step > good:
                aside = directory / f"{step}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                (directory / str(step)).rename(aside)
    barrier("good checkpoints")


def load_checkpoint(directory: str | Path) -> tuple[int, Tree, Tree]:
    """The step, and the model's parameters and statistics, of a stage's newest good checkpoint, as numpy arrays.

    Where newer ones are damaged, a warning says so.

    Args:
        directory: a stage's checkpoint directory.

    Raises:
        FileNotFoundError: if there is no checkpoint in it.
        ValueError: if every checkpoint in it is damaged.
    """
    path = Path(directory).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint directory {path}")
    step, items = _load_newest(path, ("params", "stats"))
    items["params"].pop(TEACHER_HEAD, None)
    return step, items["params"], items["stats"]["stats"]


def _load_newest(directory: Path, names: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """The newest good checkpoint's step, and items of it as numpy arrays."""
    damaged: dict[int, str] = {}
    for step in sorted(_steps(directory), reverse=True):
        try:
            items = _load(directory / str(step), names)
        except ValueError as error:
            damaged[step] = str(error)
            continue
        if damaged:
            newest = max(damaged)
            _log.warning(
                "%s: the checkpoint of step %d is damaged (%s). Taking that of step %d: steps %d to %d are lost.",
                directory,
                newest,
                damaged[newest],
                step,
                step + 1,
                newest,
            )
        return step, items
    if damaged:
        newest = max(damaged)
        raise ValueError(
            f"{directory}: no checkpoint is whole; step {newest}: {damaged[newest]}. "
            "Restore the folder from a copy, or delete it to train the stage again."
        )
    raise FileNotFoundError(f"no finished checkpoint in {directory}")


def _load(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Items of a checkpoint as numpy arrays, so that it does not matter on which devices it was written.

    Raises:
        ValueError: if it is damaged.
    """
    _quiet_orbax()
    items, checksums, failure = {}, None, ""
    try:
        metadata = ocp.checkpointables_metadata(str(path))
        abstract = {name: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata.metadata[name]) for name in names}
        items = ocp.load_checkpointables(str(path), abstract)
        custom: Any = metadata.custom_metadata or {}
        checksums = dict(custom[_CHECKSUMS]) if _CHECKSUMS in custom else None
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make Orbax and TensorStore raise errors of many types
        failure = _first_cause(error)
    if failure:
        _collect_coroutines()
        raise ValueError(f"it cannot be read, {failure}")
    for key, x in _by_path(items).items():
        if checksums is not None and checksums.get(key) != _crc32(x):
            raise ValueError(f"{key} differs from its checksum")
        if not key.startswith("opt_state") and not np.isfinite(x).all():
            raise ValueError(f"{key} holds values that are not finite")
    return items


def _steps(directory: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    return [int(path.name) for path in directory.glob("*") if path.name.isdigit()]


def _item(state: TrainState, name: str) -> Any:
    # Orbax takes neither a bare array nor a tree without leaves, which the statistics of GroupNorm are.
    return {"step": state.step, "stats": state.stats} if name == "stats" else getattr(state, name)


def _by_path(items: dict[str, Any]) -> dict[str, Any]:
    """Leaves by paths with dots, which are the same for a tuple with names and the dict that Orbax makes of it."""
    leaves = jax.tree_util.tree_leaves_with_path(items)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _crc32(x: jax.Array | np.ndarray) -> int:
    # The state lies whole on each device.
    array = np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x)
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _first_cause(error: BaseException) -> str:
    while error.__cause__:
        error = error.__cause__
    return one_line(error)


def _collect_coroutines() -> None:
    """Removes the coroutines that a failure in Orbax leaves, and which warn that they were never awaited."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        gc.collect()


@functools.cache
def _quiet_orbax() -> None:
    """Keeps Orbax from reporting in hundreds of lines what is reported here in one: failed saves and failed loads."""
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno < logging.WARNING or "orbax" not in Path(record.pathname).parts
    )
    # TensorStore's errors, of the format OCDBT, in tasks that nobody waits for any more.
    logging.getLogger("asyncio").addFilter(
        lambda record: not record.exc_info or "ocdbt" not in str(record.exc_info[1]).lower()
    )
    report = sys.unraisablehook

    def unraisable(unraised: Any) -> None:
        # The other writes of a failed save end after Orbax has closed the loop that waited for them.
        if str(unraised.exc_value) != "Event loop is closed":
            report(unraised)

    sys.unraisablehook = unraisable
