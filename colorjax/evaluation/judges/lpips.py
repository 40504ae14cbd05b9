"""LPIPS 0.1 over AlexNet: the perceptual distance of two photos (Zhang et al., CVPR 2018), with the weights given."""

from pathlib import Path

import jax
import jax.numpy as jnp

from colorjax import color
from colorjax.evaluation.judges.weights import Weights, checked, convolution, max_pool, read_npz

CONVERT = (
    "import lpips, numpy; "
    'numpy.savez("lpips.npz", **{k: v.numpy() for k, v in lpips.LPIPS(net="alex").state_dict().items()})'
)
"""Makes the file, where the packages lpips and torchvision and a network are."""

# Of each convolution: its name in the lpips package, stride, padding, whether 3×3 maxima are taken before it.
_LAYERS = (
    ("net.slice1.0", 4, 2, False),
    ("net.slice2.3", 1, 2, True),
    ("net.slice3.6", 1, 1, True),
    ("net.slice4.8", 1, 1, False),
    ("net.slice5.10", 1, 1, False),
)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def load(path: str | Path) -> Weights:
    """The state dict of `lpips.LPIPS(net="alex")`, saved by `CONVERT`.

    Raises:
        ValueError: if the file is missing or something else, with the remedy.
    """
    weights = read_npz(path, convert=CONVERT)
    return checked(lambda w, rgb: distance(w, features(w, rgb), features(w, rgb)), weights, source=str(path))


def features(weights: Weights, rgb: jax.Array) -> list[jax.Array]:
    """The five feature maps of photos, [B, h, w, channels] each, every pixel's of length 1.

    Args:
        weights: of `load`.
        rgb: [B, H, W, 3], uint8 (0…255) or floating (0…1); 32×32 pixels or more, taken at their own size.
    """
    x = (2 * color.unit_rgb(rgb) - 1 - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
    maps = []
    for name, stride, padding, pooled in _LAYERS:
        x = max_pool(x) if pooled else x
        x = jax.nn.relu(convolution(weights, name, x, stride=stride, padding=[(padding, padding)] * 2))
        # The square root's gradient is nobody's concern here.
        maps.append(x / (jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)) + 1e-10))
    return maps


def distance(weights: Weights, a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    """float32 [B], 0 for equal photos, of the `features` of both."""
    return sum(
        (jnp.square(x - y) * jnp.asarray(weights[f"lin{i}.model.1.weight"]).reshape(-1)).sum(axis=-1).mean(axis=(1, 2))
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    )  # pyright: ignore[reportReturnType] (there are five)
