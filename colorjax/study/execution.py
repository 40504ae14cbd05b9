"""Carries out a study: trains and evaluates its runs, and prints them as commands for a cluster's scheduler."""

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
from colorjax.study.plan import Run, copy_training, find_runs
from colorjax.training.loop import train

_log = logging.getLogger(__name__)


def carry_out(runs: Sequence[Run], *, directory: Path, lpips_weights: str | Path | None = None) -> bool:
    """Trains and evaluates the runs that are not done, and writes the report after each.

    If a run fails, its workdir and the report get the reason, and the next run starts.

    Args:
        runs: a pretraining comes before the runs that start from it.
        directory: the study's folder.
        lpips_weights: file of LPIPS' weights (see evaluate); None leaves LPIPS out.

    Returns:
        Whether no run failed.

    Raises:
        SystemExit: 143 on SIGTERM, after saving.
    """
    judges = ("lpips",) if lpips_weights else ()
    failed: dict[str, str] = {}
    for i, run in enumerate(runs):
        if run.evaluated(judges=judges) and (run.stage == "pretrain" or figure.has_photos(run)):
            continue
        _log.info("run %d of %d: %s", i + 1, len(runs), run.name)
        run.note_failure("")
        try:
            _carry_out(run, lpips_weights)
        except Exception as error:  # the other runs can still succeed
            _log.exception("%s failed", run.name)
            failed[run.name] = f"{type(error).__name__}: {error}"
            run.note_failure(failed[run.name])
        finally:
            # The next run needs other programs.
            jax.clear_caches()
        report.write(directory, find_runs(directory, planned=runs))
    for name, reason in failed.items():
        _log.error("%s failed: %s", name, reason)
    return not failed


def _carry_out(run: Run, lpips_weights: str | Path | None) -> None:
    if run.pretraining and not run.pretraining.trained():
        raise ValueError(f"it starts from {run.pretraining.name}, which is {run.pretraining.status()}")
    if run.stage == "joint":
        prior = prior_file(run.config, run.workdir)
        if not prior.exists():
            count_prior(run.config, prior)
        if copy_training(run):
            _log.info("copied the training of %s, which is the same", run.same_training and run.same_training.name)
    train(run.config, run.workdir)
    if not run.evaluated(judges=("lpips",) if lpips_weights else ()):
        evaluate(run.workdir, split="test", lpips_weights=lpips_weights if run.stage == "joint" else None)
    if run.stage == "joint":
        figure.color_photos(run)


def commands(
    runs: Sequence[Run],
    *,
    config: str,
    overrides: Mapping[str, Any],
    rows: Sequence[str],
    directory: Path,
    lpips_weights: str | Path | None = None,
) -> str:
    """A shell script with a command for each run that is not done: pretrainings, joint stages, and the report.

    Args:
        runs: the study's runs.
        config: the configuration file.
        overrides: dotted field -> value, as given on the command line.
        rows: the rows of the study.
        directory: the study's folder.
        lpips_weights: file of LPIPS' weights; None leaves LPIPS out.
    """
    given = [f"--config.{field}={value}" for field, value in overrides.items() if field != "stage"]
    command = ["python", "-m", "colorjax", "ablate", f"--config={config}", *given, f"--workdir={directory}"]
    command += [f"--lpips-weights={lpips_weights}"] if lpips_weights else []

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
            "# These can start at once, in parallel.",
            *of_stage("pretrain"),
            "# These can start when all of the above are done.",
            *of_stage("joint"),
            "# This writes the report of the runs that are done, at any time.",
            line(f"--rows={','.join(rows)}", f"--seeds={seeds}", "--report"),
        ]
    )
