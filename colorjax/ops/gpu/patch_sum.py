"""The patch sum as GPU kernels (Pallas on Triton): forward and both gradients, each byte of the weights moved once.

A program has a stretch of one row and all channels. It reads the patch's pixels where they lie, reflection included,
so that nothing is padded or unfolded in memory; neighboring programs find them in the cache. The weights, which are
most of the bytes, are read (or written) by one program each.

`colorjax.aggregation.patch_sum` takes these on request alone. They are for one GPU, since XLA does not divide a kernel
over devices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

# Numbers of the result that a program has at a time, in float32 in its registers.
_TILE = 2048
_WARPS = 4


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def patch_sum(kernel_size: int, interpret: bool, values: jax.Array, weights: jax.Array) -> jax.Array:
    """As `aggregation.patch_sum`, of shapes that were checked.

    Args:
        kernel_size: k, odd.
        interpret: runs the kernels as XLA programs on any device, for tests.
        values: floating [B, H, W, C].
        weights: floating [B, H, W, k², G].
    """
    return _call(_forward, kernel_size, interpret, values, weights, like=values, groups=weights.shape[4])


def _patch_sum_fwd(
    kernel_size: int, interpret: bool, values: jax.Array, weights: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return patch_sum(kernel_size, interpret, values, weights), (values, weights)


def _patch_sum_bwd(
    kernel_size: int, interpret: bool, residuals: tuple[jax.Array, jax.Array], d_out: jax.Array
) -> tuple[jax.Array, jax.Array]:
    values, weights = residuals
    groups = weights.shape[4]
    d_values = _call(_d_values, kernel_size, interpret, d_out, weights, like=values, groups=groups)
    d_weights = _call(_d_weights, kernel_size, interpret, d_out, values, like=weights, groups=groups)
    return d_values, d_weights


patch_sum.defvjp(_patch_sum_fwd, _patch_sum_bwd)


class _Tile(NamedTuple):
    """Where a program works: T pixels of a row, and S channels c = s·G + g that share each of G weights, rounded up to
    powers of two as Triton wants them.

    Attributes:
        image, row: int32 scalars.
        first: int32 scalar, the first of the columns.
        columns: int32 [T, 1, 1], of the pixels; beyond the row they are not `inside`.
        channels, groups: int32 [1, S, G] and [1, 1, G], c and g.
        inside: bool [T, S, G], whether it is a pixel and a channel; [T, 1, G] of the weights.
    """

    image: jax.Array
    row: jax.Array
    first: jax.Array
    columns: jax.Array
    channels: jax.Array
    groups: jax.Array
    inside: jax.Array


def _call(
    kernel: Callable[..., None],
    kernel_size: int,
    interpret: bool,
    first: jax.Array,
    second: jax.Array,
    *,
    like: jax.Array,
    groups: int,
) -> jax.Array:
    """Runs a kernel of two arrays, of which the first is [B, H, W, C], over all pixels."""
    batch, height, width, channels = first.shape
    sharers = channels // groups
    padded = pl.next_power_of_2(sharers) * pl.next_power_of_2(groups)
    length = max(1, min(_TILE // padded, pl.next_power_of_2(width)))
    tile = functools.partial(_tile, length=length, width=width, sharers=sharers, groups=groups)
    return pl.pallas_call(
        functools.partial(kernel, tile=tile, kernel_size=kernel_size, height=height, width=width),
        out_shape=jax.ShapeDtypeStruct(like.shape, like.dtype),
        grid=(pl.cdiv(width, length), height, batch),
        interpret=interpret,
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
    )(first, second)


def _tile(*, length: int, width: int, sharers: int, groups: int, shared: bool = False) -> _Tile:
    """This program's place; with `shared` without the sharers."""
    shape = (length, 1 if shared else pl.next_power_of_2(sharers), pl.next_power_of_2(groups))
    first = pl.program_id(0) * length
    # Each in its own axis and broadcast late, so that Triton sees that a pixel's channels lie side by side in memory.
    column, sharer, group = (
        lax.broadcasted_iota(jnp.int32, tuple(n if i == axis else 1 for i, n in enumerate(shape)), axis)
        for axis in range(3)
    )
    column += first
    channel = sharer * groups + group
    if shape[2] != groups:
        # Interpreted, what is masked is written back as it was, after what is not: it must not point at the same
        # number. Out of the array it is dropped.
        channel = jnp.where(group < groups, channel, sharers * groups)
    inside = (column < width) & (group < groups) & (sharer < sharers)
    return _Tile(pl.program_id(2), pl.program_id(1), first, column, channel, group, inside)


