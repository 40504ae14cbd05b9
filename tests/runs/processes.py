"""train.py as processes: one small configuration, how to start and disturb it, and how to compare what it leaves."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from colorjax.run.checkpoints import load_checkpoint
from colorjax.run.workdir import checkpoint_dir, metrics_file
from configs import quickstart

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = ("pretrain", "joint")
STEPS = {"pretrain": 12, "joint": 16}
EVAL_EVERY = {"pretrain": 6, "joint": 8}
SAVE_EVERY = 4
RESOLUTION, IMAGE_SIZE = 40, 32
LEARNING_RATE = 1e-7
FIELDS: dict[str, Any] = {
    # With seed 0 one ReLU of the first step is within rounding of 0: it opens on one device and not on two, which
    # changes the gradient by 2.6 %.
    "seed": 3,
    "data.resolution": RESOLUTION,
    "data.image_size": IMAGE_SIZE,
    "model.patch_kernels": (3, 3, 3),
    **{
        f"{stage}.{field}": value
        for stage in STAGES
        for field, value in {
            "batch_size": 8,
            "steps": STEPS[stage],
            # Adam divides by a gradient's size, and so makes rounding errors as large as the rate, and BatchNorm over
            # eight photos magnifies them further: it must be small where one device is compared with many.
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "log_every": 1,
            # Some saves are followed by a validation and some by the next step at once.
            "save_every": SAVE_EVERY,
            "eval_every": EVAL_EVERY[stage],
        }.items()
    },
}
"""What configs/quickstart.py is changed to: a run of seconds, once its programs are compiled."""

SPEED = ("images_per_second", "seconds_per_step")


def small_config(**fields: Any) -> Any:
    """The configuration of the runs, changed; a field's dots are two underscores."""
    config = quickstart.get_config().unlock()
    changes = {name.replace("__", "."): value for name, value in fields.items()}
    config.update_from_flattened_dict(FIELDS | changes)
    return config.lock()


@dataclass
class Run:
    """A process and its output."""

    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, event: Callable[[], bool], *, timeout: float = 550) -> None:
        """Returns at the first moment at which an event has come."""
        end = time.monotonic() + timeout
        while not event():
            assert self.process.poll() is None, f"the run ended before it was to be disturbed:\n{self.output()}"
            assert time.monotonic() < end, f"nothing in {timeout} s:\n{self.output()}"
            time.sleep(0.002)

    def wait_for_output(self, text: str) -> None:
        self.wait_for(lambda: text in self.output())

    def end(self, status: int = 0, *, timeout: float = 550) -> str:
        """Waits for the end, and returns the output."""
        assert self.process.wait(timeout) == status, self.output()
        return self.output()


class Launcher:
    """Starts commands of the repository, all with one compilation cache, and leaves none behind.

    Compiling costs more than everything else, so LLVM optimizes nothing.
    """

    def __init__(self, directory: Path, pack: Path):
        self._directory, self._pack = directory, pack
        self._runs: list[Run] = []

    def start(self, *command: str | Path, **environment: str) -> Run:
        log = self._directory / f"{len(self._runs)}.log"
        defaults = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self._directory / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                # A shell's background job ignores SIGINT, and so would its children.
                ["env", "--default-signal=INT", sys.executable, *map(str, command)],
                cwd=REPOSITORY,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | defaults | environment,
            )
        self._runs.append(Run(process, log))
        return self._runs[-1]

    def train(self, workdir: Path, *flags: str, environment: dict[str, str] | None = None, **fields: Any) -> Run:
        """Starts train.py with `small_config(**fields)` on the pack."""
        changes = {"data.source": "packed", "data.dir": self._pack} | FIELDS
        changes |= {name.replace("__", "."): value for name, value in fields.items()}
        overrides = [f"--config.{field}={value}" for field, value in changes.items()]
        command = ("train.py", "--config=configs/quickstart.py", f"--workdir={workdir}", *overrides, *flags)
        return self.start(*command, **(environment or {}))

    def close(self) -> None:
        for run in self._runs:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def newest(workdir: Path, stage: str) -> tuple[int, dict[str, np.ndarray]]:
    """The step and all arrays of a stage's newest checkpoint."""
    step, params, stats = load_checkpoint(checkpoint_dir(workdir, stage))
    return step, leaves({"params": params, "stats": stats})


