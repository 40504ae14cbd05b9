"""Patchwise attention's last linear map and its patch sum as one operation, without the weights tensor between them.

A pixel's k²·G weights are a linear map of its G hidden features (γ's last layer). So they can be computed one offset at
a time, right where they are used:

    y_i[c] = Σ_j (h_i · W_j + b_j)[c mod G] · v_{i+j}[c]

For a 7×7 patch the weights are the network's largest tensor, and most of the bytes that the patch sum moves.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from colorjax.ops import dispatch
from colorjax.ops.patch_sum import check, patch_sum


def patch_attention(
    hidden: jax.Array, kernel: jax.Array, bias: jax.Array, values: jax.Array, *, kernel_size: int
) -> jax.Array:
    """Sums the k×k patch around each pixel, weighted by a linear map of the pixel's hidden features.

    Computes `patch_sum(values, hidden @ kernel + bias)`. On a TPU neither pass ever holds the weights. On CPUs and GPUs
    the patch sum takes the weights as an array, which the backward pass computes again.

    Args:
        hidden: floating [B, H, W, G].
        kernel: floating [G, k²·G]: the patch's offsets row by row, the weight channels within.
        bias: floating [k²·G].
        values: floating [B, H, W, C]; channel c takes weight channel c mod G.
        kernel_size: k, odd; values are reflected k // 2 pixels out of the image.

    Returns:
        [B, H, W, C] of the values' dtype. Products have operands of hidden's dtype, and sums are float32. Each gradient
        has the dtype of its operand.

    Raises:
        ValueError: if k is even, a shape does not fit the others, C is not a multiple of G, or H or W is not larger
            than k // 2 (the reflection needs that many rows).
    """
    groups = hidden.shape[-1]
    if kernel.shape != (groups, kernel_size**2 * groups) or bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"kernel and bias must be [G, k²·G] and [k²·G] with G = {groups} and k = {kernel_size}, got {kernel.shape} "
            f"and {bias.shape}"
        )
    check(values.shape, (*hidden.shape[:3], kernel_size**2, groups), kernel_size)
    return _patch_attention(kernel_size, hidden, kernel, bias, values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _patch_attention(
    kernel_size: int, hidden: jax.Array, kernel: jax.Array, bias: jax.Array, values: jax.Array
) -> jax.Array:
    fused = functools.partial(offset_by_offset, kernel_size)
    unfused = functools.partial(with_weights, kernel_size)
    return dispatch.by_platform(hidden, kernel, bias, values, default=fused, cpu=unfused, cuda=unfused, rocm=unfused)


def _patch_attention_fwd(kernel_size: int, *operands: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _patch_attention(kernel_size, *operands), operands


def _patch_attention_bwd(
    kernel_size: int, operands: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    # Without the barrier XLA would notice that the forward pass computes the same weights, and keep them until here.
    operands = lax.optimization_barrier(operands)
    fused = functools.partial(offset_by_offset_gradients, kernel_size)
    unfused = functools.partial(with_weights_gradients, kernel_size)
    return dispatch.by_platform(*operands, cotangent, default=fused, cpu=unfused, cuda=unfused, rocm=unfused)


_patch_attention.defvjp(_patch_attention_fwd, _patch_attention_bwd)


def with_weights(
    kernel_size: int, hidden: jax.Array, kernel: jax.Array, bias: jax.Array, values: jax.Array
) -> jax.Array:
    """The definition, with the weights as an array: for devices that have a patch sum of their own."""
    dtype = hidden.dtype
    weights = hidden @ kernel.astype(dtype) + bias.astype(dtype)[None, None, None]
    weights = weights.reshape(*hidden.shape[:3], kernel_size**2, hidden.shape[3])
    return patch_sum(values, weights, kernel_size=kernel_size)


def with_weights_gradients(kernel_size: int, *operands: jax.Array) -> tuple[jax.Array, ...]:
    """The gradients of hidden, kernel, bias and values, from these four and the result's cotangent."""
    return jax.vjp(functools.partial(with_weights, kernel_size), *operands[:-1])[1](operands[-1])


# The rest is for a TPU. Each turn of a loop is one fusion: a product on the matrix unit, whose result is multiplied by
# the shifted values before it is written. Rows and columns are the first axes, so that shifts move no lanes. The image
# is cut into blocks of rows, whose float32 sums stay in the chip's own memory (VMEM).

_BLOCK = 2**21
_MAX_BLOCKS = 8
_LANES = 128


