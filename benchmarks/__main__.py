"""`python -m benchmarks NAME`: measures one thing, prints it as Markdown, and writes it as JSON.

    python -m benchmarks patch_sum                   the patch sum's kernels, compared with XLA and PyTorch
    python -m benchmarks step --json=step.json       the whole joint step, compared with the same model in PyTorch
    python -m benchmarks compile --topology=v5e:2x2  what the compiler estimates for chips that need not be here
    python -m benchmarks NAME --help                 describes one

The comparisons need PyTorch (pip install torch==2.13.0); without it their columns are left out. Nothing else should run
on the machine meanwhile. Its load at the start is recorded with the numbers.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import measure
from colorjax.cli.arguments import Parser, did_you_mean, number
from colorjax.cli.errors import UsageError, run_command

# JAX and PyTorch share the GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

TABLES = ("patch_sum", "relation", "attention", "step", "input", "startup", "growth", "compile", "drift", "device")
"""Modules with a TITLE and a function `rows`; some add arguments of their own."""

SCRIPTS = ("colors", "points", "films", "predict", "export", "ship", "pieces", "gallery", "page", "terminal")
"""Modules with a function `run`, which prints and writes what it finds itself."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the benchmark that the arguments name, and exits: see `colorjax.cli.main`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(run_command(lambda: _run(arguments), debug="--debug" in arguments))


def make_parser(name: str) -> tuple[Parser, Any]:
    """The parser of a benchmark's arguments, and its module."""
    module = importlib.import_module(f"benchmarks.{name}")
    description, _, examples = str(module.__doc__).partition("\n\n    ")
    parser = Parser(
        f"python -m benchmarks {name}",
        description=description,
        examples=examples.partition("\n\n")[0] or f"python -m benchmarks {name} --json={name}.json",
    )
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    parser.add_argument("--repeats", type=number(int, 1), default=10, metavar="N", help="timed runs; the median counts")
    if name in TABLES:
        parser.add_argument("--json", metavar="FILE", help="file for the rows as JSON, with versions and device")
        parser.add_argument("--quick", action="store_true", help="run all code with the least work; no number counts")
    parser.add_argument("--debug", action="store_true", help="show an error's traceback")
    return parser, module


def _run(arguments: list[str]) -> None:
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h"):
        print(f"{__doc__}\nNAME is one of {', '.join(TABLES + SCRIPTS)}.")
        return
    if name not in TABLES + SCRIPTS:
        close = did_you_mean(name, TABLES + SCRIPTS) or f"; there are {', '.join(TABLES + SCRIPTS)}"
        raise UsageError(f"{name!r} is not a benchmark{close}")
    parser, module = make_parser(name)
    args = parser.parse(rest)
    if name == "compile":
        module.prepare_environment(args.topology)
    from colorjax.cli.terminal import log_to_terminal

    log_to_terminal()
    if name in SCRIPTS:
        module.run(args)
        return
    if args.quick:
        args.repeats = 1
    record: dict[str, Any] = {"environment": measure.environment() | {"quick": args.quick}}
    record["title"] = module.TITLE
    record["rows"] = module.rows(args)
    shown = record["environment"]
    flat = [{name: value for name, value in row.items() if not isinstance(value, list)} for row in record["rows"]]
    print(f"\n{module.TITLE}\n\n{measure.markdown(flat)}\n")
    print(
        f"{shown['command']}: {shown['device']}, {shown['cores']} cores, load {shown['load']:.1f}, {shown['versions']}"
    )
    if args.quick:
        print("quick: these numbers mean nothing")
    if args.json:
        Path(args.json).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
