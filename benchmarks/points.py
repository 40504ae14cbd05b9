"""Measures color points and candidates: PSNR with 0 to 50 true colors given, and of the best of k candidates.

    python -m benchmarks points --checkpoint=runs/food64 --pack=packs/food64 --json=points.json
    python -m benchmarks points --checkpoint=runs/food64 --pack=packs/food64 --picture=points.jpg

The photos are the first test photos of a pack, which the colorizer has not seen in training. The points are at random
places and have the photo's own colors; with more points, the first ones stay. For comparison the same points are spread
without a network by Levin, Lischinski and Weiss, *Colorization using Optimization* (SIGGRAPH 2004): each place's color
is a mean of its neighbors', weighted by how alike their lightness is. Each mean has its 95% bootstrap interval over
photos. `--picture` draws a cup of coffee before and after eight points.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import scipy.sparse
import skimage.color
import skimage.data
from PIL import Image, ImageDraw
from scipy.sparse.linalg import spsolve

from benchmarks.colors import pack_photos
from colorjax import color
from colorjax.cli.arguments import CHECKPOINT, Parser, number
from colorjax.evaluation.bootstrap import interval
from colorjax.evaluation.tables import markdown_table
from colorjax.photos.predictor import Prediction, Predictor

POINTS = (0, 1, 2, 5, 10, 50)
CANDIDATES = (1, 2, 3, 5, 9)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help=CHECKPOINT)
    add("--pack", required=True, metavar="DIR", help="a pack of its data")
    add("--photos", type=number(int, 2), default=250, metavar="N", help="test photos of the pack")
    add("--json", type=Path, metavar="FILE", help="file for the means and intervals")
    add("--picture", type=Path, metavar="FILE", help="only draw the picture of the documentation, a JPEG")


def run(args: argparse.Namespace) -> None:
    """Prints two tables and writes them as JSON, or draws the picture."""
    predictor = Predictor(args.checkpoint, batch_size=32)
    if args.picture:
        picture(predictor).save(args.picture, quality=88)
        return
    photos = list(pack_photos(predictor, args.pack, count=args.photos))
    predictions = predictor.predict(photos)
    pairs = list(zip(predictions, photos, strict=True))
    tables = {
        "points": {
            "with the network": summary(np.array([with_points(*pair, i) for i, pair in enumerate(pairs)]), POINTS),
            "without (Levin et al.)": summary(np.array([levin(photo, i) for i, photo in enumerate(photos)]), POINTS),
        },
        "candidates": {"best of k": summary(np.array([best_of(*pair) for pair in pairs]), CANDIDATES)},
    }
    for name, rows in tables.items():
        counts = list(next(iter(rows.values())))
        lines = [[row, *("{psnr:.2f} ({low:.2f}–{high:.2f})".format(**x) for x in rows[row].values())] for row in rows]
        print(f"\n{markdown_table([f'PSNR in dB, {name}', *map(str, counts)], lines)}")
    if args.json:
        record = {"command": " ".join(["python -m benchmarks", *sys.argv[1:]]), "photos": len(photos), **tables}
        args.json.write_text(json.dumps(record, indent=2) + "\n")


def summary(psnr: np.ndarray, counts: tuple[int, ...]) -> dict[int, dict[str, float]]:
    """By count the mean over photos and its interval, of [photos, counts]."""
    low, high = interval(psnr)
    columns = zip(counts, psnr.mean(axis=0), low, high, strict=True)
    return {count: {"psnr": float(m), "low": float(a), "high": float(b)} for count, m, a, b in columns}


def places(photo: np.ndarray, number: int) -> np.ndarray:
    """The flat indices of a photo's points, the same for all ways to spread them."""
    return np.random.default_rng([0, number]).choice(photo.shape[0] * photo.shape[1], max(POINTS), replace=False)


def with_points(prediction: Prediction, photo: np.ndarray, number: int) -> list[float]:
    """PSNR with each count of points."""
    y, x = np.divmod(places(photo, number), photo.shape[1])
    given = [(int(i), int(j), f"#{photo[j, i].tobytes().hex()}") for i, j in zip(x, y, strict=True)]
    return [psnr(prediction.with_points(given[:count]).render(), photo) for count in POINTS]


