"""What a colorizer's attentions look at from one place of a photo, as a picture."""

import functools

import jax
import numpy as np
from PIL import Image, ImageDraw

from colorjax import color
from colorjax.model.colorizer import AttentionWeights, Colorizer
from colorjax.model.program import Program, Tree
from colorjax.photos import resample
from colorjax.run import compilation, pictures
from colorjax.run.trained import Trained

_SIDE = 288  # pixels of a panel
_GAP, _HEADER = 8, 30
_RED, _WHITE, _BLUE = (202, 0, 32), (247, 247, 247), (5, 113, 176)


def attention_weights(trained: Trained, photo: np.ndarray, at: tuple[int, int]) -> AttentionWeights:
    """The weights of the attentions at one place, for the photo at the size that the colorizer was trained on.

    Args:
        trained: the colorizer.
        photo: uint8 or uint16 [H, W] or [H, W, 1…4], as `Predictor.predict` takes it.
        at: x and y in pixels of the photo, from 0 at the left and the top.

    Returns:
        The weights as numpy arrays, of a batch of one.

    Raises:
        ValueError: if the place is outside the photo, or the colorizer has no attention at its output.
    """
    height, width = photo.shape[:2]
    x, y = at
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"at is {x},{y}, outside the photo; x is 0…{width - 1} and y 0…{height - 1}")
    if trained.config.model.output_attention == "none":
        raise ValueError("this colorizer has no self-attention at its output (model.output_attention 'none')")
    size = trained.config.data.image_size
    square = resample.thumbnail(photo, height=size, width=size)
    run = jax.jit(functools.partial(_weights, trained.program()), compiler_options=compilation.compiler_options())
    place = np.float32((x + 0.5) / width), np.float32((y + 0.5) / height)
    return jax.device_get(run(trained.params, trained.stats, square[None], *place))


def _weights(
    program: Program, params: Tree, stats: Tree, photos: jax.Array, x: jax.Array, y: jax.Array
) -> AttentionWeights:
    model = program.merged(params, stats)
    assert isinstance(model, Colorizer)
    model.eval()
    return model.attention_weights(color.lightness(photos, gray=False), x=x, y=y)


def draw_attention(photo: np.ndarray, at: tuple[int, int], weights: AttentionWeights, *, size: int) -> np.ndarray:
    """The weights as one picture with labels.

    From the left: the photo with the place and the three patches around it; where the output's self-attention looks,
    yellow at its largest weight; and each resolution's patch, red where a weight is positive and blue where it is
    negative.

    Args:
        photo, at: as in `attention_weights`.
        weights: of it.
        size: side of the square that the network sees, in pixels.

    Returns:
        uint8 [rows, columns, 3].
    """
    assert weights.output is not None
    height, width = photo.shape[:2]
    panel_height = max(1, round(_SIDE * height / width))
    x, y = ((at[0] + 0.5) / width * _SIDE, (at[1] + 0.5) / height * panel_height)
    # In gray, as the network sees it.
    gray = pictures.to_gray(resample.thumbnail(photo, height=panel_height, width=_SIDE))
    panels: list[tuple[str, Image.Image]] = []

    first = Image.fromarray(gray)
    draw = ImageDraw.Draw(first)
    for level, patch in enumerate(weights.patches):
        # A resolution's pixel is 2, 4 or 8 of the network's input.
        reach = patch.shape[-1] / 2 * 2 ** (level + 1) / size
        reach_x, reach_y = reach * _SIDE, reach * panel_height
        draw.rectangle((x - reach_x, y - reach_y, x + reach_x, y + reach_y), outline=(253, 231, 37))
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_RED, outline="white")
    panels.append(("the place and its patches", first))

    output = np.asarray(weights.output[0] / weights.output.max())
    heat = pictures.heat(np.sqrt(np.clip(resample.enlarged(output, panel_height, _SIDE), 0, 1)))
    second = Image.fromarray((gray // 3 + heat // 3 * 2).astype(np.uint8))
    draw = ImageDraw.Draw(second)
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), outline=_RED, width=2)
    panels.append((f"output attention\nlargest weight {weights.output.max():.2g}", second))

    for level, patch in enumerate(weights.patches):
        side = patch.shape[-1]
        most = float(np.abs(patch).max()) or 1.0
        signed = patch[0, ..., None] / most
        ends = np.where(signed > 0, np.array(_RED), np.array(_BLUE))
        rgb = np.round(np.array(_WHITE) + np.abs(signed) * (ends - np.array(_WHITE))).astype(np.uint8)
        picture = Image.fromarray(rgb).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        label = f"patch {side}x{side} at 1/{2 ** (level + 1)}\nlargest weight {most:.2g}"
        panels.append((label, picture))

    columns = (_SIDE + _GAP) * len(panels) + _GAP
    canvas = Image.new("RGB", (columns, max(panel_height, _SIDE) + _HEADER + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (label, picture) in enumerate(panels):
        left = _GAP + i * (_SIDE + _GAP)
        draw.multiline_text((left, 2), label, fill="black")
        canvas.paste(picture, (left, _HEADER))
    return np.asarray(canvas)
