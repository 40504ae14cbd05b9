"""What a colorizer's attentions look at from one place of a photo, as a picture."""

import functools

import jax
import numpy as np

from colorjax import color
from colorjax.model.colorizer import AttentionWeights
from colorjax.photos import resample
from colorjax.run import compilation, pictures
from colorjax.run.trained import Trained


def attention_weights(trained: Trained, photo: np.ndarray, at: tuple[int, int]) -> AttentionWeights:
    """The weights of the attentions at one place, for the photo at the size that the colorizer was trained on.

    Args:
        trained: the colorizer.
        photo: uint8 or uint16 [H, W] or [H, W, 1…4], as `Predictor.predict` takes it.
        at: x and y in pixels of the photo, from 0 at the left and the top.

    Returns:
        The weights as numpy arrays, of a batch of one.

    Raises:
        ValueError: if the place is outside the photo, or the colorizer has no attention.
    """
    height, width = photo.shape[:2]
    x, y = at
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"{x},{y} is outside the photo; x is 0…{width - 1} and y 0…{height - 1}")
    model = trained.config.model
    if model.output_attention == "none" and not model.patch_attention:
        raise ValueError("this colorizer has no attention (model.output_attention 'none', patch_attention False)")
    size = trained.config.data.image_size
    square = resample.thumbnail(photo, height=size, width=size)
    run = jax.jit(
        functools.partial(trained.program().attention_weights, trained.params, trained.stats),
        compiler_options=compilation.compiler_options(),
    )
    l = color.lightness(square[None], gray=False)
    return jax.device_get(run(l, x=np.float32((x + 0.5) / width), y=np.float32((y + 0.5) / height)))


def draw_attention(photo: np.ndarray, at: tuple[int, int], weights: AttentionWeights, *, size: int) -> np.ndarray:
    """The weights as one picture with labels: see `pictures.draw_attention`.

    Args:
        photo, at: as in `attention_weights`.
        weights: of it.
        size: side of the square that the network sees, in pixels.

    Returns:
        uint8 [rows, columns, 3].
    """
    height, width = photo.shape[:2]
    side = pictures.ATTENTION_SIDE
    small = resample.thumbnail(photo, height=max(1, round(side * height / width)), width=side)
    place = (at[0] + 0.5) / width, (at[1] + 0.5) / height
    return pictures.draw_attention(small, place, weights, size=size)
