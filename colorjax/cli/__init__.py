"""The `colorjax` command: one module for each subcommand, each a thin layer over the library.

A subcommand's module has `DESCRIPTION` and `EXAMPLES` for its help, `add_arguments(parser)`, and `run(args)`, which
returns the exit status, or None for 0. It imports the library inside `run`, so that `--help` is quick.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import colorjax
from colorjax.cli.arguments import Parser, did_you_mean
from colorjax.cli.errors import UsageError, run_command

COMMANDS = {
    "predict": "color photos and films",
    "demo": "serve a web page that colors photos",
    "train": "train a colorizer by a configuration file",
    "evaluate": "measure a trained colorizer on a data set",
    "attention": "draw what a colorizer's attentions look at from a point of a photo",
    "ablate": "train and compare variants of a configuration",
    "data": "decode a data set once, so that training reads it faster",
    "prior": "count the colors of a data set",
    "teacher": "compute a teacher's features of a data set",
    "export": "write a colorizer for other programs",
    "weights": "list the weights that ship with the package",
}
_HELP = """usage: colorjax COMMAND …

Automatic colorization of grayscale photographs with self-attention.

commands:
{}

`colorjax COMMAND --help` describes a command. `colorjax --version` prints the version."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the subcommand that the arguments name, and exits with its status.

    Args:
        argv: the arguments; by default those of the process.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # TensorFlow's remarks about the processor say nothing to a user
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(run_command(lambda: _run(arguments), debug="--debug" in arguments))


def _run(arguments: list[str]) -> int | None:
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h"):
        print(_HELP.format("\n".join(f"  {command:10}{what}" for command, what in COMMANDS.items())))
        return 0
    if name == "--version":
        print(f"colorjax {colorjax.__version__}")
        return 0
    if name not in COMMANDS:
        close = did_you_mean(name, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        raise UsageError(f"{name!r} is not a command of colorjax{close}")
    module = importlib.import_module(f"colorjax.cli.{name}")
    parser = Parser(f"colorjax {name}", description=module.DESCRIPTION, examples=module.EXAMPLES)
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show an error's traceback")
    return module.run(parser.parse(rest))
