"""The files of a run: every path in its workdir, its lock, config.json, and the class names.

    config.json                    the configuration
    classes.json                   the class names, in the order of the logits
    prior.npz                      the colors of the training split, unless `data.prior` names another file
    <stage>/checkpoints/<step>/    see run/checkpoints.py
    <stage>/metrics.jsonl          the recorded scalars; TensorBoard's files lie beside it
    <stage>/panels/<step>.png      pictures of validation photos
    evaluation/<split>/            see evaluation/evaluate.py
    .lock                          held by the run that trains here

A portable folder (run/trained.py) has config.json, classes.json and prior.npz as well.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from colorjax import atomic
from colorjax.data.errors import first_few, one_line
from colorjax.run.config import ADDED_FIELDS, STAGES, Config, pretraining_reads
from colorjax.run.trees import flatten

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

_log = logging.getLogger(__name__)

# Where the photographs are, how many of them may be bad, and how often a stage reports: nothing of it changes what is
# trained.
_NEVER_BINDING = ("data.dir", "data.download", "data.max_undecodable", "data.teacher")
_REPORTING = ("log_every", "eval_every", "eval_photos", "save_every")


def local_path(path: str | Path) -> Path:
    """The absolute path of a workdir or portable folder.

    Raises:
        ValueError: for a URL such as gs://bucket/run, which would otherwise become a local folder of that name.
    """
    if "://" in str(path):
        raise ValueError(f"{path} is a URL, and runs are read and written as local files: mount it, or copy it first")
    return Path(path).expanduser().absolute()


def config_file(folder: Path) -> Path:
    """The configuration of a run or a portable folder."""
    return folder / "config.json"


def classes_file(folder: Path) -> Path:
    """The class names of a run or a portable folder."""
    return folder / "classes.json"


def prior_file(config: Config, workdir: Path) -> Path:
    """The prior of a run: the file that `data.prior` names, or the workdir's own."""
    return Path(config.data.prior) if config.data.prior else counted_prior(workdir)


def counted_prior(workdir: Path) -> Path:
    """The prior that was counted into a workdir, or that an exported folder holds."""
    return workdir / "prior.npz"


def stage_dir(workdir: Path, stage: str) -> Path:
    """All that a stage writes."""
    return workdir / stage


def checkpoint_dir(workdir: Path, stage: str) -> Path:
    """The checkpoints of a stage."""
    return stage_dir(workdir, stage) / "checkpoints"


def metrics_file(workdir: Path, stage: str) -> Path:
    """The recorded scalars of a stage."""
    return stage_dir(workdir, stage) / "metrics.jsonl"


def panel_file(workdir: Path, stage: str, step: int) -> Path:
    """The picture of some validation photos after a step."""
    return stage_dir(workdir, stage) / "panels" / f"{step:08d}.png"


def evaluation_dir(workdir: Path, split: str) -> Path:
    """The evaluation of a run on a split."""
    return workdir / "evaluation" / split


