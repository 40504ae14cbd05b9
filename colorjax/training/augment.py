"""Geometric augmentation on the device: rotation, scale, shift and mirroring in one resampling."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from colorjax.data.batches import center_crop


def augment(
    image: jax.Array,
    key: jax.Array,
    *,
    size: int,
    rotation: float,
    scale: Sequence[float],
    shift: float,
    flip: bool,
) -> tuple[jax.Array, jax.Array]:
    """A random view of every photo, its center crop turned, scaled, shifted and mirrored.

    Args:
        image: uint8 [B, S, S, 3].
        key: a JAX random key.
        size: pixels of the result's side, at most S.
        rotation: degrees, uniform in ±rotation.
        scale: (least, most) magnification, log-uniform.
        shift: pixels of the result, uniform in ±shift along each axis.
        flip: whether to mirror with probability 1/2.

    Returns:
        rgb, float32 [B, size, size, 3], 0…1, bilinear, the photo's edge repeated outside of it; and `inside`,
        float32 [B, size, size], 1 where the photo is and 0 outside.
    """
    low, high = scale
    if not 0 < low <= high:
        raise ValueError(f"augment.scale is {tuple(scale)}; it must be 0 < least ≤ most")
    crop = center_crop(image, size)
    batch = image.shape[0]
    if not rotation and low == high == 1 and not shift:
        rgb, inside = crop.astype(jnp.float32) / 255, jnp.ones((batch, size, size), jnp.float32)
    else:
        rotation_key, scale_key, shift_key, _ = jax.random.split(key, 4)
        angle = jnp.deg2rad(jax.random.uniform(rotation_key, (batch,), minval=-1, maxval=1) * rotation)
        magnify = jnp.exp(jax.random.uniform(scale_key, (batch,), minval=jnp.log(low), maxval=jnp.log(high)))
        offset = shift * jax.random.uniform(shift_key, (batch, 2), minval=-1, maxval=1)
        rgb, inside = jax.vmap(_resample, in_axes=(0, 0, 0, 0, None))(image, angle, magnify, offset, size)
    if flip:
        mirrored = jax.random.bernoulli(jax.random.split(key, 4)[3], shape=(batch, 1, 1))
        rgb = _stack([jnp.where(mirrored, rgb[:, :, ::-1, i], rgb[..., i]) for i in range(3)])
        inside = jnp.where(mirrored, inside[:, :, ::-1], inside)
    return rgb, inside


def _resample(
    image: jax.Array, angle: jax.Array, magnify: jax.Array, offset: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    side = image.shape[0]
    centered = jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2
    y, x = (centered + offset[0])[:, None], (centered + offset[1])[None, :]
    cos, sin = jnp.cos(angle) / magnify, jnp.sin(angle) / magnify
    center = (side - size) // 2 + (size - 1) / 2
    source_y, source_x = cos * y - sin * x + center, sin * y + cos * x + center
    limit = side - 1
    inside = (source_y >= 0) & (source_y <= limit) & (source_x >= 0) & (source_x <= limit)
    source_y, source_x = jnp.clip(source_y, 0, limit), jnp.clip(source_x, 0, limit)
    top = jnp.minimum(source_y.astype(jnp.int32), side - 2)
    left = jnp.minimum(source_x.astype(jnp.int32), side - 2)
    down, right = source_y - top, source_x - left
    # A pixel is one 32-bit word, so that a corner is one lookup. A channel is an array of its own, as a TPU would pad a
    # last axis of 3 to 128.
    words = _pack(image).reshape(side * side)

    def corner(dy: int, dx: int) -> jax.Array:
        return words.at[(top + dy) * side + left + dx].get(mode="promise_in_bounds")

    corners = [corner(dy, dx) for dy in (0, 1) for dx in (0, 1)]

    def channel(i: int) -> jax.Array:
        upper_left, upper_right, lower_left, lower_right = (_unpack(word, i) for word in corners)
        upper = upper_left * (1 - right) + upper_right * right
        lower = lower_left * (1 - right) + lower_right * right
        return (upper * (1 - down) + lower * down) / 255

    return _stack([channel(i) for i in range(3)]), inside.astype(jnp.float32)


def _stack(planes: Sequence[jax.Array]) -> jax.Array:
    """Stacks channels, each an array of its own, along a new last axis."""
    return jnp.stack(planes, axis=-1)


def _pack(image: jax.Array) -> jax.Array:
    """Packs the channels of a pixel into one word: uint8 [..., 3] -> uint32 [...]."""
    red, green, blue = (image[..., i].astype(jnp.uint32) for i in range(3))
    return red | green << 8 | blue << 16


def _unpack(words: jax.Array, channel: int) -> jax.Array:
    """One channel of `_pack`'s words, float32 0…255."""
    # Through int32, which every device converts fast.
    return ((words >> 8 * channel) & 255).astype(jnp.int32).astype(jnp.float32)
