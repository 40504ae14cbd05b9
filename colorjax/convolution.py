"""The convolution that halves an image, with a gradient of its own for CPUs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")


def halving_convolution(x: jax.Array, kernel: jax.Array, *_: Any, **options: Any) -> jax.Array:
    """A 3×3 convolution with stride 2 and zero padding 1, for nnx.Conv's `conv_general_dilated`.

    On a CPU XLA's gradient towards the input is a convolution of the cotangent with zeros between its pixels, three of
    four products for nothing. There it is made of four convolutions without, one for each of the pixels that lie on,
    below, beside and across the cotangent's.

    Args:
        x: floating [B, H, W, in].
        kernel: floating [3, 3, in, out].
        options: of lax.conv_general_dilated, of which `precision` and `preferred_element_type` are taken.

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

    @jax.custom_vjp
    def by_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel)

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return convolve(x, kernel), (x, kernel)

    def backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, kernel = residuals
        (d_kernel,) = jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](cotangent)
        # By what the program is lowered for, which need not be the device at hand.
        d_x = lax.platform_dependent(
            cotangent,
            cpu=lambda cotangent: input_gradient(cotangent, kernel, x.shape).astype(x.dtype),
            default=lambda cotangent: jax.vjp(lambda x: convolve(x, kernel), x)[1](cotangent)[0],
        )
        return d_x, d_kernel

    by_phases.defvjp(forward, backward)
    return by_phases(x, kernel)


def input_gradient(cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Of a 3×3 convolution with stride 2 and padding 1: [B, ⌈H/2⌉, ⌈W/2⌉, out] -> the input's shape [B, H, W, in]."""
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
