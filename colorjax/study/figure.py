"""The study's figure, after the paper's figure 2: a few fixed test photos as every row colors them."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from colorjax import color, data
from colorjax.data.batches import center_crop
from colorjax.model.decode import decode_photo
from colorjax.model.program import Tree
from colorjax.run import compilation
from colorjax.run.pictures import to_gray
from colorjax.run.trained import load_trained
from colorjax.study.plan import Run

_PHOTOS = 6
_GAP = 4  # pixels
_CAPTIONS = 160  # pixels, left of the photos


def color_photos(run: Run) -> None:
    """Writes what a finished run makes of the figure's photos, evenly spaced over the test split, beside its
    evaluation."""
    trained = load_trained(run.workdir)
    program = trained.program()
    size = data.dataset_info(trained.config.data).sizes["test"]
    wanted = np.unique(np.linspace(0, size - 1, _PHOTOS).round().astype(int))
    photos = []
    for place, batch in enumerate(data.eval_batches(trained.config.data, "test", batch_size=64)):
        mine = wanted[(wanted >= place * 64) & (wanted < (place + 1) * 64)] - place * 64
        if len(mine):
            there = batch["mask"][mine] > 0
            photos.append(np.asarray(center_crop(batch["image"][mine[there]], trained.config.data.image_size)))
    true = np.concatenate(photos)

    def predict(params: Tree, stats: Tree, rgb: jax.Array) -> jax.Array:
        l = color.rgb_to_lab(rgb)[..., :1]
        outputs, _ = program(params, stats, l, train=False)
        return color.to_uint8(decode_photo(outputs, l, temperature=trained.config.decode.temperature))

    predicted = jax.jit(predict, compiler_options=compilation.compiler_options())(
        trained.params, trained.stats, jnp.asarray(true)
    )
    # Whole or not at all, as this process may be killed.
    unfinished = _path(run).with_suffix(".tmp")
    with unfinished.open("wb") as f:
        np.savez_compressed(f, step=trained.step, gray=to_gray(true), predicted=np.asarray(predicted), true=true)
    unfinished.replace(_path(run))


def is_there(run: Run) -> bool:
    """Whether color_photos has been here since the run's last step."""
    if not _path(run).exists():
        return False
    with np.load(_path(run)) as f:
        return int(f["step"]) == run.step()


def strips(runs: Mapping[str, Run]) -> dict[str, np.ndarray]:
    """Answer ("gray", the rows, "truth") -> its photos side by side, uint8 [H, W, 3].

    Args:
        runs: row -> the run whose photos to show; those without are left out.
    """
    found: dict[str, np.ndarray] = {}
    truth: dict[str, np.ndarray] = {}
    for row, run in runs.items():
        if is_there(run):
            with np.load(_path(run)) as f:
                found = {"gray": _side_by_side(f["gray"]), **found, row: _side_by_side(f["predicted"])}
                truth = {"truth": _side_by_side(f["true"])}
    return found | truth


def picture(answers: Mapping[str, np.ndarray]) -> Image.Image:
    """The strips under each other, with their names on the left."""
    height, width = next(iter(answers.values())).shape[:2]
    canvas = Image.new("RGB", (_CAPTIONS + width + _GAP, (height + _GAP) * len(answers) + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (answer, strip) in enumerate(answers.items()):
        top = _GAP + i * (height + _GAP)
        draw.text((_GAP, top + height // 2 - 6), answer, fill="black")
        canvas.paste(Image.fromarray(strip), (_CAPTIONS, top))
    return canvas


def _side_by_side(photos: np.ndarray) -> np.ndarray:
    gap = np.full((photos.shape[1], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for photo in photos for part in (photo, gap)][:-1], axis=1)


def _path(run: Run) -> Path:
    return run.evaluation / "figure.npz"