def latest_step(workdir: Path, stage: str) -> int | None:
    """The step of a stage's newest complete checkpoint, by the names alone; None if there is none."""
    folders = checkpoint_dir(workdir, stage).glob("*")
    return max((int(path.name) for path in folders if path.name.isdigit()), default=None)


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keeps other trainings out of a workdir while the block runs, and removes what killed ones left half written.

    The first host holds the lock for all. It ends with its process, however that ends. All hosts must enter together.

    Raises:
        BlockingIOError: if another run trains there: names its process and host.
    """
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / ".lock").open("a+") as file:
            free = _try_lock(file.fileno())
            multihost_utils.broadcast_one_to_all(np.asarray(free))
            file.seek(0)
            if not free:
                raise _in_use(workdir, one_line(file.read()))
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            for folder in (workdir, *(stage_dir(workdir, stage) for stage in STAGES)):
                atomic.remove_leftovers(folder)
            yield
    elif not multihost_utils.broadcast_one_to_all(np.asarray(True)):
        raise _in_use(workdir, "see the first host's message")
    else:
        yield


def _try_lock(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.warning("this file system has no locks (%s): start no second run in the workdir", error)
    return True


def _in_use(workdir: Path, owner: str) -> BlockingIOError:
    return BlockingIOError(f"another run trains in {workdir} ({owner}): stop it first, or use another --workdir")


def bind_config(config: Config, workdir: Path) -> None:
    """Writes config.json, unless the workdir is bound to another configuration.

    A field binds from the first checkpoint that depends on it. So a run that ended before it saved anything, because
    of a misspelled field for example, can be started again with another configuration. After pretraining, the fields
    that it does not read may still change (config.pretraining_reads). Where the photographs are and how often a stage
    reports never binds. At a constant rate, `steps` and `decay_steps` do not bind until the decay begins, or until
    something is trained on the stage's result.

    Raises:
        FileNotFoundError, ValueError: as `differences`.
    """
    differing = differences(config, workdir)
    if jax.process_index() != 0 or (config_file(workdir).exists() and not differing):
        return
    if any(key.startswith("data.") for key in differing) and not any(latest_step(workdir, s) for s in STAGES):
        # They describe the photographs of the earlier configuration.
        for path in (classes_file(workdir), counted_prior(workdir)):
            path.unlink(missing_ok=True)
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(config, workdir)


def differences(config: Config, workdir: Path) -> list[str]:
    """The fields other than `stage` in which a configuration differs from the workdir's, if that has one.

    A field that was added since then has the value in ADDED_FIELDS.

    Raises:
        FileNotFoundError: if config.json is missing beside checkpoints.
        ValueError: if config.json is damaged, or one of the fields binds (see `bind_config`): lists those.
    """
    path = config_file(workdir)
    steps = {stage: latest_step(workdir, stage) or 0 for stage in STAGES}
    if not path.exists():
        if any(steps.values()):
            raise FileNotFoundError(
                f"{path} is missing, and {workdir} holds checkpoints: put the run's config.json back, or use another "
                "--workdir"
            )
        return []
    saved, given = (ADDED_FIELDS | flatten(x) for x in (_read_config(path), json.loads(config.to_json())))
    differing = [
        key for key in sorted(saved.keys() | given.keys()) if key != "stage" and saved.get(key) != given.get(key)
    ]
    binding = [
        f"{key} is {saved.get(key, 'absent')!r} there and {given.get(key, 'absent')!r} now"
        for key in differing
        if _binds(key, saved, given, steps)
    ]
    if binding:
        raise ValueError(
            f"{workdir} belongs to a run with another configuration: {first_few(binding)}. "
            "Use another --workdir, or the configuration that is there."
        )
    return differing


def _binds(key: str, saved: dict[str, Any], given: dict[str, Any], steps: dict[str, int]) -> bool:
    stage, _, field = key.partition(".")
    if key in _NEVER_BINDING or field in _REPORTING:
        return False
    if field in ("steps", "decay_steps") and {c.get(f"{stage}.schedule") for c in (saved, given)} == {"constant"}:
        decay_begins = min(c.get(f"{stage}.steps", 0) - c[f"{stage}.decay_steps"] for c in (saved, given))
        return decay_begins < steps[stage] or (stage == "pretrain" and steps["joint"] > 0)
    return steps["joint"] > 0 or (steps["pretrain"] > 0 and pretraining_reads(key))


def save_config(config: Config, folder: Path) -> None:
    """Writes config.json in place of what is there."""
    atomic.write_text(config_file(folder), json.dumps(json.loads(config.to_json()), indent=2) + "\n")


def load_config(folder: Path) -> Config:
    """The configuration that a run, or the colorizer of a portable folder, was trained with.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged.
    """
    path = config_file(folder)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {folder} is neither the workdir of a run nor an exported folder")
    saved = _read_config(path)
    try:
        config: Config = ConfigDict(saved)
        for key, value in ADDED_FIELDS.items():
            section, field = key.split(".")
            if section not in config:
                raise ValueError(f"{section} is absent")
            if field not in config[section]:
                config[section][field] = value
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: it is not a configuration ({one_line(error)})") from error
    return config.lock()


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it is not a configuration, which is an object in JSON")
    return config


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({one_line(error)})") from error


def save_class_names(folder: Path, names: tuple[str, ...]) -> None:
    """Writes classes.json.

    Raises:
        ValueError: if it holds other names, since then the data is not what the run began with.
    """
    path = classes_file(folder)
    if not path.exists():
        atomic.write_text(path, json.dumps(names, indent=1) + "\n")
    elif (saved := load_class_names(folder)) != names:
        differing = sorted(set(saved) ^ set(names))
        raise ValueError(
            f"the classes of the data are no longer those that this run began with ({path}): {len(saved)} there, "
            f"{len(names)} now, differing in {first_few(differing) if differing else 'their order'}; "
            "point data.dir at the original data, or use another --workdir"
        )


def load_class_names(folder: Path) -> tuple[str, ...]:
    """The class names in classes.json.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a list of names.
    """
    path = classes_file(folder)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: {folder} is neither the workdir of a run that has begun to train "
            "nor an exported folder"
        )
    names = _read_json(path)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is not a list of class names: copy it from the run or the export again")
    return tuple(names)