def _symbolic(*sizes: int) -> bool:
    """Whether a size is a symbol, as jax.export has them."""
    return not all(isinstance(size, int) for size in sizes)


def _blocks(height: int, width: int, batch: int, channels: int) -> int:
    """The number of blocks of rows: `_BLOCK` numbers each at most, but few, as a device may have part of the batch."""
    if _symbolic(height, width, batch):
        return 1
    wanted = math.ceil(height * width * batch * max(channels, _LANES) / _BLOCK)
    return max(1, min(wanted, _MAX_BLOCKS, height))


def _spatial_first(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [H, W, B, C]."""
    return x.transpose(1, 2, 0, 3)


def _batch_first(x: jax.Array) -> jax.Array:
    """[H, W, B, C] -> [B, H, W, C]."""
    return x.transpose(2, 0, 1, 3)


def _with_ones(hidden: jax.Array) -> jax.Array:
    """Appends a feature that is always 1. Its row of the table is the bias."""
    return jnp.concatenate([hidden, jnp.ones((*hidden.shape[:3], 1), hidden.dtype)], axis=-1)


def _table(kernel: jax.Array, bias: jax.Array, offsets: int, channels: int) -> jax.Array:
    """The linear map of the weights, repeated for all value channels: [k², G + 1, C]."""
    groups = kernel.shape[0]
    rows = jnp.concatenate([kernel, bias[None].astype(kernel.dtype)]).reshape(groups + 1, offsets, groups)
    return jnp.tile(rows.swapaxes(0, 1), (1, 1, channels // groups))


def _reflect(values: jax.Array, reach: int, *, axis: int) -> jax.Array:
    width = [(reach, reach) if i in (axis, axis + 1) else (0, 0) for i in range(values.ndim)]
    return jnp.pad(values, width, mode="reflect")


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def offset_by_offset(
    kernel_size: int, hidden: jax.Array, kernel: jax.Array, bias: jax.Array, values: jax.Array
) -> jax.Array:
    """`with_weights`, but computes the weights one offset at a time."""
    channels = values.shape[3]
    table = _table(kernel, bias, kernel_size**2, channels).astype(hidden.dtype)
    padded = _spatial_first(_reflect(values, kernel_size // 2, axis=1))
    out = _summed(kernel_size, _spatial_first(_with_ones(hidden)), table, padded, values.dtype, shift_hidden=False)
    return _batch_first(out)


def _summed(
    kernel_size: int,
    hidden: jax.Array,
    table: jax.Array,
    padded: jax.Array,
    dtype: DTypeLike,
    *,
    shift_hidden: bool,
) -> jax.Array:
    """Σ_j (hidden @ table_j) · padded_{i+j}, in blocks of rows.

    Args:
        kernel_size: k.
        hidden: [H, W, B, G + 1], or with shift_hidden [H + k - 1, W + k - 1, B, G + 1], shifted as `padded` is.
        table: [k², G + 1, C].
        padded: [H + k - 1, W + k - 1, B, C].
        dtype: of the result [H, W, B, C].
        shift_hidden: whether the weights are those of the shifted pixel.
    """
    margin = kernel_size - 1
    height, width = padded.shape[0] - margin, padded.shape[1] - margin
    batch, channels = padded.shape[2:]
    count = _blocks(height, width, batch, channels)
    rows = -(-height // count)
    if channels < _LANES and not _symbolic(height, width, batch):
        # The products have columns in the sublanes. With the values in the same layout, their slice is part of the
        # product's kernel. In the layout of most networks around it, every turn of the loop would copy its slice first.
        padded = with_layout_constraint(padded, Layout(major_to_minor=(0, 2, 1, 3)))

    def summed(top: jax.Array | int) -> jax.Array:
        def part(x: jax.Array, shifted: bool) -> jax.Array:
            if count == 1:
                return x
            return lax.dynamic_slice_in_dim(x, top, rows + margin if shifted else rows, axis=0)

        own, around = part(hidden, shift_hidden), part(padded, True)

        def add_offset(j: jax.Array, total: jax.Array) -> jax.Array:
            def shifted(x: jax.Array) -> jax.Array:
                corner = (j // kernel_size, j % kernel_size, 0, 0)
                return lax.dynamic_slice(x, corner, (rows, width, *x.shape[2:]))

            weights = _dot("hwbg,gc->hwbc", shifted(own) if shift_hidden else own, table[j])
            return total + weights * shifted(around).astype(jnp.float32)

        zeros = jnp.zeros((rows, width, batch, channels), jnp.float32)
        return lax.fori_loop(0, kernel_size**2, add_offset, zeros).astype(dtype)

    if count == 1:
        return summed(0)

    def write_block(number: jax.Array, out: jax.Array) -> jax.Array:
        # The last block may write some rows of the one before it again.
        top = jnp.minimum(number * rows, height - rows)
        return lax.dynamic_update_slice_in_dim(out, summed(top), top, axis=0)

    return lax.fori_loop(0, count, write_block, jnp.zeros((height, width, batch, channels), dtype))


def offset_by_offset_gradients(
    kernel_size: int,
    hidden: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    values: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`with_weights_gradients`, but computes the weights one offset at a time."""
    channels, groups = values.shape[3], hidden.shape[3]
    table = _table(kernel, bias, kernel_size**2, channels).astype(hidden.dtype)
    d_hidden, d_table = _weights_gradients(kernel_size, hidden, table, values, cotangent)
    # Sums over the channels that share a weight.
    d_table = d_table.reshape(kernel_size**2, groups + 1, channels // groups, groups).sum(axis=2).swapaxes(0, 1)
    d_table = d_table.reshape(groups + 1, -1)
    return (
        d_hidden.astype(hidden.dtype),
        d_table[:groups].astype(kernel.dtype),
        d_table[groups].astype(bias.dtype),
        _values_gradient(kernel_size, hidden, table, values, cotangent),
    )


def _weights_gradients(
    kernel_size: int, hidden: jax.Array, table: jax.Array, values: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of hidden and table: float32 [B, H, W, G] and [k², G + 1, C]."""
    height, width, groups = hidden.shape[1], hidden.shape[2], hidden.shape[3]
    padded = _reflect(values, kernel_size // 2, axis=1)
    with_ones = _with_ones(hidden)
    by_row = table.reshape(kernel_size, kernel_size, *table.shape[1:])

    # Unrolled along a row of the patch: in a loop of single offsets both products would read one array, which would be
    # written to memory for that.
    def add_row(dy: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d_hidden, d_table = sums
        row, parts = by_row[dy], []
        around = lax.dynamic_slice_in_dim(padded, dy, height, axis=1)
        for dx in range(kernel_size):
            d_weights = cotangent.astype(jnp.float32) * around[:, :, dx : dx + width].astype(jnp.float32)
            d_weights = d_weights.astype(hidden.dtype)
            d_hidden += _dot("bhwc,gc->bhwg", d_weights, row[dx, :groups])
            parts.append(_dot("bhwg,bhwc->bgc", with_ones, d_weights))
        return d_hidden, lax.dynamic_update_index_in_dim(d_table, jnp.stack(parts), dy, axis=0)

    # One gradient of the table for each image, so that chips exchange their sums once, after the loop.
    shape = (kernel_size, kernel_size, hidden.shape[0], *table.shape[1:])
    sums = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(shape, jnp.float32)
    d_hidden, d_table = lax.fori_loop(0, kernel_size, add_row, sums)
    return d_hidden, d_table.sum(axis=2).reshape(table.shape)


def _values_gradient(
    kernel_size: int, hidden: jax.Array, table: jax.Array, values: jax.Array, cotangent: jax.Array
) -> jax.Array:
    # The forward sum with the offsets in reverse, and with each weight taken where its cotangent is: gathered from the
    # pixels whose patch contains each, so that nothing is summed in memory.
    reach, margin = kernel_size // 2, kernel_size - 1
    wide = [(margin, margin), (margin, margin), (0, 0), (0, 0)]
    own, outer = (jnp.pad(_spatial_first(x), wide) for x in (_with_ones(hidden), cotangent))
    if values.shape[3] < _LANES:
        # If the channels do not fill the lanes, the products need the columns there. Otherwise every turn of the loop
        # would copy its slice first.
        own = with_layout_constraint(own, Layout(major_to_minor=(0, 2, 3, 1)))
    d_padded = _summed(kernel_size, own, table[::-1], outer, jnp.float32, shift_hidden=True)
    # The border is added to the pixels that it mirrors.
    like = jax.ShapeDtypeStruct(_spatial_first(values).shape, jnp.float32)
    (d_values,) = jax.linear_transpose(functools.partial(_reflect, reach=reach, axis=0), like)(d_padded)
    return _batch_first(d_values.astype(values.dtype))
