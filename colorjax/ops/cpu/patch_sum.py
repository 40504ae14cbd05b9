"""The patch sum and its gradients as kernels for CPUs, which pad nothing and move each byte of the weights once.

An item is a row of one image. What is summed up for a pixel stays in registers until all of its patch is, and the rows
around stay in the cache.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp

from colorjax.ops.cpu.llvm import INT, Emitter, Value, call, lanes


def serves(values: jax.Array, weights: jax.Array) -> bool:
    """Whether the kernels take so many channels: whole vectors of values, a period of the weights or a part of one in
    each."""
    channels, groups = values.shape[3], weights.shape[4]
    return channels % lanes() == 0 and (groups % lanes() == 0 or lanes() % groups == 0)


def forward(values: jax.Array, weights: jax.Array) -> jax.Array:
    """As `aggregation.patch_sum`, of shapes that were checked and that `serves` takes."""
    shape = _Shape.of(values, weights)
    (out,) = call(
        "patch_sum",
        functools.partial(_forward, shape=shape),
        items=values.shape[0] * shape.height,
        operands=[x.astype(jnp.float32) for x in (values, weights)],
        results=[values.shape],
    )
    return out.astype(values.dtype)


def backward(values: jax.Array, weights: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of `forward`: those of the values and of the weights, of their shapes and dtypes."""
    shape = _Shape.of(values, weights)
    d_values, d_weights = call(
        "patch_sum_backward",
        functools.partial(_backward, shape=shape),
        items=values.shape[0] * shape.height,
        operands=[x.astype(jnp.float32) for x in (values, weights, d_out)],
        results=[values.shape, weights.shape],
    )
    return d_values.astype(values.dtype), d_weights.astype(weights.dtype)


class _Shape(NamedTuple):
    height: int
    width: int
    channels: int
    groups: int
    kernel_size: int

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "_Shape":
        _, height, width, channels = values.shape
        return cls(height, width, channels, weights.shape[4], math.isqrt(weights.shape[3]))


def _forward(emitter: Emitter, item: Value, values: Value, weights: Value, out: Value, *, shape: _Shape) -> None:
    with emitter.loop(0, shape.width) as x:
        pixel = emitter.index((item, shape.width), (x, 1))
        terms = functools.partial(_patch, emitter, shape, item, x)
        _sum_up(emitter, shape, terms, values, weights, _at(emitter, out, pixel, shape.channels))


