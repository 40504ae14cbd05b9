"""Measures what a keyframe is worth: the PSNR of a film's later frames, and their flicker, with one and without.

    python -m benchmarks films --data-dir=~/tensorflow_datasets --json=films.json
    python -m benchmarks films --picture=keyframe.jpg

The films are made from test photos of Food-101, 256 pixels high and wide, which the colorizer has not seen in training.
Each has 24 frames of 192 pixels. In a pan the camera moves by 60 pixels of the photo, in a zoom the picture grows to
one and a half times its size, and in `object` a disc of another photo moves over half of the still picture. The
keyframe is the true first frame. `copied` is what the keyframe's colors are worth where they stand, without network and
motion. A fourth kind of film is cut to another photo in its middle, after which the keyframe must change nothing. Each
mean has its 95% bootstrap interval over films, and so has the difference, film by film.
"""

import argparse
import json
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import skimage.color
import skimage.data
from PIL import Image

from benchmarks.points import psnr
from colorjax import color, data
from colorjax.cli.arguments import CHECKPOINT, Parser, number
from colorjax.cli.errors import UsageError
from colorjax.evaluation.bootstrap import interval
from colorjax.evaluation.tables import markdown_table
from colorjax.photos.films import color_frames
from colorjax.photos.keyframes import Keyframe
from colorjax.photos.predictor import Predictor

FRAMES = 24
AFTER = (1, 6, 12, 23)
"""The frames whose PSNR the table shows."""

KINDS = ("pan", "zoom", "object", "cut")
_PHOTO, _FRAME = 256, 192  # pixels


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("--checkpoint", metavar="PATH", help=f"{CHECKPOINT}; by default food101")
    add("--data-dir", metavar="DIR", help="where TensorFlow Datasets has Food-101")
    add("--photos", type=number(int, 2), default=50, metavar="N", help="films of each kind")
    add("--json", type=Path, metavar="FILE", help="file for the means and intervals")
    add("--picture", type=Path, metavar="FILE", help="only draw the picture of the documentation, a JPEG")


