"""The study's figure, like the paper's figure 2: a few test photos as every row colors them."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from colorjax import atomic, color, data
from colorjax.data.batches import EVAL_BATCH_SIZE, center_crop
from colorjax.model.program import Tree
from colorjax.run import compilation
from colorjax.run.pictures import to_gray
from colorjax.run.trained import load_trained
from colorjax.study.plan import Run

_PHOTOS = 6
_GAP = 4  # pixels
_CAPTIONS = 160  # pixels, to the left of the photos


def color_photos(run: Run) -> None:
    """Colors the figure's photos with a finished run, into its evaluation. They are evenly spaced in the test split."""
    trained = load_trained(run.workdir)
    program, decoder = trained.program(), trained.decoder()
    size = data.dataset_info(trained.config.data).sizes["test"]
    wanted = np.unique(np.linspace(0, size - 1, _PHOTOS).round().astype(int))
    photos = []
    for step, batch in enumerate(data.eval_batches(trained.config.data, "test", batch_size=EVAL_BATCH_SIZE)):
        rows = wanted[wanted // EVAL_BATCH_SIZE == step] % EVAL_BATCH_SIZE
        if len(rows):
            decoded = batch["mask"][rows] > 0
            photos.append(np.asarray(center_crop(batch["image"][rows[decoded]], trained.config.data.image_size)))
    true = np.concatenate(photos)

    def predict(params: Tree, stats: Tree, rgb: jax.Array) -> jax.Array:
        l = color.rgb_to_lab(rgb)[..., :1]
        outputs, _ = program(params, stats, l, train=False)
        return color.to_uint8(decoder.photo(outputs.color, l))

    predicted = jax.jit(predict, compiler_options=compilation.compiler_options())(
        trained.params, trained.stats, jnp.asarray(true)
    )
    with atomic.replacing(_path(run)) as path, path.open("wb") as f:
        np.savez_compressed(f, step=trained.step, gray=to_gray(true), predicted=np.asarray(predicted), true=true)


def has_photos(run: Run) -> bool:
    """Whether color_photos has run since the training's last step."""
    if not _path(run).exists():
        return False
    with np.load(_path(run)) as f:
        return int(f["step"]) == run.step()


def strips(runs: Mapping[str, Run]) -> dict[str, np.ndarray]:
    """The strips of the figure: "gray", rows, "truth" -> photos side by side, uint8 [H, W, 3].

    Args:
        runs: row -> the run whose photos to show; runs without photos are left out.
    """
    found: dict[str, np.ndarray] = {}
    truth: dict[str, np.ndarray] = {}
    for row, run in runs.items():
        if has_photos(run):
            with np.load(_path(run)) as f:
                found = {"gray": _side_by_side(f["gray"]), **found, row: _side_by_side(f["predicted"])}
                truth = {"truth": _side_by_side(f["true"])}
    return found | truth


def picture(strips: Mapping[str, np.ndarray]) -> Image.Image:
    """The strips below each other, with their names on the left."""
    height, width = next(iter(strips.values())).shape[:2]
    canvas = Image.new("RGB", (_CAPTIONS + width + _GAP, (height + _GAP) * len(strips) + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (name, strip) in enumerate(strips.items()):
        top = _GAP + i * (height + _GAP)
        draw.text((_GAP, top + height // 2 - 6), name, fill="black")
        canvas.paste(Image.fromarray(strip), (_CAPTIONS, top))
    return canvas


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file of this kind."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def _side_by_side(photos: np.ndarray) -> np.ndarray:
    gap = np.full((photos.shape[1], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for photo in photos for part in (photo, gap)][:-1], axis=1)


def _path(run: Run) -> Path:
    return run.evaluation / "figure.npz"
