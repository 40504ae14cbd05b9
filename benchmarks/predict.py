"""Compares `colorjax predict` with a plain Python loop: time and memory, for a folder of photos.

    python benchmarks/predict.py --checkpoint=runs/paper --out=OUT

The photos are scikit-image's, enlarged to 0.3 to 12 megapixels, and one of --megapixels. Each program runs in processes
of its own, twice, so that the second start finds its programs compiled. The loop colors one whole photo after another:
it reads it with Pillow, runs the network on it alone, scales the colors up bilinearly and writes it with
Pillow. `OUT/predict.json` holds the seconds, the processor's seconds and the peak memory.
"""

import importlib.resources
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of train.py.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the photos, the results and predict.json.", required=True)
_PHOTOS = flags.DEFINE_integer("photos", 48, "Photos in the folder.")
_MEGAPIXELS = flags.DEFINE_integer("megapixels", 100, "Size of the large photo, which is measured separately.")
_LOOP = flags.DEFINE_list("loop", [], "Input and output folder: only run the plain loop.")

_NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "retina.jpg")


def main(argv: list[str]) -> None:
    del argv
    if _LOOP.value:
        plain_loop(*map(Path, _LOOP.value))
        return
    out = Path(_OUT.value)
    folder, scan = out / "photos", out / "scan"
    write_photos(folder)
    scan.mkdir(parents=True, exist_ok=True)
    side = round((_MEGAPIXELS.value * 1e6) ** 0.5)
    _photo("retina.jpg").resize((side, side), Image.Resampling.BILINEAR).save(scan / "scan.jpg", quality=90)
    record = {"command": " ".join(sys.argv), "processors": os.cpu_count()}
    for name, source in (("folder", folder), ("scan", scan)):
        for start in ("first", "second"):
            for way in ("command line", "plain loop"):
                result = out / f"{name} {way}"
                record[f"{name}, {way}, {start} start"] = measured(way, source, result)
                print(name, way, start, record[f"{name}, {way}, {start} start"], flush=True)
                (out / "predict.json").write_text(json.dumps(record, indent=2) + "\n")


def write_photos(folder: Path) -> None:
    """The folder of photos: JPEG and PNG in turn, with sizes evenly spaced on a logarithmic scale."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).permutation(np.geomspace(0.3e6, 12e6, _PHOTOS.value))
    for i, wanted in enumerate(pixels):
        photo = _photo(_NAMES[i % len(_NAMES)])
        scale = (wanted / (photo.width * photo.height)) ** 0.5
        photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
        photo.save(folder / f"{i:03}.{'jpg' if i % 2 else 'png'}")


def measured(way: str, source: Path, target: Path) -> dict[str, float]:
    """Runs one program in its own process; returns seconds, processor seconds and peak memory in GB (10^9 bytes)."""
    if way == "command line":
        command = ["-m", "colorjax", "predict", str(source), "--out", str(target), "--overwrite"]
    else:
        command = [__file__, f"--loop={source},{target}", f"--out={_OUT.value}"]
    root = Path(__file__).parent.parent
    # The loop's compiled programs are cached too, in the same folder.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(_OUT.value, f"programs of the {way}").absolute())}
    environment = os.environ | cache | {"PYTHONPATH": str(root)}
    started = time.perf_counter()
    arguments = [sys.executable, *command, f"--checkpoint={_CHECKPOINT.value}"]
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{way} failed: {' '.join(arguments)}")
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def plain_loop(source: Path, target: Path) -> None:
    """The plain loop: one whole photo after another."""
    import jax.numpy as jnp

    from colorjax import color
    from colorjax.model.colorizer import Outputs
    from colorjax.model.decode import decode_photo
    from colorjax.photos.predictor import Predictor

    predictor = Predictor(_CHECKPOINT.value)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        rgb = np.asarray(Image.open(path).convert("RGB"))
        (prediction,) = predictor.predict([rgb])
        l = color.rgb_to_lab(rgb[None])[..., :1]
        outputs = Outputs(jnp.zeros((1, 1)), jnp.asarray(prediction.ab()[None]))
        colored = color.to_uint8(decode_photo(outputs, l, temperature=1.0))[0]
        Image.fromarray(np.asarray(colored)).save(target / path.name, quality=95)


def _photo(name: str) -> Image.Image:
    with (importlib.resources.files("skimage.data") / name).open("rb") as stream:
        return Image.open(stream).convert("RGB")


if __name__ == "__main__":
    app.run(main)
