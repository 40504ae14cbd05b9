"""Makes the pictures of docs/gallery.md, and the strip at the top of README.md, with the weights that ship.

    python -m benchmarks gallery

Each picture shows one photograph: gray, colored by `Predictor()`, and true. The photographs are free, and not from
Food-101. Some are in scikit-image's wheel; the others come from two Debian packages, which `apt-get download` fetches
(58 MB) into a temporary folder. docs/gallery.md names their authors and licenses.
"""

import argparse
import importlib.resources
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from colorjax import Predictor
from colorjax.cli.arguments import CHECKPOINT, Parser, folder
from colorjax.run.pictures import to_gray

_PUZZLES, _SAMPLES = "usr/share/palapeli/collection", "usr/share/libjxl-testdata/external/wesaturate/500px"
_PACKAGES = ("palapeli-data", "libjxl-testdata")
_PHOTOS = {
    "citrus": f"{_PUZZLES}/citrus-fruits.jpg",
    "coffee": "coffee.png",
    "bee": f"{_PUZZLES}/european-honey-bee.jpg",
    "tulips": f"{_SAMPLES}/tmshre_riaphotographs_srgb8.png",
    "blossoms": f"{_SAMPLES}/u76c0g_bliznaca_srgb8.png",
    "cliff": f"{_SAMPLES}/cvo9xd_keong_macan_srgb8.png",
    "cat": "chelsea.png",
    "astronaut": "astronaut.png",
    "rocket": "rocket.jpg",
    "bridge": f"{_PUZZLES}/cincinnati-bridge.jpg",
}
"""Name -> the file in scikit-image or in a package."""

_IN_STRIP = ("citrus", "coffee", "cat", "bee", "tulips")
_GAP = 6  # pixels, white
_WIDTH = 300  # pixels of a photograph in the gallery
_TILE = 240, 180  # pixels of a photograph in the strip
_CAPTIONS = 70  # pixels, to the left of the strip


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("--checkpoint", metavar="PATH", help=f"{CHECKPOINT}; by default food101")
    add("--out", type=folder, default=Path("docs"), metavar="DIR", help="folder for strip.jpg and gallery/")


def run(args: argparse.Namespace) -> None:
    """Writes the pictures."""
    predictor = Predictor(args.checkpoint)
    with tempfile.TemporaryDirectory() as name:
        photos = read_photos(Path(name))
    out = args.out
    (out / "gallery").mkdir(parents=True, exist_ok=True)
    rows = {}
    for name, true in photos.items():
        (colored,) = predictor.colorize([true])
        rows[name] = [Image.fromarray(x) for x in (to_gray(true), colored, true)]
        resized = [x.resize((_WIDTH, round(x.height * _WIDTH / x.width)), Image.Resampling.LANCZOS) for x in rows[name]]
        save(side_by_side(resized), out / "gallery" / f"{name}.jpg")
    save(strip([rows[name] for name in _IN_STRIP]), out / "strip.jpg")


def read_photos(scratch: Path) -> dict[str, np.ndarray]:
    """The photographs by name, uint8 [H, W, 3]; the packages are fetched into the folder."""
    subprocess.run(["apt-get", "download", "-q", *_PACKAGES], cwd=scratch, check=True)
    for package in scratch.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, scratch], check=True)
    packaged = importlib.resources.files("skimage.data")
    photos = {}
    for name, file in _PHOTOS.items():
        with (scratch / file if "/" in file else packaged / file).open("rb") as stream:
            photos[name] = np.asarray(Image.open(stream).convert("RGB"))
    return photos


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height, in a row."""
    canvas = Image.new("RGB", (sum(x.width + _GAP for x in pictures) - _GAP, pictures[0].height), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + _GAP
    return canvas


def strip(columns: list[list[Image.Image]]) -> Image.Image:
    """The middle of each photograph, gray above colored above true, a column a photograph."""
    width, height = _TILE
    canvas = Image.new("RGB", (_CAPTIONS + len(columns) * (width + _GAP) - _GAP, 3 * (height + _GAP) - _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(16)
    for i, caption in enumerate(("gray", "colored", "true")):
        top = i * (height + _GAP)
        draw.text((0, top + height // 2), caption, fill="black", font=font, anchor="lm")
        for j, pictures in enumerate(columns):
            canvas.paste(cropped(pictures[i], width, height), (_CAPTIONS + j * (width + _GAP), top))
    return canvas


def cropped(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture at this size."""
    scale = max(width / picture.width, height / picture.height)
    left, top = (picture.width - width / scale) / 2, (picture.height - height / scale) / 2
    box = left, top, picture.width - left, picture.height - top
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=box)


def save(picture: Image.Image, path: Path) -> None:
    """Writes a small JPEG."""
    picture.save(path, quality=82, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
