"""The patch sum: every pixel's weighted sum over the k×k patch around it.

This is the aggregation of patchwise self-attention (Zhao, Jia, Koltun, *Exploring Self-attention
for Image Recognition*, section 3.2; hszhao/SAN lib/sa/functions/aggregation_refpad.py):

    y_i[c] = Σ_j w_{i,j}[c mod G] · v_{i+j}[c]

with j over the k×k offsets of the patch, row by row, and v padded by reflection.
"""

import functools

import jax
import jax.numpy as jnp


def patch_sum(values: jax.Array, weights: jax.Array, *, kernel_size: int) -> jax.Array:
    """Sums the k×k patch around each pixel with that pixel's own weights.

    Args:
        values: floating [B, H, W, C].
        weights: floating [k², G, B, H, W]: offset (row-major over the patch), weight channel,
            image, row, column. Channel c of the values takes weight channel c mod G. The pixels
            come last so that each offset is one contiguous block, read and written in order.
        kernel_size: k, odd; the reflection reaches k // 2 pixels out of the image.

    Returns:
        [B, H, W, C] of the values' dtype; summed in float32.

    Raises:
        ValueError: if k is even, a shape does not fit the others, C is not a multiple of G, or
            H or W is not larger than k // 2 (the reflection needs that many rows).
    """
    _check(values.shape, weights.shape, kernel_size)
    return _patch_sum(kernel_size, values, weights)


def _check(values: tuple[int, ...], weights: tuple[int, ...], kernel_size: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    if len(values) != 4:
        raise ValueError(f"values must be [B, H, W, C], got shape {values}")
    batch, height, width, channels = values
    if len(weights) != 5 or (weights[0], *weights[2:]) != (kernel_size**2, batch, height, width):
        raise ValueError(
            f"weights must be [{kernel_size**2}, G, {batch}, {height}, {width}] for values "
            f"{values} and kernel_size {kernel_size}, got shape {weights}"
        )
    if weights[1] == 0 or channels % weights[1]:
        raise ValueError(
            f"the values' {channels} channels are not a multiple of the weights' {weights[1]}"
        )
    if min(height, width) <= kernel_size // 2:
        raise ValueError(
            f"reflection by {kernel_size // 2} pixels needs a larger image than "
            f"{height}×{width}: use a smaller kernel_size than {kernel_size}"
        )


def _planes(values: jax.Array, groups: int) -> jax.Array:
    """[B, H, W, C] -> float32 [C / G, G, B, H, W]: the weights' order, pixels last."""
    batch, height, width, channels = values.shape
    planes = values.astype(jnp.float32).transpose(3, 0, 1, 2)
    return planes.reshape(channels // groups, groups, batch, height, width)


def _pad(planes: jax.Array, kernel_size: int) -> jax.Array:
    """Reflects the last two axes outwards by k // 2."""
    reach = (kernel_size // 2, kernel_size // 2)
    return jnp.pad(planes, [(0, 0)] * (planes.ndim - 2) + [reach, reach], mode="reflect")


def _pixels(planes: jax.Array, like: jax.Array) -> jax.Array:
    """The way back of `_planes`, to the shape and dtype of `like`."""
    return planes.reshape(-1, *planes.shape[2:]).transpose(1, 2, 3, 0).astype(like.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _patch_sum(kernel_size: int, values: jax.Array, weights: jax.Array) -> jax.Array:
    height, width = values.shape[1:3]
    padded = _pad(_planes(values, weights.shape[1]), kernel_size)
    total = jnp.zeros((), jnp.float32)
    for j in range(kernel_size**2):
        dy, dx = divmod(j, kernel_size)
        shifted = padded[..., dy : dy + height, dx : dx + width]
        total = total + weights[j].astype(jnp.float32) * shifted
    return _pixels(total, values)


def _patch_sum_fwd(
    kernel_size: int, values: jax.Array, weights: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _patch_sum(kernel_size, values, weights), (values, weights)


def _patch_sum_bwd(
    kernel_size: int, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    values, weights = residuals
    height, width = values.shape[1:3]
    groups = weights.shape[1]
    padded, transpose_pad = jax.vjp(
        lambda planes: _pad(planes, kernel_size), _planes(values, groups)
    )
    outer = _planes(cotangent, groups)
    d_padded = jnp.zeros_like(padded)
    d_weights = []
    for j in range(kernel_size**2):
        dy, dx = divmod(j, kernel_size)
        patch = (..., slice(dy, dy + height), slice(dx, dx + width))
        d_weights.append((outer * padded[patch]).sum(axis=0).astype(weights.dtype))
        d_padded = d_padded.at[patch].add(weights[j].astype(jnp.float32) * outer)
    (d_planes,) = transpose_pad(d_padded)
    return _pixels(d_planes, values), jnp.stack(d_weights)


_patch_sum.defvjp(_patch_sum_fwd, _patch_sum_bwd)