def _backward(
    emitter: Emitter,
    item: Value,
    values: Value,
    weights: Value,
    d_out: Value,
    d_values: Value,
    d_weights: Value,
    *,
    shape: _Shape,
) -> None:
    with emitter.loop(0, shape.width) as x:
        pixel = emitter.index((item, shape.width), (x, 1))
        outer = _at(emitter, d_out, pixel, shape.channels)
        outer = [emitter.load(outer, c) for c in range(0, shape.channels, lanes())]
        with _patch(emitter, shape, item, x) as (other, weight):
            value = _at(emitter, values, other, shape.channels)
            products: list[Value] = [emitter.constant(0)] * -(-shape.groups // lanes())
            for number, factor in enumerate(outer):
                g = number % len(products)
                products[g] = emitter.multiply_add(factor, emitter.load(value, number * lanes()), products[g])
            d_weight = _at(emitter, d_weights, weight, shape.groups)
            for g, product in enumerate(products):
                emitter.store_sums(product, d_weight, g * lanes(), shape.groups)
        terms = functools.partial(_seen_from, emitter, shape, item, x)
        _sum_up(emitter, shape, terms, d_out, weights, _at(emitter, d_values, pixel, shape.channels))


_Terms = Callable[[], AbstractContextManager[tuple[Value, Value]]]
"""A loop over the numbers of a pixel and of a weight that belong to it, the weights counted over pixels and offsets."""


def _sum_up(emitter: Emitter, shape: _Shape, terms: _Terms, values: Value, weights: Value, out: Value) -> None:
    """Σ weight · value over the terms, as many channels at a time as half of a processor's registers hold."""
    size = lanes() * max(8, lanes())
    for start in range(0, shape.channels, size):
        channels = range(start, min(start + size, shape.channels), lanes())
        sums = [emitter.variable(emitter.constant(0)) for _ in channels]
        with terms() as (pixel, weight):
            value = _at(emitter, values, pixel, shape.channels)
            weight = _at(emitter, weights, weight, shape.groups)
            factors = [emitter.load_repeated(weight, g, shape.groups) for g in range(0, shape.groups, lanes())]
            for total, c in zip(sums, channels, strict=True):
                factor = factors[c // lanes() % len(factors)]
                total.value = emitter.multiply_add(factor, emitter.load(value, c), total.value)
        for total, c in zip(sums, channels, strict=True):
            emitter.store(total.value, out, c)


def _at(emitter: Emitter, array: Value, number: Value, size: int) -> Value:
    return emitter.address(array, emitter.index((number, size)))


@contextmanager
def _patch(emitter: Emitter, shape: _Shape, item: Value, x: Value) -> Iterator[tuple[Value, Value]]:
    """The pixels of the patch around pixel x of a row, and that pixel's weights of them."""
    builder = emitter.builder
    y = builder.urem(item, INT(shape.height))
    own = emitter.index((item, shape.width), (x, 1))
    with emitter.loop(0, shape.kernel_size) as dy:
        row = builder.add(builder.sub(item, y), _reflected(emitter, shape, y, dy, shape.height))
        with emitter.loop(0, shape.kernel_size) as dx:
            column = _reflected(emitter, shape, x, dx, shape.width)
            weight = emitter.index((own, shape.kernel_size**2), (dy, shape.kernel_size), (dx, 1))
            yield emitter.index((row, shape.width), (column, 1)), weight


def _reflected(emitter: Emitter, shape: _Shape, place: Value, offset: Value, length: int) -> Value:
    at = emitter.builder.sub(emitter.builder.add(place, offset), INT(shape.kernel_size // 2))
    at = emitter.maximum(at, emitter.builder.neg(at))
    return emitter.minimum(at, emitter.builder.sub(INT(2 * (length - 1)), at))


@contextmanager
def _seen_from(emitter: Emitter, shape: _Shape, item: Value, x: Value) -> Iterator[tuple[Value, Value]]:
    """The pixels in whose patch pixel x of a row lies, and their weights of it."""
    builder = emitter.builder
    y = builder.urem(item, INT(shape.height))
    with _along(emitter, shape, y, shape.height) as (row, dy), _along(emitter, shape, x, shape.width) as (column, dx):
        row = builder.add(builder.sub(item, y), row)
        pixel = emitter.index((row, shape.width), (column, 1))
        yield pixel, emitter.index((pixel, shape.kernel_size**2), (dy, shape.kernel_size), (dx, 1))


@contextmanager
def _along(emitter: Emitter, shape: _Shape, place: Value, length: int) -> Iterator[tuple[Value, Value]]:
    """The same along one axis, with the offset: of the place itself, then of its mirror images beyond both ends."""
    builder = emitter.builder
    reach, last = shape.kernel_size // 2, length - 1
    with emitter.loop(0, 3) as image:
        at = place
        for number, end in ((1, 0), (2, last)):
            # An end is its own image, and counted already. Nobody sees so far.
            nowhere = builder.icmp_signed("==", place, INT(end))
            mirrored = builder.select(nowhere, INT(3 * length), builder.sub(INT(2 * end), place))
            at = builder.select(builder.icmp_signed("==", image, INT(number)), mirrored, at)
        first = emitter.maximum(builder.sub(at, INT(reach)), 0)
        with emitter.loop(first, emitter.minimum(builder.add(at, INT(reach + 1)), length)) as other:
            yield other, builder.add(builder.sub(at, other), INT(reach))
