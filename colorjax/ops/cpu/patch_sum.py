"""The patch sum and its gradients as kernels for CPUs.

They pad nothing and move each byte of the weights once. An item is a row of one image. A pixel's sum stays in registers
over its whole patch, and the rows around it stay in the cache.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp

from colorjax.ops.cpu.emitter import INT, Emitter, Value, lanes
from colorjax.ops.cpu.llvm import call


def supports(values: jax.Array, weights: jax.Array) -> bool:
    """Whether the kernels take so many channels: the values fill whole vectors, and the weight channels whole vectors
    or an even part of one."""
    channels, groups = values.shape[3], weights.shape[4]
    return channels % lanes() == 0 and (groups % lanes() == 0 or lanes() % groups == 0)


def forward(values: jax.Array, weights: jax.Array) -> jax.Array:
    """`ops.patch_sum.patch_sum`. Assumes validated shapes (see `supports`)."""
    layer = _Layer.of(values, weights)
    batch, height, width, _ = values.shape
    (out,) = call(
        layer.name("patch_sum"),
        functools.partial(_forward, layer),
        items=batch * height,
        sizes=[height, width],
        operands=[x.astype(jnp.float32) for x in (values, weights)],
        results=[values.shape],
    )
    return out.astype(values.dtype)


def backward(values: jax.Array, weights: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of `forward` with respect to the values and the weights, of their shapes and dtypes."""
    layer = _Layer.of(values, weights)
    batch, height, width, _ = values.shape
    d_values, d_weights = call(
        layer.name("patch_sum_backward"),
        functools.partial(_backward, layer),
        items=batch * height,
        sizes=[height, width],
        operands=[x.astype(jnp.float32) for x in (values, weights, d_out)],
        results=[values.shape, weights.shape],
    )
    return d_values.astype(values.dtype), d_weights.astype(weights.dtype)


class _Layer(NamedTuple):
    """What a kernel is compiled for."""

    channels: int
    groups: int
    kernel_size: int

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "_Layer":
        return cls(values.shape[3], weights.shape[4], math.isqrt(weights.shape[3]))

    def name(self, kernel: str) -> str:
        return "_".join(map(str, (kernel, *self)))


class _Pixel(NamedTuple):
    """The pixel that a kernel computes, and the size of the image."""

    item: Value
    """The row, counted over all images."""
    x: Value
    height: Value
    width: Value

    def number(self, emitter: Emitter) -> Value:
        """The pixel's number, counted over all images."""
        return emitter.index((self.item, self.width), (self.x, 1))


def _forward(
    layer: _Layer, emitter: Emitter, item: Value, height: Value, width: Value, values: Value, weights: Value, out: Value
) -> None:
    with emitter.loop(0, width) as x:
        pixel = _Pixel(item, x, height, width)
        terms = functools.partial(_patch, emitter, layer, pixel)
        _sum_up(emitter, layer, terms, values, weights, _at(emitter, out, pixel.number(emitter), layer.channels))


