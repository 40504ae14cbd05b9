"""Measures choices in prediction: up-sampling, aspect ratio and working size; and the effect of hint and style.

    python -m benchmarks colors --checkpoint=runs/food64 --pack=packs/food64

It prints four tables. All distances are in ab, averaged over pixels and photos. The first table uses scikit-image's
photos, the others the pack's first test photos, which the colorizer has not seen in training.
"""

import argparse
import importlib.resources

import jax
import numpy as np
import skimage.color
from PIL import Image

from colorjax import color, data
from colorjax.cli.arguments import CHECKPOINT, Parser, number
from colorjax.evaluation.tables import markdown_table
from colorjax.photos import resample
from colorjax.photos.predictor import Prediction, Predictor
from colorjax.run.locate import locate
from colorjax.run.trained import load_trained

_NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "ihc.png", "retina.jpg")


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help=CHECKPOINT)
    add("--pack", required=True, metavar="DIR", help="a pack of its data")
    add("--photos", type=number(int, 2), default=128, metavar="N", help="test photos of the pack")


def run(args: argparse.Namespace) -> None:
    """Prints the tables."""
    predictor = Predictor(args.checkpoint)
    photos = pack_photos(predictor, args.pack, count=args.photos)
    print(
        up_sampling(),
        aspect_ratios(args.checkpoint, photos),
        working_sizes(predictor, args.checkpoint, photos),
        steering(predictor, photos),
        sep="\n\n",
    )


def up_sampling() -> str:
    """The distance of the true ab to itself after down- and up-sampling."""
    rows = []
    for name in _NAMES:
        with (importlib.resources.files("skimage.data") / name).open("rb") as stream:
            image = Image.open(stream).convert("RGB")
        image.thumbnail((800, 800), Image.Resampling.BOX)
        lab = skimage.color.rgb2lab(np.asarray(image)).astype(np.float32)
        row = [name]
        for side in (32, 112):
            small = _resized(lab, side, side, Image.Resampling.BOX)
            bilinear = _resized(small[..., 1:], image.height, image.width, Image.Resampling.BILINEAR)
            rendered = resample.render(np.asarray(image), small[..., 1:], small[..., 0])
            guided = skimage.color.rgb2lab(rendered)[..., 1:]
            row += [_distance(bilinear, lab[..., 1:]), _distance(guided, lab[..., 1:])]
        rows.append(row)
    rows.append(["mean", *(float(np.mean(column)) for column in list(zip(*rows, strict=True))[1:])])
    return markdown_table(
        ["photo", "bilinear from 32²", "guided from 32²", "bilinear from 112²", "guided from 112²"], rows
    )


