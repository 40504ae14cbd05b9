"""`colorjax ablate`: trains every row with every seed, evaluates them, and writes one report."""

import argparse
import logging
import signal
import sys

from colorjax.cli import configuration
from colorjax.cli.arguments import Parser, folder, listed, number
from colorjax.cli.errors import UsageError, as_usage_error

DESCRIPTION = """Runs a study: trains every row with every seed, evaluates them, and writes one report.

A row changes some fields of the configuration; `colorjax train --config=FILE --fields` lists the rows. The same command
again goes on where it stopped."""

EXAMPLES = """
colorjax ablate --config=configs/paper64.py --workdir=runs/study --plan
colorjax ablate --config=configs/paper64.py --workdir=runs/study --rows=full,no_fusion --seeds=0,1
colorjax ablate --workdir=runs/study --report
"""

_log = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    configuration.add_arguments(parser, required=False)
    add = parser.add_argument
    add("--workdir", type=folder, required=True, metavar="DIR", help="the study's folder")
    add("--rows", default="all", metavar="NAMES", help="all, cures, or names of rows with commas between")
    add(
        "--seeds",
        type=listed(number(int, 0, 2**31 - 1)),
        default="0",
        metavar="N,…",
        help="the seeds with which every row is trained",
    )
    add("--lpips-weights", metavar="FILE", help="report LPIPS too; the .npz file comes from `colorjax weights lpips`")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="print what there is to do and how long it takes, and stop")
    what.add_argument("--commands", action="store_true", help="print one command for each run, and stop")
    what.add_argument("--report", action="store_true", help="write the report of the runs that are done, and stop")


def run(args: argparse.Namespace) -> int:
    """Runs the study; the status is 1 if a run failed."""
    from colorjax.cli.terminal import log_to_terminal
    from colorjax.run import compilation
    from colorjax.study import estimate, report
    from colorjax.study.execution import carry_out, commands
    from colorjax.study.plan import find_runs, plan_runs, rows_named

    log_to_terminal()
    compilation.keep_compiled_programs()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # between the trainings, which have their own
    directory = args.workdir
    if args.config is None:
        if not args.report:
            raise UsageError("--config is missing; only --report needs none")
        if not (runs := find_runs(directory)):
            raise UsageError(f"--workdir is {directory}, which has no run of a study")
        report.write(directory, runs)
        _log.info("the report is %s", directory / "report.html")
        return 0
    if "seed" in args.overrides:
        raise UsageError("--config.seed does not go with a study; give --seeds")
    base = configuration.load(args.config, args.overrides)
    with as_usage_error(ValueError):
        rows = rows_named(args.rows)
        runs = plan_runs(base, rows=rows, seeds=list(dict.fromkeys(args.seeds)), directory=directory)
    if base.stage != "both":
        runs = [run for run in runs if run.stage == base.stage]
    if args.commands:
        print(
            commands(
                runs,
                config=args.config,
                overrides=args.overrides,
                rows=rows,
                directory=directory,
                lpips_weights=args.lpips_weights,
            )
        )
        return 0
    ok = True
    if not args.report:
        todo = [run for run in runs if not run.trained()]
        seconds = estimate.seconds_per_step(
            todo,
            measured_in=find_runs(directory, planned=runs),
            # A single run tells soon enough how long it takes.
            time_them=args.plan or len(todo) > 1,
        )
        print(estimate.plan_table(runs, seconds), flush=True)
        if args.plan:
            return 0
        ok = carry_out(runs, directory=directory, lpips_weights=args.lpips_weights)
    report.write(directory, find_runs(directory, planned=runs))
    _log.info("the report is %s", directory / "report.html")
    return 0 if ok else 1
