"""sRGB and Lab: CIE L*a*b* under D65 for the 2° observer, with scikit-image's constants.

L is in 0…100, and for sRGB colors a is in −86.2…98.3 and b in −107.9…94.5.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_XYZ_FROM_RGB = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_RGB_FROM_XYZ = np.linalg.inv(_XYZ_FROM_RGB)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def rgb_to_lab(rgb: ArrayLike) -> jax.Array:
    """Converts sRGB to Lab.

    Args:
        rgb: uint8 [..., 3], 0…255, uint16 [..., 3], 0…65535, or floating [..., 3], 0…1.

    Returns:
        float32 [..., 3]: L in 0…100, then a and b.

    Raises:
        TypeError: `rgb` has another dtype.
    """
    return lab_from_unit_rgb(unit_rgb(rgb), jnp)


def lab_to_rgb(lab: ArrayLike) -> jax.Array:
    """Converts Lab to sRGB; colors outside the gamut are clipped, channel by channel.

    Args:
        lab: floating [..., 3]: L in 0…100, then a and b.

    Returns:
        float32 [..., 3], 0…1.
    """
    lab = jnp.asarray(lab, jnp.float32)
    y = (lab[..., 0] + 16.0) / 116.0
    x = y + lab[..., 1] / 500.0
    z = jnp.maximum(y - lab[..., 2] / 200.0, 0.0)
    return jnp.clip(_encoded(jnp.stack(_linear_rgb(x, y, z), axis=-1)), 0.0, 1.0)


def lightness(photo: ArrayLike, *, gray: bool) -> jax.Array:
    """The L of a photo, without computing a and b.

    Args:
        photo: uint8, uint16 or floating as in `rgb_to_lab`: [...] if `gray`, else [..., 3].
        gray: whether the photo is gray.

    Returns:
        float32 [..., 1], 0…100.
    """
    linear = jax.lax.optimization_barrier(_decoded(unit_rgb(photo)))
    y = linear if gray else _products(_XYZ_FROM_RGB[1:2], [linear[..., i] for i in range(3)])[0]
    return (116.0 * _cube_root(y, jnp) - 16.0)[..., None]


def to_pixels(l: ArrayLike, ab: ArrayLike, *, levels: int) -> jax.Array:
    """Converts Lab to integer sRGB with the same L.

    Out-of-gamut colors are desaturated; their hue and L stay. Each channel is rounded up or down so that all three
    together come closest to L: rounded to the nearest integers, L would be up to half a gray level off, and more for
    vivid colors.

    Args:
        l: floating [..., 1], 0…100.
        ab: floating [..., 2].
        levels: the largest integer, 255 or 65535.

    Returns:
        int32 [..., 3], 0…levels.
    """
    l, ab = jnp.asarray(l, jnp.float32)[..., 0], jnp.asarray(ab, jnp.float32)
    a, b = ab[..., 0] / 500.0, ab[..., 1] / 200.0
    y = (l + 16.0) / 116.0

    # Channel by channel, since XLA is three times as slow with a last axis of 3.
    def channels(share: jax.Array) -> list[jax.Array]:
        return _linear_rgb(y + share * a, y, y - share * b)

    def fit(rgb: list[jax.Array]) -> jax.Array:
        # With room for rounding: full yellow, for example, lies on the border.
        return functools.reduce(jnp.logical_and, [(c >= -2e-6) & (c <= 1 + 2e-6) for c in rgb])

    def halve(i: jax.Array, inside: jax.Array) -> jax.Array:
        further = inside + 0.5 ** (i + 1.0)
        return jnp.where((further <= 1) & fit(channels(further)), further, inside)

    # Bisection; 2^-10 of the chroma is less than 8 bits resolve.
    inside = jax.lax.fori_loop(0, 10, halve, fit(channels(jnp.ones_like(l))).astype(jnp.float32))

    low, up_error, down_error = [], [], []
    for linear, weight in zip(channels(inside), _XYZ_FROM_RGB[1].tolist(), strict=True):
        linear = jnp.clip(linear, 0.0, 1.0)
        encoded = jnp.clip(_encoded(linear), 0.0, 1.0)
        floor = jnp.floor(encoded * levels)
        low.append(floor)
        # What rounding down, or up, adds to Y: two terms of the series about `linear`, without another power.
        curved = linear > 0.0031308
        slope = jnp.where(curved, 2.4 * linear / (encoded + 0.055), 1 / 12.92)
        bend = jnp.where(curved, 0.7 * slope / (encoded + 0.055), 0.0)
        for errors, rounded in ((down_error, floor), (up_error, jnp.minimum(floor + 1, levels))):
            change = rounded / levels - encoded
            errors.append(weight * change * (slope + bend * change))
    low, up_error, down_error = jax.lax.optimization_barrier((low, up_error, down_error))
    best, ups = jnp.full_like(l, jnp.inf), [jnp.zeros_like(l)] * 3
    for up in itertools.product((0, 1), repeat=3):
        error = jnp.abs(sum(up_error[c] if up[c] else down_error[c] for c in range(3)))
        ups = [jnp.where(error < best, up[c], ups[c]) for c in range(3)]
        best = jnp.minimum(error, best)
    result = [jnp.minimum(x + more, levels).astype(jnp.int32) for x, more in zip(low, ups, strict=True)]
    return jnp.stack(jax.lax.optimization_barrier(result), axis=-1)


def unit_rgb(rgb: ArrayLike) -> jax.Array:
    """Converts RGB of any supported dtype to float32, 0…1.

    Args:
        rgb: uint8 of any shape, 0…255, uint16, 0…65535, or floating, 0…1.

    Returns:
        float32 of the same shape, 0…1.

    Raises:
        TypeError: `rgb` has another dtype.
    """
    rgb = jnp.asarray(rgb)
    if rgb.dtype in (jnp.uint8, jnp.uint16):
        return rgb.astype(jnp.float32) / jnp.iinfo(rgb.dtype).max
    if jnp.issubdtype(rgb.dtype, jnp.floating):
        return rgb.astype(jnp.float32)
    raise TypeError(f"RGB must be uint8 (0…255), uint16 (0…65535) or floating (0…1), not {rgb.dtype}")


def to_uint8(rgb: ArrayLike) -> jax.Array:
    """Rounds RGB to 8 bits.

    Args:
        rgb: floating of any shape, 0…1; values outside are clipped.

    Returns:
        uint8 of the same shape, 0…255.
    """
    return jnp.round(jnp.clip(jnp.asarray(rgb), 0.0, 1.0) * 255.0).astype(jnp.uint8)


def is_gray(ab: ArrayLike, *, threshold: float = 5.0) -> jax.Array:
    """Whether a photo is gray: no |a| or |b| is above the threshold.

    Args:
        ab: floating [..., H, W, 2].
        threshold: in units of ab; Zhang et al.'s code takes 5.

    Returns:
        bool [...].
    """
    small = [jnp.all(jnp.abs(jnp.asarray(ab)[..., i]) <= threshold, axis=(-2, -1)) for i in range(2)]
    return small[0] & small[1]


def downsample(x: ArrayLike, *, factor: int) -> jax.Array:
    """Downsamples by averaging squares of pixels.

    Args:
        x: [B, H, W, C].
        factor: the side of the squares, in pixels.

    Returns:
        float32 [B, H / factor, W / factor, C].

    Raises:
        ValueError: `factor` does not divide H and W.
    """
    x = jnp.asarray(x, jnp.float32)
    b, h, w, c = x.shape
    if h % factor or w % factor:
        raise ValueError(f"cannot average {factor}×{factor} squares of an array of shape {x.shape}")

    def mean(x: jax.Array) -> jax.Array:
        return x.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))

    def windows(x: jax.Array) -> jax.Array:
        # A TPU would pad the last two of the reshaped axes to 8 and 128.
        shape = (1, factor, factor)
        planes = [jax.lax.reduce_window(x[..., i], 0.0, jax.lax.add, shape, shape, "VALID") for i in range(c)]
        return jnp.stack(planes, axis=-1) / factor**2

    return jax.lax.platform_dependent(x, tpu=windows, default=mean)


def lab_from_unit_rgb(rgb: Any, xp: Any) -> Any:
    """`rgb_to_lab` of values in 0…1, with numpy (float64), as the bins need it, or jax.numpy (float32)."""
    # Channel by channel: a last axis of 3 is slow on a CPU, and a TPU pads it to 128.
    linear = [_decoded(rgb[..., i], xp) for i in range(3)]
    if xp is jnp:
        # Without it, XLA's CPU compiler decodes every channel anew for each of X, Y and Z.
        linear = jax.lax.optimization_barrier(linear)
    x, y, z = (_cube_root(t, xp) for t in _products(_XYZ_FROM_RGB / _WHITE[:, None], linear))
    return xp.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)


def _cube_root(t: Any, xp: Any) -> Any:
    """Lab's f: the cube root, linear near 0."""
    # The maximum keeps the branch that is not taken, and its gradient, finite; so do those below.
    return xp.where(t > 0.008856, xp.cbrt(xp.maximum(t, 0.008856)), 7.787 * t + 16.0 / 116.0)


