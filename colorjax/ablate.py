"""A study by one command: trains every row with every seed, evaluates them, and writes one report.

    python -m colorjax.ablate --config=configs/paper64.py --rows=all --seeds=0,1 --workdir=runs/study

`--plan` says what there is to do and how long it takes, `--commands` prints it as one command a run for a cluster's
scheduler, and `--report` writes the report of what there is. The same command again goes on where it stopped.
"""

import logging
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from colorjax import evaluate, state, study, training
from colorjax.progress import log_to_terminal
from colorjax.study import Run, estimate, figure, results

_log = logging.getLogger("colorjax.ablate")  # also when it is run as __main__


def carry_out(runs: Sequence[Run], *, directory: Path) -> bool:
    """Trains and evaluates what is not done yet, and writes the report after every run.

    A run that fails is noted in its workdir and in the report, and the others go on.

    Args:
        runs: in an order in which a pretraining comes before what starts from it.
        directory: the study's.

    Returns:
        Whether none failed.

    Raises:
        SystemExit: 143 on SIGTERM, after saving.
    """
    failed: dict[str, str] = {}
    for i, run in enumerate(runs):
        if run.evaluated() and (run.stage == "pretrain" or figure.is_there(run)):
            continue
        _log.info("run %d of %d: %s", i + 1, len(runs), run.name)
        run.note_failure("")
        try:
            _carry_out(run)
        except Exception as error:  # whatever it is, the other runs do not depend on it
            _log.exception("%s failed", run.name)
            failed[run.name] = f"{type(error).__name__}: {error}"
            run.note_failure(failed[run.name])
        finally:
            # Every run has programs of its own.
            jax.clear_caches()
        results.write(directory, study.find(directory, planned=runs))
    for name, reason in failed.items():
        _log.error("%s failed: %s", name, reason)
    return not failed


def _carry_out(run: Run) -> None:
    if run.pretraining and not run.pretraining.trained():
        raise ValueError(f"it starts from {run.pretraining.name}, which is {run.pretraining.status()}")
    if run.stage == "joint":
        prior = training.prior_path(run.config, run.workdir)
        if not prior.exists():
            training.count_prior(run.config, prior)
        if study.take_over(run):
            _log.info("it has the training of %s, which is copied", run.same_training and run.same_training.name)
    training.train(run.config, run.workdir)
    if not run.evaluated():
        evaluate.evaluate(run.workdir, split="test")
    if run.stage == "joint":
        figure.color_photos(run)


def commands(
    runs: Sequence[Run], *, config: str, overrides: Mapping[str, Any], rows: Sequence[str], directory: Path
) -> str:
    """A shell script of one command a run that is not done: pretrainings, then what starts from them, then the report.

    Args:
        runs: of the study.
        config: the configuration file.
        overrides: dotted field -> value, as they were given.
        rows: that were asked for.
        directory: the study's.
    """
    given = [f"--config.{field}={value}" for field, value in overrides.items() if field != "stage"]
    command = ["python", "-m", "colorjax.ablate", f"--config={config}", *given, f"--workdir={directory}"]

    def line(*more: str) -> str:
        return shlex.join([*command, *more])

    def of_stage(stage: str) -> list[str]:
        return [
            line(f"--rows={run.row}", f"--seeds={run.seed}", f"--config.stage={stage}")
            for run in runs
            if run.stage == stage and run.status() != "done"
        ]

    seeds = ",".join(dict.fromkeys(str(run.seed) for run in runs))
    return "\n".join(
        [
            "# These wait for nothing.",
            *of_stage("pretrain"),
            "# These wait for all of the above.",
            *of_stage("joint"),
            "# The report, at any time.",
            line(f"--rows={','.join(rows)}", f"--seeds={seeds}", "--report"),
        ]
    )


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every setting is a --flag")
    log_to_terminal()
    state.keep_compiled_programs()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # between the trainings, which have their own
    values = flags.FLAGS
    directory = Path(values.workdir)
    if values.config is None:
        if not values.report:
            raise app.UsageError("give --config=FILE; only --report does without")
        results.write(directory, study.find(directory))
        return
    overrides = config_flags.get_override_values(values["config"])
    if "seed" in overrides:
        raise app.UsageError("give --seeds instead of --config.seed")
    try:
        seeds = list(dict.fromkeys(map(int, values.seeds)))
    except ValueError as error:
        raise app.UsageError(f"--seeds={','.join(values.seeds)}: {error}") from error
    base, rows = values.config, study.rows_named(values.rows)
    runs = study.plan(base, rows=rows, seeds=seeds, directory=directory)
    if base.stage != "both":
        runs = [run for run in runs if run.stage == base.stage]
    if values.commands:
        filename = config_flags.get_config_filename(values["config"])
        print(commands(runs, config=filename, overrides=overrides, rows=rows, directory=directory))
        return
    if not values.report:
        todo = [run for run in runs if not run.trained()]
        seconds = estimate.seconds_per_step(
            todo,
            measured_in=study.find(directory, planned=runs),
            # One run alone says soon enough itself how long it takes.
            time_them=values.plan or len(todo) > 1,
        )
        print(estimate.plan_table(runs, seconds), flush=True)
        if values.plan:
            return
        ok = carry_out(runs, directory=directory)
    else:
        ok = True
    results.write(directory, study.find(directory, planned=runs))
    _log.info("the report is %s", directory / "report.html")
    if not ok:
        sys.exit(1)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The configuration that the rows change, as train.py takes it.")
    flags.DEFINE_string("workdir", None, "The study's directory.", required=True)
    flags.DEFINE_string("rows", "all", "all, cures, or rows of configs/ablations.py with commas between.")
    flags.DEFINE_list("seeds", ["0"], "The seeds with which every row is trained.")
    flags.DEFINE_bool("plan", False, "Say what there is to do and how long it takes, and stop.")
    flags.DEFINE_bool("commands", False, "Print one command a run, and stop.")
    flags.DEFINE_bool("report", False, "Only write the report of what there is.")
    app.run(_main)
