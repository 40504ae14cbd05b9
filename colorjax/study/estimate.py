"""Estimates how long a study takes, from the speed of its own runs or from a few timed steps."""

import json
import logging
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from colorjax import color, data
from colorjax.evaluation.tables import markdown_table
from colorjax.model.program import build_program, init_model
from colorjax.run import sharding
from colorjax.run.prior import load_prior
from colorjax.run.workdir import metrics_file
from colorjax.study.plan import Run
from colorjax.training.optimizer import init_state, make_optimizer
from colorjax.training.progress import duration, read_records
from colorjax.training.step import color_reference, make_train_step

_log = logging.getLogger(__name__)

_TIMED_STEPS = 3
_RECORDS = 20  # newest records of the speed that count


def plan_table(runs: Sequence[Run], seconds: dict[Path, float]) -> str:
    """The remaining work as a Markdown table, with its sum.

    Args:
        runs: all runs of the study.
        seconds: workdir -> seconds a step, where known (see `seconds_per_step`).
    """
    lines, photos, left, unknown = [], 0, 0.0, 0
    planned = {run.workdir for run in runs}
    for run in runs:
        same = run.same_training
        copied = same is not None and (same.workdir in planned or same.trained())
        todo = 0 if copied else max(run.steps - run.step(), 0)
        photos += todo * run.batch_size
        each = seconds.get(run.workdir)
        left += todo * (each or 0)
        unknown += bool(todo) and each is None
        lines.append(
            [
                run.name,
                run.status().split(":")[0],
                f"{todo:,}",
                f"{todo * run.batch_size:,}",
                f"{each:.3g}" if each and todo else "–",
                duration(todo * each) if each and todo else "–",
            ]
        )
    table = markdown_table(["run", "status", "steps left", "photos left", "seconds a step", "time left"], lines)
    total = f"In all {photos:,} photos, about {duration(left)} of training steps"
    if unknown:
        total += f", and {unknown} runs whose speed is unknown"
    return f"{table}\n{total}. Compiling, validation, evaluation and counting the prior come on top."


def seconds_per_step(runs: Iterable[Run], *, measured_in: Iterable[Run], time_them: bool) -> dict[Path, float]:
    """The seconds a training step takes, for each run that has steps left.

    Taken from the run's own records, else from a run with the same program, else timed here, after compiling each
    program once.

    Args:
        runs: the runs to estimate.
        measured_in: all runs that may have records.
        time_them: whether to time programs without records.

    Returns:
        Workdir -> seconds, where known.
    """
    of_program: dict[str, float] = {}
    of_run: dict[Path, float] = {}
    for run in measured_in:
        if recorded := _recorded(run):
            of_program[_program(run)] = of_run[run.workdir] = recorded
    for run in runs:
        if run.trained() or run.workdir in of_run:
            continue
        program = _program(run)
        if program not in of_program and time_them:
            _log.info("timing %d steps of %s; it compiles first", _TIMED_STEPS, run.name)
            try:
                of_program[program] = _timed(run)
            except Exception as error:  # the run will report it, and the plan of the others is still useful
                _log.warning("%s cannot be timed: %s: %s", run.name, type(error).__name__, error)
            finally:
                jax.clear_caches()
        if program in of_program:
            of_run[run.workdir] = of_program[program]
    return of_run


def _recorded(run: Run) -> float | None:
    records = read_records(metrics_file(run.workdir, run.stage))
    speeds = [record["seconds_per_step"] for record in records if "seconds_per_step" in record]
    return statistics.median(speeds[-_RECORDS:]) if speeds else None


def _program(run: Run) -> str:
    """Everything that the time of a step depends on."""
    config, own = run.config, run.config[run.stage]
    return json.dumps(
        [
            run.stage,
            config.model.to_json(),
            config.data.image_size,
            config.data.resolution,
            config.loss.neighbors,
            own.batch_size,
            own.accumulate,
            own.optimizer,
            own.ema > 0,
        ]
    )


def _timed(run: Run) -> float:
    config, stage = run.config, run.stage
    own = config[stage]
    mesh = sharding.make_mesh()
    classes = len(data.dataset_info(config.data).class_names)
    program = build_program(config, stage, classes=classes)
    optimizer = make_optimizer(config, stage)
    reference = None
    if stage == "joint":
        # The time does not depend on the prior's values, but with the true ones the run can reuse the compiled program.
        uniform = np.full(color.NUM_BINS, 1 / color.NUM_BINS)
        counted = Path(config.data.prior).exists()
        reference = color_reference(load_prior(config, run.workdir).p if counted else uniform, config)
    step = make_train_step(program, optimizer, config, stage, reference=reference, mesh=mesh)
    params, stats = init_model(config, stage, classes=classes)
    current = init_state(params, stats, optimizer, mesh, average=own.ema > 0)
    batches = data.train_batches(config.data, batch_size=own.batch_size, seed=config.seed)
    times = []
    for _ in range(1 + _TIMED_STEPS):
        start = time.perf_counter()
        logged: Any
        current, logged = step(current, sharding.to_devices(next(batches), mesh))
        jax.block_until_ready((current, logged))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
