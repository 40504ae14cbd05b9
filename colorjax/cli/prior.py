"""`colorjax prior`: counts the colors of a training split into a file that many runs share.

colorjax prior --config=configs/paper.py --config.data.dir=DIR --out=PATH
"""

import datetime
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from colorjax import data
from colorjax.data.batches import center_crop
from colorjax.data.prior import count


def main() -> None:
    """Runs the command."""
    config = config_flags.DEFINE_config_file("config", None, "Its `data` is counted.")
    out = flags.DEFINE_string("out", "", "The file to write; '' is prior.npz beside the data.")
    photos = flags.DEFINE_integer("photos", None, "Count only the first so many.", lower_bound=1)
    flags.mark_flag_as_required("config")
    app.run(lambda _: _main(config.value.data, out=out.value, photos=photos.value))


def _cropped(batches: Iterable[Mapping[str, Any]], size: int) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield {"image": center_crop(batch["image"], size), "mask": batch["mask"]}


def _with_progress(batches: Iterable[Mapping[str, Any]], total: int) -> Iterator[Mapping[str, Any]]:
    """Passes the batches on, with a line on the terminal about how far and how fast."""
    start, photos = time.perf_counter(), 0
    try:
        for batch in batches:
            line = f"{photos} of {total} photos"
            if photos:
                rate = photos / (time.perf_counter() - start)
                left = datetime.timedelta(seconds=round(max(total - photos, 0) / rate))
                line += f", {rate:.0f}/s, {left} left"
            print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)
            yield batch
            photos += int(np.sum(batch["mask"] > 0))
    finally:
        print(file=sys.stderr)


def _main(data_config: Any, *, out: str, photos: int | None) -> None:
    if not out and not data_config.dir:
        raise app.UsageError("give --out=PATH, or --config.data.dir=DIR for DIR/prior.npz")
    path = Path(out or Path(data_config.dir, "prior.npz")).expanduser()
    batches = data.eval_batches(data_config, "train", batch_size=64)
    total = data.dataset_info(data_config).sizes["train"]
    total = total if photos is None else min(photos, total)
    batches = _with_progress(_cropped(batches, data_config.image_size), total)
    prior = count(batches, limit=photos, source=f"{data_config.source}:train")
    prior.save(path)
    a, b = prior.mean_ab
    print(f"{path}: {prior.photos} photos of {prior.source}, mean ab ({a:.1f}, {b:.1f})")
