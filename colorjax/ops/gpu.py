"""The patch sum and its gradients for GPUs: sums over gathered values, of which XLA makes few kernels.

A thread computes one number of the result and reads its operands in place. The reflection is arithmetic on indices. So
nothing is padded or unfolded in memory, and each pass reads the weights once.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax


def patch_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """`ops.patch_sum.patch_sum`, without its check of the shapes."""
    size = math.isqrt(weights.shape[3])
    sharers = values.shape[3] // weights.shape[4]
    total = jnp.zeros((), jnp.float32)
    # A sum over one row of the patch is short enough for XLA to write it as a loop in the kernel.
    for dy in range(size):
        row = _patch_row(values, size, dy)
        row_weights = jnp.tile(weights[:, :, :, dy * size : (dy + 1) * size], (1, 1, 1, 1, sharers))
        total += (row_weights.astype(jnp.float32) * row.astype(jnp.float32)).sum(axis=3)
    return total.astype(values.dtype)


def patch_sum_gradients(values: jax.Array, weights: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of `patch_sum` with respect to values and weights, in their shapes and dtypes."""
    return _d_values(values, weights, d_out), _d_weights(values, weights, d_out)


def _d_weights(values: jax.Array, weights: jax.Array, d_out: jax.Array) -> jax.Array:
    size = math.isqrt(weights.shape[3])
    _, height, width, _ = values.shape

    def patch(image: jax.Array) -> jax.Array:
        j = _arange(size**2, 2)
        rows = _reflect(_arange(height, 0) + j // size - size // 2, height)
        columns = _reflect(_arange(width, 1) + j % size - size // 2, width)
        return image[rows, columns]

    product = jax.vmap(patch)(values).astype(jnp.float32) * d_out[:, :, :, None].astype(jnp.float32)
    product = product.reshape(*product.shape[:4], -1, weights.shape[4])
    return product.sum(axis=4).astype(weights.dtype)


def _d_values(values: jax.Array, weights: jax.Array, d_out: jax.Array) -> jax.Array:
    # The gradient of the padded values, gathered from the pixels whose patch contains each; then the border is added to
    # the pixels that it mirrors.
    size, reach = math.isqrt(weights.shape[3]), math.isqrt(weights.shape[3]) // 2
    batch, height, width, channels = values.shape
    shape = (batch, height + 2 * reach, width + 2 * reach, size, channels)
    total = jnp.zeros((), jnp.float32)
    for dy in range(size):

        def pixels(weights: jax.Array, d_out: jax.Array, dy: int = dy) -> tuple[jax.Array, jax.Array]:
            dx = _arange(size, 2)
            rows = jnp.clip(_arange(shape[1], 0) - dy, 0, height - 1)
            columns = jnp.clip(_arange(shape[2], 1) - dx, 0, width - 1)
            # One weight for each value channel: XLA would write the gathered groups to memory before repeating them.
            group = (jnp.arange(channels) % weights.shape[-1])[None, None, None]
            weight = weights[rows[..., None], columns[..., None], (dy * size + dx)[..., None], group]
            return weight, d_out[rows, columns]

        weight, outer = jax.vmap(pixels)(weights, d_out)
        # In the full shape, so that XLA computes the mask inside the kernel.
        row, column = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
        row, column = row - dy, column - lax.broadcasted_iota(jnp.int32, shape, 3)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        total += jnp.where(inside, weight.astype(jnp.float32) * outer.astype(jnp.float32), 0).sum(axis=3)

    def reflect(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="reflect")

    like = jax.ShapeDtypeStruct(values.shape, jnp.float32)
    return jax.linear_transpose(reflect, like)(total)[0].astype(values.dtype)


def _patch_row(values: jax.Array, size: int, dy: int) -> jax.Array:
    """One row of each pixel's patch: [B, H, W, C] -> [B, H, W, k, C]."""
    _, height, width, _ = values.shape
    rows = _reflect(_arange(height, 0) + dy - size // 2, height)
    columns = _reflect(_arange(width, 1) + _arange(size, 2) - size // 2, width)
    return jax.vmap(lambda image: image[rows, columns])(values)


def _arange(size: int, axis: int) -> jax.Array:
    """0…size - 1 along one of three axes; the others have size 1."""
    return jnp.arange(size).reshape([-1 if i == axis else 1 for i in range(3)])


def _reflect(i: jax.Array, length: int) -> jax.Array:
    """The index inside the image that index i, outside it by less than `length`, mirrors."""
    i = jnp.abs(i)
    return jnp.where(i < length, i, 2 * (length - 1) - i)
