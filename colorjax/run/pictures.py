"""Photos side by side (gray, predicted, true), maps as colors, and what attentions look at."""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from colorjax import color
from colorjax.model.colorizer import AttentionWeights

ATTENTION_SIDE = 288
"""Width in pixels of each part of an attention's picture."""

_GAP = 4  # pixels, white
_HEAT = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])  # lighter and lighter
_HEADER = 14  # pixels, for the captions
_LINES = 30  # pixels, for captions of two lines
_RED, _WHITE, _BLUE = np.array((202, 0, 32)), np.array((247, 247, 247)), np.array((5, 113, 176))


def panel(true: np.ndarray, predicted: Mapping[str, np.ndarray], *, captions: Sequence[str] = ()) -> np.ndarray:
    """One row for each photo: gray, each prediction and the original, with captions above.

    Args:
        true: uint8 [N, H, W, 3].
        predicted: caption -> uint8 [N, H, W, 3].
        captions: text to the right of each row, of one or more lines; none, or one for each photo.

    Returns:
        uint8 [rows, columns, 3].
    """
    columns = {"gray": to_gray(true), **predicted, "true": true}
    count, height, width = true.shape[:3]
    right = (width + _GAP) * len(columns) + _GAP
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = max((math.ceil(measure.multiline_textbbox((0, 0), text)[2]) + _GAP for text in captions), default=0)
    canvas = Image.new("RGB", (right + margin, _HEADER + (height + _GAP) * count), "white")
    draw = ImageDraw.Draw(canvas)
    for j, text in enumerate(captions):
        draw.text((right, _HEADER + j * (height + _GAP)), text, fill="black")
    for i, (caption, photos) in enumerate(columns.items()):
        left = _GAP + i * (width + _GAP)
        draw.text((left, 1), caption, fill="black")
        for j, photo in enumerate(photos):
            canvas.paste(Image.fromarray(photo), (left, _HEADER + j * (height + _GAP)))
    return np.asarray(canvas)


def heat(values: np.ndarray) -> np.ndarray:
    """A map as colors from dark violet (0) through green to yellow (1): floating [...] -> uint8 [..., 3]."""
    values = np.clip(values, 0, 1)
    places = np.linspace(0, 1, len(_HEAT))
    return np.round(np.stack([np.interp(values, places, channel) for channel in _HEAT.T], axis=-1)).astype(np.uint8)


def to_gray(rgb: np.ndarray) -> np.ndarray:
    """The network's input as a picture, which is the photo's L alone: uint8 [..., 3] -> uint8 [..., 3]."""
    l = color.rgb_to_lab(jnp.asarray(rgb))[..., :1]
    gray = color.lab_to_rgb(jnp.concatenate([l, jnp.zeros((*l.shape[:-1], 2))], axis=-1))
    return np.asarray(color.to_uint8(gray))


def draw_attention(
    photo: np.ndarray, place: tuple[float, float], weights: AttentionWeights, *, size: int
) -> np.ndarray:
    """Where attentions look from a place of a photo, as one picture with labels.

    From the left: the photo with the place and the patches around it; where the output's self-attention looks, yellow
    at its largest weight; and each resolution's patch, red where a weight is positive and blue where it is negative.
    What the colorizer lacks is left out.

    Args:
        photo: uint8 [H, ATTENTION_SIDE, 3], shown in gray, as the network sees it.
        place: x and y, in 0…1 from the left and the top.
        weights: of the place, numpy arrays of a batch of one.
        size: side of the square that the network sees, in pixels.

    Returns:
        uint8 [rows, columns, 3].
    """
    gray = to_gray(photo)
    height, width = gray.shape[:2]
    x, y = place[0] * width, place[1] * height
    panels: list[tuple[str, Image.Image]] = []

    first = Image.fromarray(gray)
    draw = ImageDraw.Draw(first)
    for level, patch in enumerate(weights.patches):
        # A resolution's pixel is 2, 4 or 8 of the network's input.
        reach = patch.shape[-1] / 2 * 2 ** (level + 1) / size
        reach_x, reach_y = reach * width, reach * height
        draw.rectangle((x - reach_x, y - reach_y, x + reach_x, y + reach_y), outline=(253, 231, 37))
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=tuple(_RED), outline="white")
    panels.append(("the place and its patches" if weights.patches else "the place", first))

    if weights.output is not None:
        most = float(weights.output.max())
        output = Image.fromarray(np.asarray(weights.output[0] / most, np.float32))
        enlarged = np.asarray(output.resize((width, height), Image.Resampling.BILINEAR))
        mixed = gray // 3 + heat(np.sqrt(np.clip(enlarged, 0, 1))) // 3 * 2
        second = Image.fromarray(mixed.astype(np.uint8))
        ImageDraw.Draw(second).ellipse((x - 4, y - 4, x + 4, y + 4), outline=tuple(_RED), width=2)
        panels.append((f"output attention\nlargest weight {most:.2g}", second))

    for level, patch in enumerate(weights.patches):
        side = patch.shape[-1]
        most = float(np.abs(patch).max()) or 1.0
        signed = np.asarray(patch)[0, ..., None] / most
        ends = np.where(signed > 0, _RED, _BLUE)
        rgb = np.round(_WHITE + np.abs(signed) * (ends - _WHITE)).astype(np.uint8)
        picture = Image.fromarray(rgb).resize((ATTENTION_SIDE, ATTENTION_SIDE), Image.Resampling.NEAREST)
        panels.append((f"patch {side}x{side} at 1/{2 ** (level + 1)}\nlargest weight {most:.2g}", picture))

    gap = 2 * _GAP
    rows = max(height, ATTENTION_SIDE) + _LINES + gap
    canvas = Image.new("RGB", ((ATTENTION_SIDE + gap) * len(panels) + gap, rows), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (label, picture) in enumerate(panels):
        left = gap + i * (ATTENTION_SIDE + gap)
        draw.multiline_text((left, 2), label, fill="black")
        canvas.paste(picture, (left, _LINES))
    return np.asarray(canvas)