def aspect_ratios(checkpoint: str, photos: np.ndarray) -> str:
    """Crops squeezed into the trained square, compared with crops at their own aspect ratio and equal area."""
    loaded = load_trained(locate(checkpoint))
    config, size = loaded.config, loaded.config.data.image_size
    program, decoder = loaded.program(), loaded.decoder()

    @jax.jit
    def colors(photos: jax.Array, whole: jax.Array) -> tuple[jax.Array, jax.Array]:
        l, whole_l = (color.lightness(x, gray=False) for x in (photos, whole))
        outputs, _ = program(loaded.params, loaded.stats, l, global_l=whole_l, train=False)
        return decoder.ab(outputs.color), color.downsample(l, factor=config.model.output_stride)[..., 0]

    side, rows = photos.shape[1], []
    for height, width in ((4, 3), (3, 4), (2, 1)):
        h, w = (side * x // max(height, width) for x in (height, width))
        crops = photos[:, (side - h) // 2 : (side + h) // 2, (side - w) // 2 : (side + w) // 2]
        row: list[object] = [f"{width}:{height}"]
        own = tuple(round(size * (x / y) ** 0.5 / 8) * 8 for x, y in ((height, width), (width, height)))
        for shape in ((size, size), own):
            given = np.stack([resample.thumbnail(c, height=shape[0], width=shape[1]) for c in crops])
            whole = np.stack([resample.thumbnail(c, height=size, width=size) for c in crops])
            maps = [jax.device_get(colors(given[i : i + 32], whole[i : i + 32])) for i in range(0, len(crops), 32)]
            ab, guide = (np.concatenate(x) for x in zip(*maps, strict=True))
            made = [resample.render(c, a, g) for c, a, g in zip(crops, ab, guide, strict=True)]
            pairs = zip(made, crops, strict=True)
            row.append(
                float(np.mean([_distance(*(skimage.color.rgb2lab(x)[..., 1:] for x in pair)) for pair in pairs]))
            )
        rows.append(row)
    return markdown_table(["crop, width:height", "to the truth, squeezed", "at its own aspect ratio"], rows)


def working_sizes(predictor: Predictor, checkpoint: str, photos: np.ndarray) -> str:
    """How much the colors change with the working size."""
    trained = predictor.config.data.image_size
    # The truth at the trained size, at which all are compared.
    truth = [skimage.color.rgb2lab(resample.thumbnail(p, height=trained, width=trained))[..., 1:] for p in photos]
    reference = None
    rows = []
    for factor in (1.0, 0.5, 0.75, 1.5, 2.0, 3.0):
        size = max(32, round(trained * factor / 8) * 8)
        made = Predictor(checkpoint, size=size).predict(list(photos))
        ab = np.stack([_resized(p.ab(), trained, trained, Image.Resampling.BILINEAR) for p in made])
        reference = ab if reference is None else reference
        shift = np.linalg.norm((ab - reference).mean(axis=(1, 2)), axis=-1).mean()
        rows.append([size, _distance(ab, reference), float(shift), _distance(ab, np.stack(truth)), _chroma(ab)])
    header = ["working size", "moved from the trained size", "of that the photo's mean", "to the truth", "chroma"]
    return markdown_table(header, rows)


def steering(predictor: Predictor, photos: np.ndarray) -> str:
    """How much a class hint and a style change the colors, and the hinted class's probability."""
    plain = predictor.predict(list(photos))
    ab = _stacked(plain)
    rows: list[list[object]] = []
    for name in predictor.class_names[:: max(1, len(predictor.class_names) // 4)][:4]:
        hinted = predictor.predict(list(photos), hint=name)
        number = predictor.class_number(name)
        before, after = (float(np.mean([p.class_probabilities[number] for p in x])) for x in (plain, hinted))
        rows.append([f"hint {name}", _distance(_stacked(hinted), ab), f"{before:.3f} → {after:.3f}"])
    for i in (0, 1):
        rows.append(
            [f"style of photo {i}", _distance(_stacked(predictor.predict(list(photos), style=photos[i])), ab), "–"]
        )
    return markdown_table([f"chroma {_chroma(ab):.1f}", "moved", "probability of the class"], rows)


def pack_photos(predictor: Predictor, pack: str, *, count: int) -> np.ndarray:
    """The pack's first test photos, whose order is random: uint8 [N, S, S, 3]."""
    config = predictor.config.copy_and_resolve_references().unlock()
    config.data.source, config.data.dir = "packed", pack
    return next(iter(data.eval_batches(config.data, "test", batch_size=count)))["image"]


def _stacked(predictions: list[Prediction]) -> np.ndarray:
    return np.stack([p.ab() for p in predictions])


def _distance(ab: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(ab - other, axis=-1).mean())


def _chroma(ab: np.ndarray) -> float:
    return float(np.linalg.norm(ab, axis=-1).mean())


def _resized(x: np.ndarray, height: int, width: int, method: Image.Resampling) -> np.ndarray:
    channels = [np.ascontiguousarray(x[..., i], np.float32) for i in range(x.shape[-1])]
    return np.stack([np.asarray(Image.fromarray(c).resize((width, height), method)) for c in channels], axis=-1)