def saved_steps(workdir: Path, stage: str) -> list[int]:
    """The complete checkpoints; Orbax gives one its name when it is complete."""
    return sorted(int(p.name) for p in checkpoint_dir(workdir, stage).glob("*") if p.name.isdigit())


def is_saving(workdir: Path, stage: str, *, after: int) -> bool:
    """Whether a checkpoint of a step after this one is being written."""
    names = [path.name for path in checkpoint_dir(workdir, stage).glob("*.orbax-checkpoint-tmp*")]
    return any(int(name.split(".")[0]) > after for name in names)


def records(workdir: Path, stage: str, *, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without the speed, which no two runs share."""
    lines = [json.loads(line) for line in metrics_file(workdir, stage).read_text().splitlines()]
    assert all(isinstance(record["step"], int) for record in lines)
    return [{k: v for k, v in record.items() if k not in SPEED} for record in lines if split in (None, record["split"])]


def trained_steps(workdir: Path, stage: str) -> int:
    """The last step recorded so far, also while the process writes."""
    path = metrics_file(workdir, stage)
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((record["step"] for record in map(json.loads, lines) if record["split"] == "train"), default=0)


def in_order(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # A step's two records change places when a run resumes between them.
    return sorted(lines, key=lambda record: (record["step"], record["split"]))


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Bit for bit, and not vacuously."""
    assert a.keys() == b.keys()
    assert len(a) > 10
    differing = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not differing


def assert_same_run(workdir: Path, expected: Path, stages: tuple[str, ...] = STAGES) -> None:
    """The same parameters, statistics and records, bit for bit."""
    for stage in stages:
        step, arrays = newest(workdir, stage)
        assert step == STEPS[stage]
        assert_equal(arrays, newest(expected, stage)[1])
        mine = records(workdir, stage)
        assert len({(record["step"], record["split"]) for record in mine}) == len(mine)
        assert in_order(mine) == in_order(records(expected, stage))


def assert_close_run(workdir: Path, expected: Path) -> None:
    """The same losses, gradients and evaluation, but for the order in which floats are added."""
    for stage in STAGES:
        mine, theirs = in_order(records(workdir, stage)), in_order(records(expected, stage))
        assert [(r["step"], r["split"]) for r in mine] == [(r["step"], r["split"]) for r in theirs]
        for a, b in zip(mine, theirs, strict=True):
            for name in ("loss", "class_loss", "color_loss", "color_ce", "prior_color_ce"):
                if name in b:
                    # The first step sees the same photos and weights; later ones the rounding of those before.
                    limit = 1e-6 if (stage, b["step"]) == ("pretrain", 1) else 1e-5
                    assert abs(a[name] - b[name]) <= limit * abs(b[name]), (stage, name, b["step"], b["split"])
            if "gradient_norm" in b:
                # BatchNorm over eight photos makes the gradient a thousand times as sensitive as the loss.
                limit = 1e-4 if (stage, b["step"]) == ("pretrain", 1) else 1e-2
                difference = abs(a["gradient_norm"] - b["gradient_norm"])
                assert difference <= limit * b["gradient_norm"], (stage, b["step"], a["gradient_norm"])
        (_, a), (_, b) = newest(workdir, stage), newest(expected, stage)
        assert a.keys() == b.keys()
        for name in a:
            if a[name].dtype == np.float32:
                # A parameter whose gradient is all rounding may go the other way at every step.
                limit = 2 * LEARNING_RATE * sum(STEPS.values()) + 1e-3 * np.abs(b[name]).max()
                assert np.abs(a[name] - b[name]).max() <= limit, name
    mine, theirs = (json.loads((d / "evaluation/test/metrics.json").read_text()) for d in (workdir, expected))
    assert mine["photos"] == theirs["photos"]
    assert mine["rows"].keys() == theirs["rows"].keys()
    for row, metrics in theirs["rows"].items():
        assert mine["rows"][row].keys() == metrics.keys()
        for metric, value in metrics.items():
            assert abs(mine["rows"][row][metric] - value) <= 1e-3 * max(1, abs(value)), (row, metric)


def digests(directory: Path) -> dict[str, tuple[str, int]]:
    """Path -> digest and time of change."""
    return {
        str(path.relative_to(directory)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }
