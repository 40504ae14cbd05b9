"""Compares `colorjax predict` with a plain Python loop: time and memory, for a folder of photos.

    python -m benchmarks predict --checkpoint=runs/paper --out=OUT

The photos are scikit-image's, enlarged to 0.3 to 12 megapixels, and one of --megapixels. Each program runs in processes
of its own, twice, so that the second start finds its programs compiled. The loop colors one whole photo after another:
it reads it with Pillow, runs the network on it alone, scales the colors up bilinearly and writes it with
Pillow. `OUT/predict.json` holds the seconds, the processor's seconds and the peak memory.
"""

import argparse
import importlib.resources
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from colorjax.cli.arguments import CHECKPOINT, Parser, folder, number

_NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "retina.jpg")


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help=CHECKPOINT)
    add("--out", type=folder, required=True, metavar="DIR", help="folder for photos, results and predict.json")
    add("--photos", type=number(int, 1), default=48, metavar="N", help="photos in the folder")
    add("--megapixels", type=number(float, 0.1), default=100, metavar="N", help="size of the large photo")
    add("--loop", type=Path, nargs=2, metavar=("FROM", "TO"), help="only run the plain loop, from a folder to another")


def run(args: argparse.Namespace) -> None:
    """Measures both programs on the folder and on the large photo, with a first and a second start."""
    if args.loop:
        plain_loop(args.checkpoint, *args.loop)
        return
    out = args.out
    photos, scan = out / "photos", out / "scan"
    write_photos(photos, count=args.photos)
    scan.mkdir(parents=True, exist_ok=True)
    side = round((args.megapixels * 1e6) ** 0.5)
    _photo("retina.jpg").resize((side, side), Image.Resampling.BILINEAR).save(scan / "scan.jpg", quality=90)
    record = {"command": " ".join(sys.argv), "processors": os.cpu_count()}
    for name, source in (("folder", photos), ("scan", scan)):
        for start in ("first", "second"):
            for way in ("command line", "plain loop"):
                result = out / f"{name} {way}"
                record[f"{name}, {way}, {start} start"] = measured(args.checkpoint, way, source, result)
                print(name, way, start, record[f"{name}, {way}, {start} start"], flush=True)
                (out / "predict.json").write_text(json.dumps(record, indent=2) + "\n")


def write_photos(folder: Path, *, count: int) -> None:
    """The folder of photos: JPEG and PNG in turn, with sizes evenly spaced on a logarithmic scale."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).permutation(np.geomspace(0.3e6, 12e6, count))
    for i, wanted in enumerate(pixels):
        photo = _photo(_NAMES[i % len(_NAMES)])
        scale = (wanted / (photo.width * photo.height)) ** 0.5
        photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
        photo.save(folder / f"{i:03}.{'jpg' if i % 2 else 'png'}")


def measured(checkpoint: str, way: str, source: Path, target: Path) -> dict[str, float]:
    """Runs one program in its own process; returns seconds, processor seconds and peak memory in GB (10^9 bytes)."""
    if way == "command line":
        command = ["-m", "colorjax", "predict", str(source), "--out", str(target), "--overwrite"]
    else:
        command = ["-m", "benchmarks", "predict", "--loop", str(source), str(target), f"--out={target.parent}"]
    root = Path(__file__).parent.parent
    # The loop's compiled programs are cached too, in the same folder.
    cache = {"JAX_COMPILATION_CACHE_DIR": str((target.parent / f"programs of the {way}").absolute())}
    environment = os.environ | cache | {"PYTHONPATH": str(root)}
    started = time.perf_counter()
    arguments = [sys.executable, *command, f"--checkpoint={checkpoint}"]
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{way} failed: {' '.join(arguments)}")
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def plain_loop(checkpoint: str, source: Path, target: Path) -> None:
    """The plain loop: one whole photo after another."""
    import jax.numpy as jnp

    from colorjax import color
    from colorjax.model.decode import compose_photo
    from colorjax.photos.predictor import Predictor

    predictor = Predictor(checkpoint)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        rgb = np.asarray(Image.open(path).convert("RGB"))
        (prediction,) = predictor.predict([rgb])
        l = color.rgb_to_lab(rgb[None])[..., :1]
        colored = color.to_uint8(compose_photo(l, jnp.asarray(prediction.ab()[None])))[0]
        Image.fromarray(np.asarray(colored)).save(target / path.name, quality=95)


def _photo(name: str) -> Image.Image:
    with (importlib.resources.files("skimage.data") / name).open("rb") as stream:
        return Image.open(stream).convert("RGB")
