"""The speed of the input pipeline, and the time that it adds to the step."""

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import measure
from benchmarks.joint import JointStep, config, small_config
from benchmarks.measure import Row, Settings
from colorjax import data
from colorjax.cli.arguments import Parser
from colorjax.data.packed import write_pack
from colorjax.run import sharding

TITLE = "Input: photos a second without a step, and the step on photographs over the step on one repeated batch"

_PHOTO_PIXELS = 512  # the longer side of Food-101's files
_PHOTOS = 256  # files made from the sample, if no folder is given


def add_arguments(parser: Parser) -> None:
    """Adds the table's arguments."""
    parser.add_argument("--photos", metavar="DIR", help="a folder of photo files; by default made from the sample")


def rows(settings: Settings) -> list[Row]:
    """A row for each source: tf.data over JPEG files, and a pack of the same photos.

    Without --photos the files are crops of scikit-image's photographs, of Food-101's size and quality. On a CPU the
    step is that of a small model, whose input is the more likely to be late.
    """
    accelerator = jax.default_backend() != "cpu" and not settings.quick
    batch, steps = (32, 50) if accelerator else (4, 2) if settings.quick else (32, 10)
    own = config(batch=batch) if accelerator else small_config(batch=batch, size=32 if settings.quick else 64)
    step = JointStep.make(own)
    with tempfile.TemporaryDirectory(prefix="colorjax-input-") as directory:
        folder = settings.photos or _write_photos(Path(directory) / "photos", count=32 if settings.quick else _PHOTOS)
        with own.unlocked():
            own.data.source, own.data.dir = "folder", folder
        sources = {"tf.data": own.data.copy_and_resolve_references()}
        packed = own.data.copy_and_resolve_references()
        with packed.unlocked():
            packed.source, packed.dir = "packed", str(Path(directory) / "pack")
        write_pack(
            data.open_source(own.data),
            packed.dir,
            splits=["train"],
            resolution=own.data.resolution,
            train_fraction=own.data.train_fraction,
        )
        sources["pack"] = packed

        feeds = {"repeated": step.one_batch()} | {
            name: _to_devices(of, batch, step.mesh) for name, of in sources.items()
        }
        turns = {name: step.running(feed, steps=steps) for name, feed in feeds.items()}
        seconds = measure.race(turns, repeats=settings.repeats)
        cores = measure.environment()["cores"]
        found: list[Row] = [{"source": "one repeated batch", "ms a step": 1e3 * seconds["repeated"] / steps}]
        for name, of in sources.items():
            alone = _photos_per_second(of, batch, batches=4 if settings.quick else 40)
            found.append(
                {
                    "source": name,
                    "ms a step": 1e3 * seconds[name] / steps,
                    "step over repeated": seconds[name] / seconds["repeated"],
                    "photos/s alone": alone,
                    "photos/s a core": alone / cores,
                    "photos/s that the step takes": batch * steps / seconds["repeated"],
                }
            )
        return found


def _to_devices(data_config: Any, batch: int, mesh: Any) -> Iterator[Any]:
    batches = data.train_batches(data_config, batch_size=batch, seed=0)
    return (sharding.to_devices(photos, mesh) for photos in batches)


def _photos_per_second(data_config: Any, batch: int, *, batches: int) -> float:
    feed = data.train_batches(data_config, batch_size=batch, seed=0)
    for _ in itertools.islice(feed, 4):
        pass
    start = time.perf_counter()
    for _ in itertools.islice(feed, batches):
        pass
    return batch * batches / (time.perf_counter() - start)


def _write_photos(root: Path, *, count: int) -> str:
    """JPEG files `train/class/number.jpg` and `test/…`, as config.data.source "folder" reads them."""
    sample = config(batch=1, size=_PHOTO_PIXELS * 7 // 8).data
    batch = next(data.train_batches(sample, batch_size=count, seed=0))
    noise = np.random.default_rng(0)
    for number, (image, label) in enumerate(zip(batch["image"], batch["label"], strict=True)):
        split = "test" if number % 8 == 0 else "train"
        file = root / split / str(label) / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        # Noise, since enlarged crops are smoother than photos and would decode faster.
        rough = np.clip(image + noise.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(rough).save(file, quality=90)
    return str(root)
