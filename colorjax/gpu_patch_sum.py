"""The patch sum and its gradients for GPUs: each is one kernel that XLA makes of a sum over gathered values.

A thread has a number of the result and reads what it needs where it lies. The reflection is arithmetic on indices that
XLA computes on the fly. So nothing is padded or unfolded in memory, and a kernel moves each byte of the weights once.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax


def forward(values: jax.Array, weights: jax.Array) -> jax.Array:
    """As `aggregation.patch_sum`, of shapes that were checked."""
    size = math.isqrt(weights.shape[3])
    sharers = values.shape[3] // weights.shape[4]
    total = jnp.zeros((), jnp.float32)
    # A sum over a row of the patch is short enough for XLA to write it as a loop in the kernel.
    for dy in range(size):
        around = _patch_row(values, size, dy)
        of_row = jnp.tile(weights[:, :, :, dy * size : (dy + 1) * size], (1, 1, 1, 1, sharers))
        total += (of_row.astype(jnp.float32) * around.astype(jnp.float32)).sum(axis=3)
    return total.astype(values.dtype)


def backward(values: jax.Array, weights: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of `forward`: those of the values and of the weights, of their shapes and dtypes."""
    return _d_values(values, weights, d_out), _d_weights(values, weights, d_out)


def _d_weights(values: jax.Array, weights: jax.Array, d_out: jax.Array) -> jax.Array:
    size = math.isqrt(weights.shape[3])
    _, height, width, _ = values.shape

    def patch(image: jax.Array) -> jax.Array:
        j = _along(size**2, 2)
        rows = _reflected(_along(height, 0) + j // size - size // 2, height)
        columns = _reflected(_along(width, 1) + j % size - size // 2, width)
        return image[rows, columns]

    product = jax.vmap(patch)(values).astype(jnp.float32) * d_out[:, :, :, None].astype(jnp.float32)
    product = product.reshape(*product.shape[:4], -1, weights.shape[4])
    return product.sum(axis=4).astype(weights.dtype)


def _d_values(values: jax.Array, weights: jax.Array, d_out: jax.Array) -> jax.Array:
    # Gathered from the pixels whose patch has the place; then the border goes to the pixels that it mirrors.
    size, reach = math.isqrt(weights.shape[3]), math.isqrt(weights.shape[3]) // 2
    batch, height, width, channels = values.shape
    shape = (batch, height + 2 * reach, width + 2 * reach, size, channels)
    total = jnp.zeros((), jnp.float32)
    for dy in range(size):

        def asking(of_weights: jax.Array, of_out: jax.Array, dy: int = dy) -> tuple[jax.Array, jax.Array]:
            dx = _along(size, 2)
            rows = jnp.clip(_along(shape[1], 0) - dy, 0, height - 1)
            columns = jnp.clip(_along(shape[2], 1) - dx, 0, width - 1)
            # The weights channel by channel: XLA writes a gathered array to memory before it repeats it.
            group = jnp.arange(channels) % weights.shape[4]
            weight = of_weights[rows[..., None], columns[..., None], (dy * size + dx)[..., None], group]
            return weight, of_out[rows, columns]

        weight, outer = jax.vmap(asking)(weights, d_out)
        # Of the whole shape, so that it is computed on the fly as well.
        row, column = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
        row, column = row - dy, column - lax.broadcasted_iota(jnp.int32, shape, 3)
        there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        total += jnp.where(there, weight.astype(jnp.float32) * outer.astype(jnp.float32), 0).sum(axis=3)

    def reflect(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="reflect")

    like = jax.ShapeDtypeStruct(values.shape, jnp.float32)
    return jax.linear_transpose(reflect, like)(total)[0].astype(values.dtype)


def _patch_row(values: jax.Array, size: int, dy: int) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, k, C]: one row of each pixel's patch."""
    _, height, width, _ = values.shape
    rows = _reflected(_along(height, 0) + dy - size // 2, height)
    columns = _reflected(_along(width, 1) + _along(size, 2) - size // 2, width)
    return jax.vmap(lambda image: image[rows, columns])(values)


def _along(size: int, axis: int) -> jax.Array:
    """0…size - 1 along an axis of three."""
    return jnp.arange(size).reshape([-1 if i == axis else 1 for i in range(3)])


def _reflected(i: jax.Array, length: int) -> jax.Array:
    """The pixel that stands at place i of the padded image."""
    i = jnp.abs(i)
    return jnp.where(i < length, i, 2 * (length - 1) - i)
