"""Resampling between a photo's resolution and the network's: the photo down, the predicted color up.

The lightness keeps its resolution, and guides the color to the photo's edges.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from PIL import Image

from colorjax import color
from colorjax.photos.points import Places, Point, Shift, ab_of, fit, shift_at

_TILE = 256  # pixels: photos are colored in squares of this side, so that programs are few and memory is small
_BAND = 1 << 22  # pixels that are scaled down at once
_SIGMA = 0.7  # of the window, in pixels of the color map
_NOISE = 16.0  # L²: smaller variations of the lightness do not guide the color


def thumbnail(photo: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """A photo scaled as the training photos were, by the mean of each pixel's area; transparent parts become white.

    Args:
        photo: uint8 or uint16 [H, W] or [H, W, 1…4]; a second or fourth channel is alpha.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Returns:
        uint8 [height, width, 3].
    """
    full_height, full_width = photo.shape[:2]
    shrinks = height <= full_height and width <= full_width
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    result = np.empty((height, width, 3), np.uint8)
    rows = max(1, height * _BAND // (full_height * full_width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        start, end = top * full_height / height, bottom * full_height / height
        first = math.floor(start)
        band = Image.fromarray(_over_white(photo[first : math.ceil(end)])).convert("RGB")
        box = (0, start - first, full_width, end - first)
        result[top:bottom] = np.asarray(band.resize((width, bottom - top), method, box=box))
    return result


def render(
    photo: np.ndarray,
    ab: ArrayLike,
    guide: ArrayLike,
    *,
    saturation: float = 1.0,
    points: Sequence[Point] = (),
    mean: ArrayLike | None = None,
) -> np.ndarray:
    """Colors a photo, and keeps its lightness.

    The color is up-sampled bilinearly. So is its slope over the lightness, from a window of some pixels (He, Sun and
    Tang, *Guided Image Filtering*, ECCV 2010, equation 5). By that slope the color follows the photo's edges and
    texture, where the photo is lighter or darker than its small copy.

    Args:
        photo: uint8 or uint16 [H, W, ...] as `thumbnail` takes it.
        ab: floating [h, w, 2].
        guide: floating [h, w], L of the photo at the color's resolution.
        saturation: factor of the chroma; 0 is gray. It does not change what color points add.
        points: color points in pixels of the photo, at different places.
        mean: floating [h, w, 2], the mean ab that the network predicts, along which they spread; by default `ab`.

    Returns:
        [H, W, 3] of the photo's dtype, sRGB. L is the photo's up to rounding; see color.to_pixels.
    """
    maps = _maps(jnp.asarray(ab, jnp.float32), jnp.asarray(guide, jnp.float32))
    if photo.ndim == 3:
        photo = photo[..., 0] if photo.shape[-1] < 3 else photo[..., :3]
    height, width = photo.shape[:2]
    down, across = _bilinear(height, maps.shape[0]), _bilinear(width, maps.shape[1])
    shift = None
    if points:
        means = _maps(jnp.asarray(ab if mean is None else mean, jnp.float32), jnp.asarray(guide, jnp.float32))
        maps = jnp.concatenate([maps, means], axis=-1)
        shift = _shift(photo, maps, down, across, saturation, points)
    side = np.float32(max(height, width))
    result = np.empty((height, width, 3), photo.dtype)
    pending: tuple[int, int, jax.Array] | None = None
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            tile = photo[top : top + _TILE, left : left + _TILE]
            lacking = [(0, _TILE - tile.shape[0]), (0, _TILE - tile.shape[1]), (0, 0)][: tile.ndim]
            tile = np.pad(tile, lacking) if any(after for _, after in lacking) else tile
            rows, columns = down[top : top + _TILE], across[left : left + _TILE]
            corner = np.array([left, top], np.float32)
            colored = _tile(tile, maps, rows, columns, np.float32(saturation), shift and (shift, corner / side, side))
            # The next tile is computed while this one is copied.
            if pending:
                _put(result, *pending)
            pending = (top, left, colored)
    if pending:
        _put(result, *pending)
    return result


def enlarged(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map at another size, bilinear: float32 [h, w] -> [height, width]."""
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _put(result: np.ndarray, top: int, left: int, colored: jax.Array) -> None:
    place = result[top : top + _TILE, left : left + _TILE]
    place[:] = np.asarray(colored)[: place.shape[0], : place.shape[1]]


