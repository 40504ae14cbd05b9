"""Metrics of a colorization: one number for each photo, so that the mean does not depend on the batches.

Every metric returns float32 [B]. `totals` sums them up as (sum, count) pairs, `add` adds the pairs of batches or hosts,
and `mean` turns them into plain numbers.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from colorjax import color

Totals = dict[str, tuple[jax.Array, jax.Array]]


def psnr(pred: ArrayLike, true: ArrayLike) -> jax.Array:
    """Peak signal-to-noise ratio over all pixels and channels of a photo.

    Args:
        pred, true: RGB [B, H, W, 3], uint8 (0…255) or floating (0…1).

    Returns:
        float32 [B], dB, at most 100: two identical photos would have infinity, and so would every mean with them. A
        single 8-bit step in one channel of one pixel of a 224² photo gives 99.9.
    """
    error = jnp.square(color.unit_rgb(pred) - color.unit_rgb(true)).mean(axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def ssim(pred: ArrayLike, true: ArrayLike) -> jax.Array:
    """Structural similarity (Wang et al. 2004), averaged over the channels.

    The window is the original one: Gaussian, σ = 1.5 pixels, 11×11. scikit-image computes the same with
    `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1`.

    Args:
        pred, true: RGB [B, H, W, 3], uint8 (0…255) or floating (0…1).

    Returns:
        float32 [B], at most 1.

    Raises:
        ValueError: if the photos are smaller than the window.
    """
    x, y = color.unit_rgb(pred), color.unit_rgb(true)
    if min(x.shape[1:3]) < 11:
        raise ValueError(f"SSIM needs photos of 11×11 pixels or more, not {x.shape}")
    # Shifted by 0.5 towards zero, E[x²] − E[x]² loses fewer digits; the shift does not change it.
    u, v = x - 0.5, y - 0.5
    mean_u, mean_v, uu, vv, uv = map(_gaussian_window, (u, v, u * u, v * v, u * v))
    var_u, var_v, cov = uu - mean_u**2, vv - mean_v**2, uv - mean_u * mean_v
    mean_x, mean_y = mean_u + 0.5, mean_v + 0.5
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * cov + c2) / (var_u + var_v + c2)
    return (luminance * structure).mean(axis=(1, 2, 3))


def colorfulness(rgb: ArrayLike) -> jax.Array:
    """Colorfulness of Hasler and Süsstrunk, *Measuring colorfulness in natural images* (2003).

    Args:
        rgb: [B, H, W, 3], uint8 (0…255) or floating (0…1).

    Returns:
        float32 [B]: 0 is gray, 33 moderately, 59 quite and 109 extremely colorful.
    """
    rgb = 255 * color.unit_rgb(rgb)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    opponent = jnp.stack([r - g, (r + g) / 2 - b])
    deviation = jnp.sqrt(opponent.var(axis=(2, 3)).sum(axis=0))
    mean = jnp.sqrt(jnp.square(opponent.mean(axis=(2, 3))).sum(axis=0))
    return deviation + 0.3 * mean


def auc(ab_pred: ArrayLike, ab_true: ArrayLike, *, weights: ArrayLike | None = None) -> jax.Array:
    """Area under the cumulative distribution of the error in ab (Zhang et al. 2016, section 3.1).

    The share of pixels whose distance in ab is within t, averaged over t = 0, 1, … 150.

    Args:
        ab_pred, ab_true: floating [B, H, W, 2].
        weights: of the pixels, [B, H, W], not negative, not all 0 in a photo. With 1 / p of each pixel's bin this is
            Zhang's rebalanced metric. His mean is over all pixels of a data set instead of over photos: sum `auc * w`
            and w, with w the sum of a photo's weights, and divide.

    Returns:
        float32 [B], percent; 100 is a perfect copy.
    """
    difference = jnp.asarray(ab_pred, jnp.float32) - jnp.asarray(ab_true, jnp.float32)
    error = jnp.sqrt(jnp.square(difference).sum(axis=-1))
    # The share of the 151 thresholds that are at least the error.
    share = jnp.maximum(151 - jnp.ceil(error), 0) / 151
    if weights is None:
        return 100 * share.mean(axis=(1, 2))
    weights = jnp.asarray(weights, jnp.float32)
    return 100 * (share * weights).sum(axis=(1, 2)) / weights.sum(axis=(1, 2))


def ciede2000(lab_pred: ArrayLike, lab_true: ArrayLike) -> jax.Array:
    """Color difference ΔE₀₀ (Sharma, Wu and Dalal 2005), averaged over a photo's pixels.

    Args:
        lab_pred, lab_true: floating [B, H, W, 3]: L in 0…100, a and b.

    Returns:
        float32 [B]; about 1 is just noticeable.
    """
    l1, a1, b1 = jnp.moveaxis(jnp.asarray(lab_pred, jnp.float32), -1, 0)
    l2, a2, b2 = jnp.moveaxis(jnp.asarray(lab_true, jnp.float32), -1, 0)
    stretch = 1.5 - 0.5 * _chroma_ratio((jnp.hypot(a1, b1) + jnp.hypot(a2, b2)) / 2)
    a1, a2 = stretch * a1, stretch * a2
    c1, c2 = jnp.hypot(a1, b1), jnp.hypot(a2, b2)
    h1, h2 = jnp.arctan2(b1, a1) % (2 * jnp.pi), jnp.arctan2(b2, a2) % (2 * jnp.pi)

    turn = h2 - h1
    far = jnp.abs(turn) > jnp.pi
    hue = jnp.where(far, (h1 + h2) / 2 + jnp.pi, (h1 + h2) / 2)
    # Gray has no hue: its arctan2 is 0, and only the other color's hue counts.
    hue = jnp.where(c1 * c2 == 0, h1 + h2, hue)
    l_mean, c_mean = (l1 + l2) / 2, (c1 + c2) / 2
    degree = jnp.pi / 180
    t = (
        1
        - 0.17 * jnp.cos(hue - 30 * degree)
        + 0.24 * jnp.cos(2 * hue)
        + 0.32 * jnp.cos(3 * hue + 6 * degree)
        - 0.20 * jnp.cos(4 * hue - 63 * degree)
    )
    l_scale = 1 + 0.015 * (l_mean - 50) ** 2 / jnp.sqrt(20 + (l_mean - 50) ** 2)
    dl = (l2 - l1) / l_scale
    dc = (c2 - c1) / (1 + 0.045 * c_mean)
    # A turn of more than half a circle flips the sign; `far` flips it back.
    dh = 2 * jnp.sqrt(c1 * c2) * jnp.sin(turn / 2) * jnp.where(far, -1, 1)
    dh = dh / (1 + 0.015 * c_mean * t)
    blue = 30 * degree * jnp.exp(-(((hue / degree) % 360 - 275) ** 2) / 25**2)
    rotation = -2 * _chroma_ratio(c_mean) * jnp.sin(2 * blue)
    squared = dl**2 + dc**2 + dh**2 + rotation * dc * dh
    return jnp.sqrt(jnp.maximum(squared, 0)).mean(axis=(1, 2))


def top_k_correct(logits: ArrayLike, labels: ArrayLike, *, k: int) -> jax.Array:
    """Whether the label is among the k highest logits; on a tie the lower class ranks higher.

    Args:
        logits: floating [B, classes].
        labels: integer [B].
        k: at most `classes`.

    Returns:
        float32 [B], 1 or 0.
    """
    best = jax.lax.top_k(jnp.asarray(logits), k)[1]
    return (best == jnp.asarray(labels)[:, None]).any(axis=-1).astype(jnp.float32)


def totals(values: Mapping[str, ArrayLike], *, mask: ArrayLike) -> Totals:
    """Sums a batch's metrics over its photos.

    Args:
        values: name -> [B].
        mask: [B], 1 for a photo, 0 for padding. The values of padding do not matter; they may be NaN.

    Returns:
        name -> (sum, count), two float32 scalars.
    """
    mask = jnp.asarray(mask, jnp.float32)
    return {
        name: (jnp.where(mask > 0, mask * jnp.asarray(value), 0).sum(), mask.sum()) for name, value in values.items()
    }


def add(a: Totals, b: Totals) -> Totals:
    """Adds the (sum, count) pairs of two batches, hosts or whole evaluations.

    Raises:
        ValueError: if the two do not have the same names.
    """
    return jax.tree.map(lambda x, y: x + y, a, b)


def mean(total: Totals) -> dict[str, float]:
    """The means of (sum, count) pairs: name -> number, NaN where nothing was counted."""
    pairs = jax.device_get(total)
    return {
        name: float(np.float64(sum_) / np.float64(count)) if count else float("nan")
        for name, (sum_, count) in pairs.items()
    }


def _chroma_ratio(chroma: jax.Array) -> jax.Array:
    """sqrt(C⁷ / (C⁷ + 25⁷)), which CIEDE2000 uses twice."""
    power = (chroma / 25) ** 7
    return jnp.sqrt(power / (power + 1))


def _gaussian_window(x: jax.Array) -> jax.Array:
    """Means over the 11×11 Gaussian window: [B, H, W, C] -> [B, H − 10, W − 10, C]."""
    tap = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps = (tap / tap.sum()).tolist()
    # Shifted sums are in float32; a GPU's convolution would use TF32, which is too coarse for variances.
    for axis in (1, 2):
        size = x.shape[axis] - 10
        shifted = [jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(11)]
        x = jnp.stack([t * s for t, s in zip(taps, shifted, strict=True)]).sum(axis=0)
        # Without it XLA would fuse both axes into one pass that computes the first one eleven times.
        x = jax.lax.optimization_barrier(x)
    return x
