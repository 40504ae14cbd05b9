"""`colorjax data`: writes a pack, which training reads at the disk's speed."""

import argparse
from pathlib import Path

from colorjax.cli import configuration
from colorjax.cli.arguments import Parser, listed
from colorjax.cli.errors import UsageError

DESCRIPTION = """Decodes photos once and writes them as a pack.

Decoding a JPEG file takes some milliseconds of one core, in every epoch. A pack is read at the disk's speed, without
TensorFlow. The photos have config.data.resolution pixels a side, 3 bytes each: Food-101 at 256 pixels takes 20 GB.
config.data.train_fraction is applied now; cropping, rotation and scaling stay random in training.

The pack appears when it is complete; a command that was stopped starts over."""

EXAMPLES = """
colorjax data --config=configs/paper.py --config.data.dir=~/tensorflow_datasets --out=packs/food256
colorjax train --config=configs/paper.py --config.data.source=packed --config.data.dir=packs/food256
"""

_SPLITS = ("train", "validation", "test")


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    configuration.add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new pack")
    parser.add_argument(
        "--splits",
        type=listed(_split),
        default=",".join(_SPLITS),
        metavar="NAMES",
        help="splits to write, with commas between",
    )


def _split(name: str) -> str:
    if name not in _SPLITS:
        raise argparse.ArgumentTypeError(f"{name!r} is not a split; the splits are {', '.join(_SPLITS)}")
    return name


def run(args: argparse.Namespace) -> None:
    """Writes the pack."""
    config = configuration.load(args.config, args.overrides).data
    if config.source == "packed":
        raise UsageError(
            "--config.data.source is packed, which is what this command writes; it must be food101, folder or sample"
        )
    from colorjax.cli.terminal import log_to_terminal
    from colorjax.data import open_source
    from colorjax.data.packed import write_pack

    log_to_terminal()
    write_pack(
        open_source(config),
        args.out,
        splits=args.splits,
        resolution=config.resolution,
        train_fraction=config.train_fraction,
    )
