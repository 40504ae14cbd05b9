"""`colorjax train`, and train.py: trains both stages of a configuration, then evaluates the colorizer."""

import argparse
import logging
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from colorjax.cli import configuration
from colorjax.cli.arguments import Parser, number, workdir
from colorjax.cli.errors import UsageError, one_line, run_command

DESCRIPTION = """Trains both stages of a configuration, then evaluates the colorizer on the test split.

Everything goes into --workdir: configuration, checkpoints, metrics, pictures. The same command again goes on from the
newest checkpoint. SIGTERM and Ctrl-C save a checkpoint and stop."""

EXAMPLES = """
colorjax train
colorjax train --config=configs/paper.py --fields
colorjax train --config=configs/paper.py --config.data.dir=~/tensorflow_datasets --workdir=runs/paper
colorjax train --config=configs/paper.py:no_fusion --workdir=runs/no_fusion
colorjax train --config=configs/paper.py --workdir=/shared/run --distributed
"""

_log = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    configuration.add_arguments(parser, default="configs/quickstart.py")
    add = parser.add_argument
    add("--fields", action="store_true", help="list the configuration's fields and rows, and stop")
    add(
        "--workdir",
        type=workdir,
        default="runs/quickstart",
        metavar="DIR",
        help="the run's folder; on several hosts, one that all see",
    )
    several = parser.add_argument_group("several hosts")
    add = several.add_argument
    add(
        "--distributed",
        action="store_true",
        help="start jax.distributed; TPU pods, Slurm and Open MPI need no more, other clusters the three flags below",
    )
    add("--coordinator", metavar="HOST:PORT", help="of process 0")
    add("--processes", type=number(int, 1), metavar="N", help="how many processes there are")
    add("--process", type=number(int, 0), metavar="N", help="which of them this is, from 0")


def run(args: argparse.Namespace) -> None:
    """Trains and evaluates."""
    if args.fields:
        print(configuration.describe(args.config, args.overrides))
        return
    _check_hosts(args)
    from colorjax.cli.terminal import log_to_terminal

    log_to_terminal()
    config = configuration.load(args.config, args.overrides)
    if args.distributed:
        import jax

        try:
            jax.distributed.initialize(args.coordinator, args.processes, args.process)
        except (ValueError, RuntimeError) as error:
            where = "where JAX does not find the processes by itself, give --coordinator, --processes and --process"
            raise UsageError(f"--distributed: {one_line(error)} ({where})") from error
    _log.info("training %s in %s", args.config, args.workdir)  # a word before imports that take seconds
    from colorjax.run import compilation
    from colorjax.run.workdir import local_path
    from colorjax.training.termination import termination

    compilation.keep_compiled_programs()

    def train_and_evaluate() -> None:
        with termination(signal.SIGTERM, signal.SIGINT):
            _train_and_evaluate(config, local_path(args.workdir))

    if not args.distributed:
        train_and_evaluate()
        return
    try:
        status = run_command(train_and_evaluate, debug=args.debug)
    except Exception:
        traceback.print_exc()
        status = 1
    if status:
        _leave(status)


def _check_hosts(args: argparse.Namespace) -> None:
    """Refuses flags of several hosts that do not hold together."""
    for name in ("coordinator", "processes", "process"):
        if getattr(args, name) is not None and not args.distributed:
            raise UsageError(f"--{name} is for several hosts: add --distributed")
    if args.coordinator is not None and not re.fullmatch(r".+:\d+", args.coordinator):
        raise UsageError(f"--coordinator is {args.coordinator!r}; it must be HOST:PORT, such as 10.0.0.1:1234")
    if args.process is not None and args.processes is not None and args.process >= args.processes:
        raise UsageError(f"--process is {args.process}; with --processes={args.processes} it must be below that")


def _leave(status: int) -> NoReturn:
    """Ends the process as it is: jax.distributed would wait minutes for the other hosts, which wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _train_and_evaluate(config: Any, workdir: Path) -> None:
    from colorjax.evaluation.evaluate import evaluate
    from colorjax.run.sharding import is_lost_host
    from colorjax.run.workdir import checkpoint_dir, evaluation_dir
    from colorjax.training.loop import train

    try:
        train(config, workdir)
        if config.stage == "pretrain" or config.joint.steps == 0:
            _log.info("checkpoints: %s", checkpoint_dir(workdir, "pretrain"))
            _log.info("next: the same command with --config.stage=joint trains the colorizer")
            return
        evaluate(workdir, split="test")
    except SystemExit:
        _log.info("stopped; the same command goes on from the newest checkpoint in %s", workdir)
        raise
    except Exception as error:
        if not is_lost_host(error):
            raise
        raise ConnectionError(
            "another host has ended or cannot be reached. The same command on every host goes on from the newest "
            f"checkpoint. ({error})"
        ) from error
    _log.info("checkpoints: %s", checkpoint_dir(workdir, "joint"))
    _log.info("pictures: %s", evaluation_dir(workdir, "test") / "panel.png")
    _log.info("next: colorjax predict PHOTO.jpg --out=colored --checkpoint=%s", workdir)