def run(args: argparse.Namespace) -> None:
    """Prints two tables and writes them as JSON, or draws the picture."""
    if not (args.data_dir or args.picture):
        raise UsageError("--data-dir is missing; give the folder where TensorFlow Datasets has Food-101")
    predictor = Predictor(args.checkpoint, batch_size=FRAMES)
    if args.picture:
        picture(predictor).save(args.picture, quality=88)
        return
    config = predictor.config.copy_and_resolve_references().unlock()
    config.data.update(source="food101", dir=str(Path(args.data_dir).expanduser()), resolution=_PHOTO)
    photos = next(iter(data.eval_batches(config.data, "test", batch_size=2 * args.photos)))["image"]
    columns = [f"frame {i}" for i in AFTER]
    record: dict[str, dict] = {}
    rows: list[list[str]] = []
    flicker_rows: list[list[str]] = []
    for kind in KINDS:
        films = [make_film(photos[i], photos[args.photos + i], kind, seed=i) for i in range(args.photos)]
        measured = [measure(predictor, film) for film in films]
        if kind == "cut":
            largest = max(film["difference"][FRAMES // 2 :].max() for film in measured)
            record[kind] = {"films": len(films), "largest difference after the cut": int(largest)}
            continue
        of_kind = {}
        for name in ("with", "without", "copied"):
            of_kind[name] = summary(np.array([film[name] for film in measured]))
            rows.append([kind, name, *of_kind[name]["shown"]])
        gain = np.array([film["with"] - film["without"] for film in measured])
        of_kind["gain"] = summary(gain)
        rows.append([kind, "with − without", *of_kind["gain"]["shown"]])
        flicker = np.array([[film[f"flicker {name}"] for name in ("with", "without")] for film in measured])
        of_kind["flicker"] = summary(np.concatenate([flicker, flicker[:, :1] - flicker[:, 1:]], axis=1))
        flicker_rows.append([kind, *of_kind["flicker"]["shown"]])
        record[kind] = of_kind
    print(f"\n{markdown_table(['film', 'PSNR in dB', *columns], rows)}")
    print(f"\n{markdown_table(['flicker in ab', 'with', 'without', 'with − without'], flicker_rows)}")
    print(f"\n{record['cut']}")
    if args.json:
        command = " ".join(["python -m benchmarks", *sys.argv[1:]])
        args.json.write_text(json.dumps({"command": command, "films": args.photos, **record}, indent=2) + "\n")


def summary(values: np.ndarray) -> dict[str, list]:
    """The columns' means with their intervals, of [films, columns]."""
    low, high = interval(values)
    mean = values.mean(axis=0)
    shown = [f"{m:.2f} ({a:.2f} to {b:.2f})" for m, a, b in zip(mean, low, high, strict=True)]
    return {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist(), "shown": shown}


def make_film(photo: np.ndarray, other: np.ndarray, kind: str, *, seed: int) -> np.ndarray:
    """A film from one photo or two: uint8 [FRAMES, _FRAME, _FRAME, 3]."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    times = np.linspace(-1, 1, FRAMES)
    if kind == "zoom":
        return np.stack([_window(photo, side=side) for side in np.geomspace(240, 160, FRAMES)])
    if kind == "object":
        y, x = np.mgrid[:_FRAME, :_FRAME] - _FRAME / 2 + 0.5
        background, moving = _window(photo, side=240), _window(other, side=_FRAME)
        frames = []
        for dx, dy in np.round(48 * times[:, None] * direction).astype(int):
            disc = (x - dx) ** 2 + (y - dy) ** 2 < 44**2
            frames.append(np.where(disc[..., None], np.roll(moving, (dy, dx), axis=(0, 1)), background))
        return np.stack(frames)
    pan = [_window(photo, side=_FRAME, center=_PHOTO / 2 + 30 * time * direction) for time in times]
    return np.stack(pan if kind == "pan" else pan[: FRAMES // 2] + [_window(other, side=_FRAME)] * (FRAMES // 2))


def _window(photo: np.ndarray, *, side: float, center: np.ndarray | tuple = (_PHOTO / 2, _PHOTO / 2)) -> np.ndarray:
    x, y = center
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return np.asarray(Image.fromarray(photo).resize((_FRAME, _FRAME), Image.Resampling.BICUBIC, box=box))


def measure(predictor: Predictor, film: np.ndarray) -> dict:
    """PSNR of each frame with the keyframe, without it and copied, the flicker, and by how much the keyframe changes.

    The flicker is how much the error in ab changes between a frame and the next, on average over pixels and frames.
    """
    true = skimage.color.rgb2lab(film)
    copied = {i: color.to_pixels(true[i, ..., :1], true[0, ..., 1:], levels=255) for i in AFTER}
    result = {"copied": np.array([psnr(np.asarray(copied[i]), film[i]) for i in AFTER])}
    made = {}
    for name, keyframes in (("with", {0: Keyframe("first frame", film[0])}), ("without", {})):
        batches = color_frames(_each(film), predictor, keyframes=keyframes)
        made[name] = np.stack([prediction.render() for batch in batches for prediction in batch])
        result[name] = np.array([psnr(made[name][i], film[i]) for i in AFTER])
        errors = (skimage.color.rgb2lab(made[name]) - true)[..., 1:]
        result[f"flicker {name}"] = np.linalg.norm(np.diff(errors, axis=0), axis=-1).mean()
    result["difference"] = np.abs(made["with"].astype(int) - made["without"]).max(axis=(1, 2, 3))
    return result


def _each(film: np.ndarray) -> Generator[np.ndarray]:
    yield from film


def picture(predictor: Predictor) -> Image.Image:
    """Three frames of a pan over a cup of coffee: as the network colors them, and with the first one's true colors."""
    photo = Image.fromarray(skimage.data.coffee())
    boxes = [(6 * i, 20, 6 * i + 440, 350) for i in range(FRAMES)]
    film = np.stack([np.asarray(photo.resize((300, 225), Image.Resampling.BICUBIC, box=box)) for box in boxes])
    result = Image.new("RGB", (3 * 304 - 4, 2 * 229 - 4), "white")
    for row, keyframes in enumerate(({}, {0: Keyframe("first frame", film[0])})):
        batches = color_frames(_each(film), predictor, keyframes=keyframes)
        made = [prediction for batch in batches for prediction in batch]
        for column, i in enumerate((0, FRAMES // 2, FRAMES - 1)):
            result.paste(Image.fromarray(made[i].render()), (304 * column, 229 * row))
    return result
