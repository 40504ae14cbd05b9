"""From a colorizer's outputs to ab, and from ab to a photo: used by training, evaluation and prediction."""

import jax
import jax.numpy as jnp

from colorjax import color
from colorjax.model.colorizer import Outputs


def decode_ab(outputs: Outputs, *, temperature: float) -> jax.Array:
    """The ab that a Colorizer predicts: float32 [B, h, w, 2] at the output's size.

    Args:
        outputs: of a Colorizer. Logits are decoded by the annealed mean; the ab of a regression is returned unchanged.
        temperature: of the annealed mean (color.annealed_mean).
    """
    assert outputs.color is not None
    if outputs.color.shape[-1] == 2:
        return outputs.color
    return color.annealed_mean(outputs.color, temperature=temperature)


def compose_photo(l: jax.Array, ab: jax.Array) -> jax.Array:
    """Composes a photo from its lightness and an ab of any size.

    Args:
        l: float32 [B, H, W, 1], 0…100.
        ab: float32 [B, h, w, 2]; it is resized bilinearly.

    Returns:
        float32 [B, H, W, 3], sRGB, 0…1.
    """
    ab = jax.image.resize(ab, (*l.shape[:3], 2), "bilinear")
    return color.lab_to_rgb(jnp.concatenate([l, ab], axis=-1))


def decode_photo(outputs: Outputs, l: jax.Array, *, temperature: float) -> jax.Array:
    """The photo that a Colorizer predicts, with the given lightness: float32 [B, H, W, 3], sRGB, 0…1.

    Arguments as of `decode_ab` and `compose_photo`.
    """
    return compose_photo(l, decode_ab(outputs, temperature=temperature))