@jax.jit
def _maps(ab: jax.Array, guide: jax.Array) -> jax.Array:
    """[h, w, 4]: the slope s of a and b over L, and the offset t, where ab = s · L + t: t = ab − s · guide."""
    down, across = (_gaussian(n) for n in guide.shape)
    guide = guide[..., None]

    def mean(x: jax.Array) -> jax.Array:
        return _separable(down, x, across)

    mean_guide, mean_ab = mean(guide), mean(ab)
    covariance = mean(guide * ab) - mean_guide * mean_ab
    slope = mean(covariance / (mean(guide**2) - mean_guide**2 + _NOISE))
    return jnp.concatenate([slope, ab - slope * guide], axis=-1)


@jax.jit
def _tile(
    photo: jax.Array,
    maps: jax.Array,
    down: jax.Array,
    across: jax.Array,
    saturation: jax.Array,
    shift: tuple[Shift, jax.Array, jax.Array] | None,
) -> jax.Array:
    """A tile in color; of a shift, with the tile's corner in units of the photo's longer side, and that in pixels."""
    l = color.lightness(photo, gray=photo.ndim == 2)
    upsampled = _separable(down, maps, across)
    ab = saturation * _along(upsampled[..., :4], l)
    if shift is not None:
        of_points, corner, side = shift
        y, x = (jax.lax.broadcasted_iota(jnp.float32, l.shape[:2], axis).ravel() / side for axis in range(2))
        position = jnp.stack([corner[0] + x, corner[1] + y], axis=-1)
        places = Places(position, l.ravel(), _along(upsampled[..., 4:], l).reshape(-1, 2))
        ab += shift_at(of_points, places).reshape(ab.shape)
    l, ab = jax.lax.optimization_barrier((l, ab))
    return color.to_pixels(l, ab, levels=jnp.iinfo(photo.dtype).max).astype(photo.dtype)


def _shift(
    photo: np.ndarray, maps: jax.Array, down: np.ndarray, across: np.ndarray, saturation: float, points: Sequence[Point]
) -> Shift:
    """What color points add to the colors, of which they have their own at their pixels."""
    x, y = (np.array([point[i] for point in points]) for i in range(2))
    l = np.asarray(color.lightness(photo[y, x], gray=photo.ndim == 2))
    upsampled = np.einsum("nh,hwc,nw->nc", down[y], np.asarray(maps), across[x])
    places = Places(np.stack([x, y], axis=-1) / max(photo.shape[:2]), l[:, 0], _along(upsampled[:, 4:], l))
    return fit(places, ab_of(points) - saturation * _along(upsampled[:, :4], l))


def _along(maps: Any, l: Any) -> Any:
    """ab from its slope and offset over the lightness: [..., 4] and [..., 1] -> [..., 2]."""
    return maps[..., :2] * l + maps[..., 2:]


def _separable(down: ArrayLike, x: jax.Array, across: ArrayLike) -> jax.Array:
    """Applies a linear map to the rows [Y, h], and one to the columns [X, w], of x [h, w, C]: [Y, X, C]."""
    return jnp.einsum("yh,hwc,xw->yxc", down, x, across, precision=jax.lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=32)
def _gaussian(n: int) -> np.ndarray:
    i = np.arange(n)
    weights = np.exp(-np.square(i[:, None] - i) / (2 * _SIGMA**2))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _bilinear(pixels: int, n: int) -> np.ndarray:
    """Bilinear weights of n map entries at each pixel's center: float32 [pixels rounded up to whole tiles, n]."""
    at = (np.arange(-(-pixels // _TILE) * _TILE) + 0.5) * n / pixels - 0.5
    return np.maximum(0, 1 - np.abs(np.clip(at, 0, n - 1)[:, None] - np.arange(n))).astype(np.float32)


def _over_white(photo: np.ndarray) -> np.ndarray:
    """Any photo as uint8 [H, W] or [H, W, 3], blended with white where it is transparent."""
    if photo.dtype == np.uint16:
        photo = (photo >> 8).astype(np.uint8)
    if photo.ndim == 2:
        return photo
    if photo.shape[-1] in (2, 4):
        alpha = photo[..., -1:].astype(np.uint16)
        photo = ((photo[..., :-1] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return photo[..., 0] if photo.shape[-1] == 1 else photo