def best_of(prediction: Prediction, photo: np.ndarray) -> list[float]:
    """The best PSNR of the first k candidates, for each k."""
    each = [psnr(p.render(), photo) for p in prediction.candidates(max(CANDIDATES))]
    return [max(each[:k]) for k in CANDIDATES]


def psnr(made: np.ndarray, photo: np.ndarray) -> float:
    """In dB, of two uint8 photos."""
    return float(-10 * np.log10(np.square((made.astype(np.float64) - photo) / 255).mean()))


def levin(photo: np.ndarray, number: int) -> list[float]:
    """PSNR with each count of points, spread without a network; without points the photo is gray."""
    lab = skimage.color.rgb2lab(photo)
    chosen = places(photo, number)
    system = scipy.sparse.eye_array(lab[..., 0].size, format="csr") - _neighbors(lab[..., 0] / 100)
    result = []
    for count in POINTS:
        ab = np.zeros((lab[..., 0].size, 2))
        ab[chosen[:count]] = lab.reshape(-1, 3)[chosen[:count], 1:]
        if count:
            free = np.ones(len(ab))
            free[chosen[:count]] = 0
            ab = spsolve((scipy.sparse.diags_array(free) @ system + scipy.sparse.diags_array(1 - free)).tocsc(), ab)
        pixels = color.to_pixels(lab[..., :1], np.asarray(ab).reshape(*photo.shape[:2], 2), levels=255)
        result.append(psnr(np.asarray(pixels), photo))
    return result


def _neighbors(y: np.ndarray) -> scipy.sparse.csr_array:
    """Levin's weights of the eight neighbors by their lightness y, 0…1; each row sums to 1."""
    height, width = y.shape
    index = np.arange(y.size).reshape(height, width)
    offsets = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    padded = np.pad(y, 1, constant_values=np.nan)
    around = np.stack([padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in offsets])
    variance = 0.6 * np.nanvar(np.concatenate([around, y[None]]), axis=0)
    squares = (around - y) ** 2
    variance = np.maximum(np.maximum(variance, np.nanmin(squares, axis=0) / np.log(100)), 2e-6)
    weights = np.nan_to_num(np.exp(-squares / variance))
    weights /= weights.sum(axis=0)
    rows, columns, values = [], [], []
    for (i, j), weight in zip(offsets, weights, strict=True):
        inside = (slice(max(0, -i), height - max(0, i)), slice(max(0, -j), width - max(0, j)))
        rows.append(index[inside].ravel())
        columns.append(rows[-1] + i * width + j)
        values.append(weight[inside].ravel())
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return scipy.sparse.csr_array(entries, shape=(y.size, y.size))


def picture(predictor: Predictor) -> Image.Image:
    """A cup of coffee in gray, as the network colors it, and with the points that are drawn on it."""
    photo = skimage.data.coffee()
    (prediction,) = predictor.predict([photo])
    saucer = [(x, y, "#35608f") for x, y in ((120, 220), (440, 290), (300, 355))]
    table = [(x, y, "#8a6a48") for x, y in ((60, 130), (570, 80), (560, 330), (40, 350))]
    given = [*saucer, *table, (250, 110, "#efe6d6")]
    shown = [Image.fromarray(x) for x in (prediction.render(saturation=0), prediction.render())]
    marked = prediction.with_points(given)
    shown.append(Image.fromarray(marked.render()))
    drawing = ImageDraw.Draw(shown[-1])
    for x, y, rgb in given:
        drawing.ellipse((x - 9, y - 9, x + 9, y + 9), fill=rgb, outline="white", width=3)
    half = [x.resize((x.width // 2, x.height // 2), Image.Resampling.LANCZOS) for x in shown]
    result = Image.new("RGB", (sum(x.width for x in half) + 8, half[0].height), "white")
    for i, one in enumerate(half):
        result.paste(one, (i * (one.width + 4), 0))
    return result
