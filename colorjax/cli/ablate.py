"""`colorjax ablate`: trains every row with every seed, evaluates them, and writes one report."""

import logging
import signal
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from colorjax.cli.terminal import log_to_terminal
from colorjax.run import compilation
from colorjax.study import estimate, report
from colorjax.study.execution import carry_out, commands
from colorjax.study.plan import find_runs, plan_runs, rows_named

_log = logging.getLogger(__name__)


def main() -> None:
    """Runs the command."""
    config_flags.DEFINE_config_file("config", None, "The configuration that the rows change, as train.py takes it.")
    flags.DEFINE_string("workdir", None, "The study's directory.", required=True)
    flags.DEFINE_string("rows", "all", "all, cures, or rows of configs/ablations.py with commas between.")
    flags.DEFINE_list("seeds", ["0"], "The seeds with which every row is trained.")
    flags.DEFINE_bool("plan", False, "Say what there is to do and how long it takes, and stop.")
    flags.DEFINE_bool("commands", False, "Print one command a run, and stop.")
    flags.DEFINE_bool("report", False, "Only write the report of what there is.")
    app.run(_main)


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every setting is a --flag")
    log_to_terminal()
    compilation.keep_compiled_programs()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # between the trainings, which have their own
    values = flags.FLAGS
    directory = Path(values.workdir)
    if values.config is None:
        if not values.report:
            raise app.UsageError("give --config=FILE; only --report does without")
        report.write(directory, find_runs(directory))
        return
    overrides = config_flags.get_override_values(values["config"])
    if "seed" in overrides:
        raise app.UsageError("give --seeds instead of --config.seed")
    try:
        seeds = list(dict.fromkeys(map(int, values.seeds)))
    except ValueError as error:
        raise app.UsageError(f"--seeds={','.join(values.seeds)}: {error}") from error
    base, rows = values.config, rows_named(values.rows)
    runs = plan_runs(base, rows=rows, seeds=seeds, directory=directory)
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
            measured_in=find_runs(directory, planned=runs),
            # One run alone says soon enough itself how long it takes.
            time_them=values.plan or len(todo) > 1,
        )
        print(estimate.plan_table(runs, seconds), flush=True)
        if values.plan:
            return
        ok = carry_out(runs, directory=directory)
    else:
        ok = True
    report.write(directory, find_runs(directory, planned=runs))
    _log.info("the report is %s", directory / "report.html")
    if not ok:
        sys.exit(1)
