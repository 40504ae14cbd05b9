"""A study by one command: trains every row with every seed, evaluates them, and writes one report.

    python -m colorjax ablate --config=configs/paper64.py --rows=all --seeds=0,1 --workdir=runs/study

`--plan` says what there is to do and how long it takes, `--commands` prints it as one command a run for a cluster's
scheduler, and `--report` writes the report of what there is. The same command again goes on where it stopped.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from colorjax.evaluation.evaluate import evaluate
from colorjax.run.prior import count_prior
from colorjax.run.workdir import prior_file
from colorjax.study import figure, report
from colorjax.study.plan import Run, find_runs, take_over
from colorjax.training.loop import train

_log = logging.getLogger(__name__)


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
        report.write(directory, find_runs(directory, planned=runs))
    for name, reason in failed.items():
        _log.error("%s failed: %s", name, reason)
    return not failed


def _carry_out(run: Run) -> None:
    if run.pretraining and not run.pretraining.trained():
        raise ValueError(f"it starts from {run.pretraining.name}, which is {run.pretraining.status()}")
    if run.stage == "joint":
        prior = prior_file(run.config, run.workdir)
        if not prior.exists():
            count_prior(run.config, prior)
        if take_over(run):
            _log.info("it has the training of %s, which is copied", run.same_training and run.same_training.name)
    train(run.config, run.workdir)
    if not run.evaluated():
        evaluate(run.workdir, split="test")
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
    command = ["python", "-m", "colorjax", "ablate", f"--config={config}", *given, f"--workdir={directory}"]

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