def _forward(values: Any, weights: Any, out: Any, *, tile: Callable, kernel_size: int, height: int, width: int) -> None:
    at = tile()
    reach = kernel_size // 2

    def add_row(dy: jax.Array, total: jax.Array) -> jax.Array:
        row = _reflected(at.row + dy - reach, height)
        for dx in range(kernel_size):
            column = _reflected(at.columns + dx - reach, width)
            value = _load(values, (at.image, row, column, at.channels), at.inside)
            weight = _load(weights, (at.image, at.row, at.columns, dy * kernel_size + dx, at.groups), at.inside)
            total += weight * value
        return total

    total = lax.fori_loop(0, kernel_size, add_row, jnp.zeros(at.inside.shape, jnp.float32))
    _store(out, (at.image, at.row, at.columns, at.channels), total, at.inside)


def _d_weights(
    d_out: Any, values: Any, d_weights: Any, *, tile: Callable, kernel_size: int, height: int, width: int
) -> None:
    at, of_weights = tile(), tile(shared=True)
    reach = kernel_size // 2
    outer = _load(d_out, (at.image, at.row, at.columns, at.channels), at.inside)

    def write_row(dy: jax.Array, carry: None) -> None:
        row = _reflected(at.row + dy - reach, height)
        for dx in range(kernel_size):
            column = _reflected(at.columns + dx - reach, width)
            value = _load(values, (at.image, row, column, at.channels), at.inside)
            shared = (outer * value).sum(axis=1, keepdims=True)
            place = (at.image, at.row, of_weights.columns, dy * kernel_size + dx, of_weights.groups)
            _store(d_weights, place, shared, of_weights.inside)
        return carry

    lax.fori_loop(0, kernel_size, write_row, None)


def _d_values(
    d_out: Any, weights: Any, d_values: Any, *, tile: Callable, kernel_size: int, height: int, width: int
) -> None:
    # A pixel is asked for by the patches around it, and where it is mirrored, by those around its mirror images. Beyond
    # the reach of all patches, where most pixels' mirror images lie, the loops over rows have no turn.
    at = tile()
    reach = kernel_size // 2
    length = at.inside.shape[0]

    def add(asked_row: jax.Array, asked_columns: jax.Array, row: jax.Array, dx: Any, total: jax.Array) -> jax.Array:
        """What the pixels of a row that see the asked place at column dx of their patches have asked of it."""
        columns = asked_columns - dx + reach
        there = at.inside & (columns >= 0) & (columns < width)
        offset = (asked_row - row + reach) * kernel_size + dx
        outer = _load(d_out, (at.image, row, columns, at.channels), there)
        weight = _load(weights, (at.image, row, columns, offset, at.groups), there)
        return total + weight * outer

    def add_row(row: jax.Array, total: jax.Array, *, asked_row: jax.Array) -> jax.Array:
        for dx in range(kernel_size):
            total = add(asked_row, at.columns, row, dx, total)
        left, right = _mirrored(at.columns, width)
        for columns, touches in (
            (left, at.first <= reach),
            (right, at.first + length + reach >= width),
        ):
            # Both ends int32 outright: of a Python number Triton's loop would have bounds of two types.
            turns = jnp.where(touches, jnp.int32(kernel_size), 0)
            total = lax.fori_loop(
                jnp.int32(0), turns, lambda dx, total, columns=columns: add(asked_row, columns, row, dx, total), total
            )
        return total

    total = jnp.zeros(at.inside.shape, jnp.float32)
    for asked_row in (at.row, *_mirrored(at.row, height)):
        first, end = jnp.maximum(asked_row - reach, 0), jnp.minimum(asked_row + reach + 1, height)
        total = lax.fori_loop(first, end, functools.partial(add_row, asked_row=asked_row), total)
    _store(d_values, (at.image, at.row, at.columns, at.channels), total, at.inside)


def _reflected(i: jax.Array, length: int) -> jax.Array:
    """The pixel that stands at place i of the padded image."""
    i = jnp.abs(i)
    return jnp.where(i < length, i, 2 * (length - 1) - i)


def _mirrored(i: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """The places before and behind the image at which pixel i stands as well: far away if it does not."""
    far = 4 * length
    return jnp.where(i > 0, -i, -far), jnp.where(i < length - 1, 2 * (length - 1) - i, far)


def _load(ref: Any, place: tuple[Any, ...], inside: jax.Array) -> jax.Array:
    """float32 of the shape of `inside`, 0 where that is false."""
    return plgpu.load(_at(ref, place, inside), mask=inside, other=0).astype(jnp.float32)


def _store(ref: Any, place: tuple[Any, ...], value: jax.Array, inside: jax.Array) -> None:
    plgpu.store(_at(ref, place, inside), value.astype(ref.dtype), mask=inside)


def _at(ref: Any, place: tuple[Any, ...], inside: jax.Array) -> Any:
    # Not clipped where `inside` is false, since Triton would no longer see that neighboring threads read neighboring
    # numbers, and read them one by one.
    return ref.at[tuple(jnp.broadcast_to(jnp.asarray(i, jnp.int32), inside.shape) for i in place)]
