"""3×3 convolutions that are faster than XLA's own on CPUs: those with stride 2, and those of the smallest maps."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from colorjax.ops import dispatch

_NHWC = ("NHWC", "HWIO", "NHWC")


def halving_convolution(
    x: jax.Array,
    kernel: jax.Array,
    *_: Any,
    implementation: Literal["xla", "phases"] | None = None,
    **options: Any,
) -> jax.Array:
    """A 3×3 convolution with stride 2 and zero padding 1, for nnx.Conv's `conv_general_dilated`.

    On a CPU, XLA computes the input's gradient as a convolution of the cotangent with zeros between its pixels, so that
    three of four products are wasted. Here it is four convolutions without zeros there (`input_gradient`).

    Args:
        x: floating [B, H, W, in].
        kernel: floating [3, 3, in, out].
        implementation: of the input's gradient. None is "phases" (four convolutions) on CPUs and "xla" elsewhere.
        options: of lax.conv_general_dilated. `precision` and `preferred_element_type` are used.

    Returns:
        [B, ⌈H/2⌉, ⌈W/2⌉, out].
    """

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            [(1, 1), (1, 1)],
            dimension_numbers=_NHWC,
            precision=options.get("precision"),
            preferred_element_type=options.get("preferred_element_type"),
        )

    def xla(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(convolve, x, kernel)[1](cotangent)

    def phases(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        (d_kernel,) = jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](cotangent)
        return input_gradient(cotangent, kernel, x.shape).astype(x.dtype), d_kernel

    def backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        default = phases if implementation == "phases" else xla
        cpu = phases if implementation is None else None
        return dispatch.by_platform(*residuals, cotangent, default=default, cpu=cpu)

    convolution = jax.custom_vjp(convolve)
    convolution.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), backward)
    return convolution(x, kernel)


def same_convolution(x: jax.Array, kernel: jax.Array, *_: Any, **options: Any) -> jax.Array:
    """A 3×3 convolution with stride 1 and zero padding 1, for nnx.Conv's `conv_general_dilated`.

    Maps of at most 2×2 pixels are gathered into patches and multiplied. XLA swaps a kernel and a smaller map, which its
    CPU library cannot compute: 2×2 maps of 256 channels took twenty times as long.

    Args:
        x: floating [B, H, W, in].
        kernel: floating [3, 3, in, out].
        options: of lax.conv_general_dilated. `precision` and `preferred_element_type` are used.

    Returns:
        [B, H, W, out].
    """
    height, width = x.shape[1:3]
    used: Any = {name: options.get(name) for name in ("precision", "preferred_element_type")}
    if height >= 3 or width >= 3:
        return lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=_NHWC, **used)
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    taps = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.matmul(jnp.concatenate(taps, axis=-1), kernel.reshape(-1, kernel.shape[-1]), **used)


def input_gradient(cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The gradient with respect to the input of a 3×3 convolution with stride 2 and padding 1.

    One convolution for each kind of pixel: those on the cotangent's pixels, below, beside and diagonally between them.

    Args:
        cotangent: floating [B, ⌈H/2⌉, ⌈W/2⌉, out].
        kernel: floating [3, 3, in, out].
        shape: of the input, (B, H, W, in).

    Returns:
        [B, H, W, in].
    """
    batch, height, width, _ = cotangent.shape
    flipped = kernel.swapaxes(2, 3)
    padded = jnp.pad(cotangent, [(0, 0), (0, 1), (0, 1), (0, 0)])
    # Row 2m is seen by tap 1 of the cotangent's row m; row 2m + 1 by tap 2 of row m and tap 0 of row m + 1.
    taps = (slice(1, 2), slice(None, None, -2))

    def phase(below: int, beside: int) -> jax.Array:
        return lax.conv_general_dilated(
            padded[:, : height + below, : width + beside],
            flipped[taps[below], taps[beside]],
            (1, 1),
            "VALID",
            dimension_numbers=_NHWC,
        )

    rows = [jnp.stack([phase(below, 0), phase(below, 1)], axis=3) for below in (0, 1)]
    whole = jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)
    return whole[:, : shape[1], : shape[2]]