def _backward(
    layer: _Layer,
    emitter: Emitter,
    item: Value,
    height: Value,
    width: Value,
    values: Value,
    weights: Value,
    d_out: Value,
    d_values: Value,
    d_weights: Value,
) -> None:
    with emitter.loop(0, width) as x:
        pixel = _Pixel(item, x, height, width)
        number = pixel.number(emitter)
        outer = _at(emitter, d_out, number, layer.channels)
        outer = [emitter.load(outer, c) for c in range(0, layer.channels, lanes())]
        with _patch(emitter, layer, pixel) as (other, weight):
            value = _at(emitter, values, other, layer.channels)
            products: list[Value] = [emitter.constant(0)] * -(-layer.groups // lanes())
            for i, factor in enumerate(outer):
                g = i % len(products)
                products[g] = emitter.multiply_add(factor, emitter.load(value, i * lanes()), products[g])
            d_weight = _at(emitter, d_weights, weight, layer.groups)
            for g, product in enumerate(products):
                emitter.store_sums(product, d_weight, g * lanes(), layer.groups)
        terms = functools.partial(_patches_with, emitter, layer, pixel)
        _sum_up(emitter, layer, terms, d_out, weights, _at(emitter, d_values, number, layer.channels))


_Terms = Callable[[], AbstractContextManager[tuple[Value, Value]]]
"""A loop over the terms of a pixel's sum: the number of another pixel, and that of a weight (counted over pixels and
offsets)."""


def _sum_up(emitter: Emitter, layer: _Layer, terms: _Terms, values: Value, weights: Value, out: Value) -> None:
    """Σ weight · value over the terms, as many channels at a time as half of a processor's registers hold."""
    size = lanes() * max(8, lanes())
    for start in range(0, layer.channels, size):
        channels = range(start, min(start + size, layer.channels), lanes())
        sums = [emitter.variable(emitter.constant(0)) for _ in channels]
        with terms() as (pixel, weight):
            value = _at(emitter, values, pixel, layer.channels)
            weight = _at(emitter, weights, weight, layer.groups)
            factors = [emitter.load_repeated(weight, g, layer.groups) for g in range(0, layer.groups, lanes())]
            for total, c in zip(sums, channels, strict=True):
                factor = factors[c // lanes() % len(factors)]
                total.value = emitter.multiply_add(factor, emitter.load(value, c), total.value)
        for total, c in zip(sums, channels, strict=True):
            emitter.store(total.value, out, c)


def _at(emitter: Emitter, array: Value, number: Value, size: int) -> Value:
    return emitter.address(array, emitter.index((number, size)))


@contextmanager
def _patch(emitter: Emitter, layer: _Layer, pixel: _Pixel) -> Iterator[tuple[Value, Value]]:
    """The pixels of the patch around a pixel, and its weights for them."""
    builder = emitter.builder
    y = builder.urem(pixel.item, pixel.height)
    first_weight = emitter.index((pixel.number(emitter), layer.kernel_size**2))
    with emitter.loop(0, layer.kernel_size) as dy:
        row = builder.add(builder.sub(pixel.item, y), _reflected(emitter, layer, y, dy, pixel.height))
        with emitter.loop(0, layer.kernel_size) as dx:
            column = _reflected(emitter, layer, pixel.x, dx, pixel.width)
            weight = emitter.index((first_weight, 1), (dy, layer.kernel_size), (dx, 1))
            yield emitter.index((row, pixel.width), (column, 1)), weight


def _reflected(emitter: Emitter, layer: _Layer, center: Value, offset: Value, length: Value) -> Value:
    at = emitter.builder.sub(emitter.builder.add(center, offset), INT(layer.kernel_size // 2))
    at = emitter.maximum(at, emitter.builder.neg(at))
    return emitter.minimum(at, emitter.index((length, 2), (2, -1), (at, -1)))


@contextmanager
def _patches_with(emitter: Emitter, layer: _Layer, pixel: _Pixel) -> Iterator[tuple[Value, Value]]:
    """The pixels whose patches contain a pixel, and their weights for it."""
    builder = emitter.builder
    y = builder.urem(pixel.item, pixel.height)
    rows = _along_axis(emitter, layer, y, pixel.height)
    columns = _along_axis(emitter, layer, pixel.x, pixel.width)
    with rows as (row, dy), columns as (column, dx):
        row = builder.add(builder.sub(pixel.item, y), row)
        number = emitter.index((row, pixel.width), (column, 1))
        yield number, emitter.index((number, layer.kernel_size**2), (dy, layer.kernel_size), (dx, 1))


@contextmanager
def _along_axis(emitter: Emitter, layer: _Layer, place: Value, length: Value) -> Iterator[tuple[Value, Value]]:
    """`_patches_with` along one axis, with the offset in the patch: of the place itself, then of its mirror images
    beyond both ends."""
    builder = emitter.builder
    reach = layer.kernel_size // 2
    with emitter.loop(0, 3) as image:
        at = place
        for number, end in ((1, INT(0)), (2, builder.sub(length, INT(1)))):
            # An end is its own image, which is counted already: moved to where no patch reaches.
            at_end = builder.icmp_signed("==", place, end)
            mirrored = builder.select(at_end, emitter.index((length, 3)), emitter.index((end, 2), (place, -1)))
            at = builder.select(builder.icmp_signed("==", image, INT(number)), mirrored, at)
        first = emitter.maximum(builder.sub(at, INT(reach)), 0)
        with emitter.loop(first, emitter.minimum(builder.add(at, INT(reach + 1)), length)) as other:
            yield other, builder.add(builder.sub(at, other), INT(reach))
