"""From a colorizer's outputs to ab, and from ab to a photo: used by training, evaluation and prediction."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from colorjax import color


@dataclass(frozen=True, eq=False)
class Decoder:
    """How ab is read from what a Colorizer predicts.

    Attributes:
        temperature: of the annealed mean (color.annealed_mean).
        saturation: factor on ab.
        adjustment: float32 [313], added to the logits of the ab bins.
    """

    temperature: float
    saturation: float
    adjustment: np.ndarray

    def adjusted(self, predicted: jax.Array | np.ndarray) -> jax.Array:
        """The logits by which colors are decoded, [..., 313]; the ab of a regression, [..., 2], is left as it is."""
        predicted = jnp.asarray(predicted)
        if predicted.shape[-1] == 2:
            return predicted
        return predicted + jnp.broadcast_to(self.adjustment, predicted.shape)

    def ab(self, predicted: jax.Array | np.ndarray, *, temperature: float | None = None) -> jax.Array:
        """Decodes a Colorizer's color: logits [..., 313] or, of a regression, ab [..., 2] -> float32 [..., 2].

        Args:
            predicted: `Outputs.color`.
            temperature: another one than the decoder's; a regression ignores it.
        """
        if predicted.shape[-1] == 2:
            return self.saturation * jnp.asarray(predicted)
        temperature = self.temperature if temperature is None else temperature
        return self.saturation * color.annealed_mean(self.adjusted(predicted), temperature=temperature)

    def photo(self, predicted: jax.Array | np.ndarray, l: jax.Array) -> jax.Array:
        """The photo of a Colorizer's color and a lightness: `ab`, then `compose_photo`."""
        return compose_photo(l, self.ab(predicted))


def make_decoder(config: Any, prior: np.ndarray | None) -> Decoder:
    """The decoder that a configuration's `decode` section describes.

    A network that is trained with rarity weights v predicts distributions in proportion to v·p. The adjustment
    −u·log v, with u = decode.unweighting, takes a share of the weights out again (Menon et al., *Long-tail learning via
    logit adjustment*, ICLR 2021).

    Args:
        config: see configs/paper.py.
        prior: p, [313], of the colors that the network was trained on; only an unweighting needs it.

    Raises:
        ValueError: if the prior is needed and absent.
    """
    decode, loss = config.decode, config.loss
    adjustment = np.zeros(color.NUM_BINS, np.float32)
    if decode.unweighting and config.model.head == "bins":
        if prior is None:
            raise ValueError(
                f"decode.unweighting is {decode.unweighting}, which needs the colors of the training photos, "
                "and there is no prior.npz: set it to 0"
            )
        weights = color.rarity_weights(prior, mix=loss.rarity, sigma=loss.sigma)
        adjustment = np.float32(-decode.unweighting) * np.log(weights)
    return Decoder(float(decode.temperature), float(decode.saturation), adjustment)


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
