"""Photos side by side (gray, predicted, true), and maps as colors."""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from colorjax import color

_GAP = 4  # pixels, white
_HEAT = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])  # lighter and lighter
_HEADER = 14  # pixels, for the captions


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
