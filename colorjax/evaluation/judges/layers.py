"""The layers of pretrained PyTorch networks, as functions of their weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from colorjax.evaluation.judges.weights import Weights


def by_channel(values: ArrayLike) -> jax.Array:
    """[channels] -> [1, 1, 1, channels]."""
    return jnp.reshape(jnp.asarray(values), (1, 1, 1, -1))


def convolution(
    weights: Weights,
    name: str,
    x: jax.Array,
    *,
    stride: int = 1,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> jax.Array:
    """The Conv2d of that name: [B, H, W, in] -> [B, h, w, out], in full float32 on every device."""
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(weights[f"{name}.weight"]),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return y + by_channel(weights[f"{name}.bias"]) if f"{name}.bias" in weights else y


def depthwise(weights: Weights, name: str, x: jax.Array, *, stride: int = 1) -> jax.Array:
    """The depthwise Conv2d of that name, without bias, padded like TensorFlow's SAME."""
    kernel = jnp.asarray(weights[f"{name}.weight"])
    k, size = kernel.shape[-1], -(-x.shape[1] // stride)
    extent = (size - 1) * stride + 1
    total = max(extent + k - 1 - x.shape[1], 0)
    padding = (total // 2, total - total // 2)
    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    # A sum of shifted maps: XLA's own grouped convolution takes twenty times as long on CPU.
    result = jnp.zeros((), x.dtype)
    for i, j in np.ndindex(k, k):
        result += by_channel(kernel[:, 0, i, j]) * x[:, i : i + extent : stride, j : j + extent : stride]
    return result


def batch_norm(weights: Weights, name: str, x: jax.Array, *, epsilon: float = 1e-3) -> jax.Array:
    """The BatchNorm2d of that name, in evaluation mode."""
    scale = weights[f"{name}.weight"] / jnp.sqrt(weights[f"{name}.running_var"] + epsilon)
    offset = weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale
    return x * by_channel(scale) + by_channel(offset)


def max_pool(x: jax.Array, *, stride: int = 2, padding: int = 0) -> jax.Array:
    """The MaxPool2d with a 3×3 window."""
    padded = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padded)
