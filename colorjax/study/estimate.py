"""How long a study takes: from the speed of its own runs, else from a few real steps."""

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
from colorjax.training.progress import duration
from colorjax.training.step import color_reference, make_train_step

_log = logging.getLogger(__name__)

_TIMED_STEPS = 3
_RECORDS = 20  # of the speed, the newest


def plan_table(runs: Sequence[Run], seconds: dict[Path, float]) -> str:
    """What is to be done, as Markdown, and its sum.

    Args:
        runs: all of the study.
        seconds: workdir -> seconds a step, of the runs for which it is known.
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
    table = markdown_table(["run", "is", "steps left", "photos left", "s a step", "time left"], lines)
    end = f"In all {photos:,} photos, some {duration(left)} of training steps one after the other"
    if unknown:
        end += f", and the {unknown} runs whose speed is not known"
    return f"{table}\n{end}; compiling, validation, evaluation and counting the prior are not in it."


def seconds_per_step(runs: Iterable[Run], *, measured_in: Iterable[Run], time_them: bool) -> dict[Path, float]:
    """The seconds of a training step of each run that has steps left.

    As the run has recorded them, else another run with the same program, else as timed here, which compiles each
    program once and says so.

    Args:
        runs: what is to be done.
        measured_in: all runs that may have recorded something.
        time_them: whether to time what nobody has recorded.

    Returns:
        Workdir -> seconds; without the runs whose speed is not known.
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
            _log.info("timing %d steps of %s, after one that compiles", _TIMED_STEPS, run.name)
            try:
                of_program[program] = _timed(run)
            except Exception as error:  # the run itself will say it again, and the others are worth a plan
                _log.warning("%s cannot be timed: %s: %s", run.name, type(error).__name__, error)
            finally:
                jax.clear_caches()
        if program in of_program:
            of_run[run.workdir] = of_program[program]
    return of_run


def _recorded(run: Run) -> float | None:
    path = metrics_file(run.workdir, run.stage)
    if not path.exists():
        return None
    speeds = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # half-written
        if "seconds_per_step" in record:
            speeds.append(record["seconds_per_step"])
    return statistics.median(speeds[-_RECORDS:]) if speeds else None


def _program(run: Run) -> str:
    """What the time of a step depends on."""
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
        # The time depends on no value; with the true ones the compiled program may be the run's own.
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
