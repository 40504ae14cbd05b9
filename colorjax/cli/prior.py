"""`colorjax prior`: counts the colors of a training split into a file that many runs share."""

import argparse
import datetime
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from colorjax.cli import configuration
from colorjax.cli.arguments import Parser, number
from colorjax.cli.errors import UsageError

DESCRIPTION = """Counts the colors of a training split: how often each of the 313 color bins occurs.

Training weights rare colors by these counts. `colorjax train` counts them itself, once for each workdir; count them
with this command to share them between runs, and name the file by --config.data.prior."""

EXAMPLES = """
colorjax prior --config=configs/paper.py --config.data.dir=~/tensorflow_datasets --out=food101.npz
colorjax train --config=configs/paper.py --config.data.prior=food101.npz --workdir=runs/paper
"""


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    configuration.add_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write; by default DIR/prior.npz, where "
                        "DIR is config.data.dir")  # fmt: skip
    parser.add_argument("--photos", type=number(int, 1), metavar="N", help="count the first N photos; by default all")


def run(args: argparse.Namespace) -> None:
    """Counts, and writes the file."""
    config = configuration.load(args.config, args.overrides).data
    if not args.out and not config.dir:
        raise UsageError("--out is missing: give --out=FILE, or --config.data.dir=DIR for DIR/prior.npz")
    path = Path(args.out or Path(config.dir, "prior.npz")).expanduser()

    from colorjax import data
    from colorjax.data.batches import center_crop
    from colorjax.data.prior import count

    total = data.dataset_info(config).sizes["train"]
    total = total if args.photos is None else min(args.photos, total)
    batches = _with_progress(data.eval_batches(config, "train", batch_size=64), total)
    cropped = (batch | {"image": center_crop(batch["image"], config.image_size)} for batch in batches)
    prior = count(cropped, limit=args.photos, source=f"{config.source}:train")
    prior.save(path)
    a, b = prior.mean_ab
    print(f"{path}: {prior.photos} photos of {prior.source}, mean ab ({a:.1f}, {b:.1f})")


def _with_progress(batches: Iterable[Mapping[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """Yields the batches, and shows on the terminal how far and how fast it goes."""
    start, photos = time.perf_counter(), 0
    try:
        for batch in batches:
            line = f"{photos} of {total} photos"
            if photos:
                rate = photos / (time.perf_counter() - start)
                left = datetime.timedelta(seconds=round(max(total - photos, 0) / rate))
                line += f", {rate:.0f}/s, {left} left"
            print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)
            yield dict(batch)
            photos += int((batch["mask"] > 0).sum())
    finally:
        print(file=sys.stderr)