def _decoded(rgb: Any, xp: Any = jnp) -> Any:
    """sRGB to linear light, both 0…1."""
    curve = ((xp.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4
    return xp.where(rgb > 0.04045, curve, rgb / 12.92)


def _encoded(linear: jax.Array) -> jax.Array:
    """Linear light to sRGB; linear below 0 too."""
    power = 1.055 * jnp.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.where(linear > 0.0031308, power, 12.92 * linear)


def _linear_rgb(x: jax.Array, y: jax.Array, z: jax.Array) -> list[jax.Array]:
    """Lab's cube roots, y = (L + 16) / 116 and so on, to the channels of linear sRGB, not clipped."""
    xyz = [
        jnp.where(f > 0.2068966, f**3, (f - 16.0 / 116.0) / 7.787) * white
        for f, white in zip((x, y, z), _WHITE.tolist(), strict=True)
    ]
    return _products(_RGB_FROM_XYZ, xyz)


def _products(matrix: np.ndarray, color: Sequence[Any]) -> list[Any]:
    """A matrix times a column of three arrays, in their precision on every device."""
    r, g, b = color
    # Not a matrix product, which accelerators round to TF32 or bfloat16: up to 1 off in Lab.
    return [r * m[0] + g * m[1] + b * m[2] for m in matrix.tolist()]
