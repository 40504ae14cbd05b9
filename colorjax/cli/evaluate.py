"""`colorjax evaluate`: measures a trained model on a whole split."""

import argparse
from pathlib import Path

from colorjax.cli.arguments import CHECKPOINT, Parser, listed, number
from colorjax.cli.errors import as_usage_error

DESCRIPTION = """Measures a trained model on a whole split: PSNR, SSIM, colorfulness, AuC, accuracy and others.

Three baselines are measured too: the annealed prior, the mean color, and gray. It prints a table, and writes metrics
and pictures."""

EXAMPLES = """
colorjax evaluate --workdir=runs/paper
colorjax evaluate --workdir=runs/paper --temperature=0.1,0.2,0.38
colorjax evaluate --workdir=runs/paper --data-dir=~/food --split=validation --frechet
colorjax evaluate --data-dir=packs/food101 --out=evaluation
"""


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add(
        "--checkpoint",
        "--workdir",
        metavar="PATH",
        help=f"the colorizer or classifier: {CHECKPOINT}; by default food101",
    )
    add("--split", default="test", choices=("train", "validation", "test"), help="which photos to measure")
    add("--data-dir", metavar="DIR", help="where the photos are; by default the training's config.data.dir")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the results; by default evaluation/SPLIT in the checkpoint's folder",
    )
    add(
        "--temperature",
        type=listed(number(float, 0, 1)),
        default=[],
        metavar="T,…",
        help="decoding temperature, by default the training's; several values, as in 0.1,0.2,0.4, add a table of all",
    )
    add(
        "--calibration",
        action="store_true",
        help="measure how far the probabilities of the colors can be trusted, and draw it (reliability.svg)",
    )
    add("--frechet", action="store_true", help="add the Fréchet distance between EfficientNet-Lite0 features")
    add(
        "--lpips-weights",
        metavar="FILE",
        help="add LPIPS; the .npz file comes from `colorjax weights lpips`",
    )
    add("--inception-weights", metavar="FILE", help="add FID, with Inception's weights in this .npz file")


def run(args: argparse.Namespace) -> None:
    """Evaluates."""
    from colorjax.cli.terminal import log_to_terminal
    from colorjax.evaluation.evaluate import evaluate
    from colorjax.run import compilation
    from colorjax.run.locate import locate

    log_to_terminal()
    with as_usage_error(FileNotFoundError, ValueError, flag="--checkpoint"):
        folder = locate(args.checkpoint)
    compilation.keep_compiled_programs()
    evaluate(
        folder,
        split=args.split,
        data_dir=args.data_dir,
        out=args.out,
        temperature=args.temperature or None,
        frechet=args.frechet,
        lpips_weights=args.lpips_weights,
        inception_weights=args.inception_weights,
        calibration=args.calibration,
    )
