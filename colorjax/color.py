"""Color: sRGB and Lab, the 313 color classes, their soft targets, rarity weights and decoding.

Lab is CIE L*a*b* under D65 for the 2° observer, with scikit-image's constants: L in 0…100, and for sRGB colors a in
−86.2…98.3 and b in −107.9…94.5. The classes ("bins") are those of Zhang, Isola and Efros, *Colorful Image Colorization*
(ECCV 2016), which the paper uses.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

NUM_BINS = 313
BIN_STEP = 10

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
    return _lab_from_unit_rgb(unit_rgb(rgb), jnp)


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


@functools.cache
def ab_bins() -> np.ndarray:
    """The 313 color classes, computed from first principles.

    A point p of the step-10 ab grid is a class iff the open square p + (−10, 10)² meets the convex hull of the sRGB
    gamut projected on ab. This equals the array `pts_in_hull` that Zhang et al. publish, including its order.

    Returns:
        int64 [313, 2], read-only: a and b of the bins, a-major, both ascending.
    """
    axis = np.linspace(0.0, 1.0, 5)
    rgb = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    gamut = _lab_from_unit_rgb(rgb, np)[:, 1:]
    # The square around p meets the hull iff p lies inside the hull of all the squares' corners, and p lies inside iff,
    # seen from p, no gap between the corners' directions reaches half a turn.
    corners = BIN_STEP * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    points = (gamut[:, None] + corners).reshape(-1, 2)
    axis = np.arange(-120, 121, BIN_STEP)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    offset = points - grid[:, None]
    angle = np.sort(np.arctan2(offset[..., 1], offset[..., 0]), axis=1)
    gap = np.diff(angle, axis=1, append=angle[:, :1] + 2 * np.pi)
    bins = grid[gap.max(axis=1) < np.pi].astype(np.int64)
    bins.setflags(write=False)
    return bins


def nearest_bin(ab: ArrayLike) -> jax.Array:
    """The class of each color: its nearest bin, the lower index on a tie.

    Args:
        ab: floating [..., 2]; colors outside of sRGB's −90…100 × −110…100 are clamped to it.

    Returns:
        int32 [...], 0…312.
    """
    return nearest_bins(ab, count=1)[0][0]


def soft_targets(ab: ArrayLike, *, neighbors: int = 5, sigma: float = 5.0) -> jax.Array:
    """Soft-encodes colors over their nearest bins (Zhang et al., section 2.2).

    Args:
        ab: floating [..., 2]; colors outside of sRGB's −90…100 × −110…100 are clamped to it.
        neighbors: how many bins share a color; 1 is the hard one-hot target. Ties go to the lower
            index, so exactly this many entries are positive.
        sigma: width of the Gaussian of the distance in ab that divides the color among them.

    Returns:
        float32 [..., 313]; each sums to 1.
    """
    return dense_shares(*bin_shares(ab, neighbors=neighbors, sigma=sigma))


def dense_shares(bins: Sequence[jax.Array], shares: Sequence[jax.Array]) -> jax.Array:
    """The shares of all 313 bins, from those of a few.

    Args:
        bins: int32 [...], one array for each neighbor; a color's bins differ.
        shares: float32 [...], one array for each neighbor.

    Returns:
        float32 [..., 313], 0 for all other bins.
    """
    # A sum of one-hot vectors fuses with the operation that reads it, so the 313 entries need not be written to memory.
    # A scatter is serial on CPU.
    total = jnp.zeros((), jnp.float32)
    for index, share in zip(bins, shares, strict=True):
        number = jax.lax.broadcasted_iota(jnp.int32, (*index.shape, NUM_BINS), index.ndim)
        total += jnp.where(index[..., None] == number, share[..., None], 0.0)
    return total


def shared_bins(ab: ArrayLike, *, neighbors: int = 5, sigma: float = 5.0) -> tuple[jax.Array, jax.Array]:
    """The entries of `soft_targets` that are not 0; arguments as there.

    Returns:
        int32 and float32 [..., neighbors]: the bins, by distance, and their shares, which sum to 1.
    """
    bins, shares = bin_shares(ab, neighbors=neighbors, sigma=sigma)
    return jnp.stack(bins, axis=-1), jnp.stack(shares, axis=-1)


def bin_shares(
    ab: ArrayLike, *, neighbors: int, sigma: float, in_gamut: bool = False
) -> tuple[list[jax.Array], list[jax.Array]]:
    """`shared_bins` with one array for each neighbor, which is faster on every device.

    Args:
        ab: floating [..., 2].
        neighbors, sigma: as in `soft_targets`.
        in_gamut: as in `nearest_bins`.

    Returns:
        The bins, int32 [...], by distance, and their shares, float32 [...]: `neighbors` arrays of each.
    """
    bins, squared_distances = nearest_bins(ab, count=neighbors, in_gamut=in_gamut)
    # A softmax over the neighbors, of which the first has the largest logit.
    powers = [jnp.exp((squared_distances[0] - d) / (2 * sigma**2)) for d in squared_distances]
    total = sum(powers[1:], powers[0])
    return bins, [power / total for power in powers]


def annealed_mean(logits: ArrayLike, *, temperature: float = 0.38) -> jax.Array:
    """Decodes logits of the bins to colors by the annealed mean (Zhang et al., section 2.3).

    Args:
        logits: floating [..., 313], before the softmax.
        temperature: 1 takes the mean of the distribution and 0 its mode; between them, the mean of the sharpened
            distribution softmax(logits / temperature).

    Returns:
        float32 [..., 2], ab.

    Raises:
        ValueError: `temperature` is negative.
    """
    if temperature < 0:
        raise ValueError(f"temperature must not be negative: {temperature}")
    logits = jnp.asarray(logits, jnp.float32)
    bins = ab_bins().astype(np.float32)
    if temperature == 0:
        return jnp.asarray(bins)[jnp.argmax(logits, axis=-1)]
    probability = jax.nn.softmax(logits / temperature, axis=-1)
    # With the default precision of a GPU or TPU ab would be some 0.1 off.
    return jnp.matmul(probability, bins, precision=jax.lax.Precision.HIGHEST)


def smooth(prior: ArrayLike, *, sigma: float = 5.0) -> np.ndarray:
    """Smooths the distribution of colors over the bins: p̃ of Zhang et al., section 2.2.

    Each bin's share is divided among all bins by a Gaussian of their distance in ab. It is normalized for each
    bin, also at the border of the gamut, so no probability is lost there.

    Args:
        prior: [313], not negative, sums to 1.
        sigma: width of the Gaussian in ab.

    Returns:
        float64 [313], positive, with the sum of `prior`.
    """
    bins = ab_bins()
    squared_distance = np.square(bins[:, None] - bins).sum(axis=-1)
    kernel = np.exp(-squared_distance / (2 * sigma**2))
    return (kernel / kernel.sum(axis=0)) @ np.asarray(prior, np.float64)


def rarity_weights(prior: ArrayLike, *, mix: float = 0.5, sigma: float = 5.0) -> np.ndarray:
    """The weight v of loss (1) for each bin, from the rarity of its color.

    Zhang et al., section 2.2: w ∝ ((1 − λ) p̃ + λ u)^-1, with p̃ the smoothed prior and u uniform over the bins that
    occur (p ≠ 0), scaled so that Σ p w = 1, with p the prior as given. A bin that never occurs gets the largest weight
    of those that do.

    With p the mean soft target, Σ z w of a training pixel's soft target z averages 1. The loss takes the weight of a
    pixel's nearest bin instead, as Zhang et al.'s code does. Those weights average less, 0.87 on the sample: soft
    targets give a part of each common color to rarer bins around it.

    Args:
        prior: p, [313], not negative, sums to 1.
        mix: λ, 0…1: 0 weights by rarity alone, 1 weights all bins equally.
        sigma: width in ab of the Gaussian that smooths the prior.

    Returns:
        float32 [313], positive and finite.

    Raises:
        ValueError: if `prior` is not a distribution over the 313 bins.
    """
    prior = np.asarray(prior, np.float64)
    if prior.shape != (NUM_BINS,) or not (prior >= 0).all() or abs(prior.sum() - 1) > 1e-3:
        raise ValueError(f"the prior must be {NUM_BINS} shares that sum to 1, not {prior!r}")
    occurs = prior > 0
    weight = 1 / ((1 - mix) * smooth(prior, sigma=sigma)[occurs] + mix / occurs.sum())
    weights = np.full(NUM_BINS, weight.max())
    weights[occurs] = weight
    return (weights / (prior @ weights)).astype(np.float32)


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


def _lab_from_unit_rgb(rgb: Any, xp: Any) -> Any:
    """rgb_to_lab on 0…1, in numpy (float64) for the bins or in jax.numpy (float32)."""
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


def nearest_bins(ab: ArrayLike, *, count: int, in_gamut: bool = False) -> tuple[list[jax.Array], list[jax.Array]]:
    """The nearest bins of each color, by distance, the lower index first on a tie.

    It goes through the bins in order and keeps a sorted list of the nearest so far. That takes only comparisons and
    selections, which are fast on every device, and no gather, sort or reduction.

    Args:
        ab: floating [..., 2]; values outside the bins' −90…100 × −110…100 are clamped.
        count: how many, 1…313.
        in_gamut: whether every color is one that sRGB has at some lightness, or a mean of such colors. Then only the
            bins around the color's own grid cell are compared, a tenth of the work. For other colors the result is
            undefined.

    Returns:
        The bins, int32 [...], and their squared distances, float32 [...]: `count` arrays of each.
    """
    low, high = _bounds()
    # The barrier keeps XLA from computing ab again for each bin.
    a, b = jax.lax.optimization_barrier(
        tuple(jnp.clip(jnp.asarray(ab, jnp.float32)[..., i], low[i], high[i]) for i in range(2))
    )
    return (_nearest_in_window if in_gamut else _nearest_of_all)(a, b, count)


def _bounds() -> tuple[list[int], list[int]]:
    """The least and the largest a and b of the bins."""
    return ab_bins().min(axis=0).tolist(), ab_bins().max(axis=0).tolist()


def _nearest_of_all(a: jax.Array, b: jax.Array, count: int) -> tuple[list[jax.Array], list[jax.Array]]:
    low = _bounds()[0]
    rows = tuple(jnp.asarray(x) for x in _grid_rows())
    longest = int(_grid_rows()[1].max())

    def add_row(row: jax.Array, nearest: list) -> list:
        first, size, start = (x[row] for x in rows)
        in_a = jnp.square(a - (low[0] + BIN_STEP * row).astype(jnp.float32))
        for column in range(longest):
            in_b = jnp.square(b - (start + BIN_STEP * column).astype(jnp.float32))
            distance = jnp.where(column < size, in_a + in_b, jnp.inf)
            nearest = _insert(nearest, jnp.broadcast_to(first + column, a.shape), distance)
        return nearest

    nearest = jax.lax.fori_loop(0, len(rows[0]), add_row, _no_bins(a, count))
    return [index for index, _ in nearest], [distance for _, distance in nearest]


def _nearest_in_window(a: jax.Array, b: jax.Array, count: int) -> tuple[list[jax.Array], list[jax.Array]]:
    low = _bounds()[0]
    firsts, sizes, starts = _grid_rows()
    starts = (starts - low[1]) // BIN_STEP
    row, column = (jnp.round((x - start) / BIN_STEP).astype(jnp.int32) for x, start in zip((a, b), low, strict=True))
    # One number for each row of bins: its first column, its end, and what to add to a column to get the bin's index.
    packed = (firsts - starts + NUM_BINS) * 2**10 + starts * 2**5 + starts + sizes
    nearest = _no_bins(a, count)
    for down, beside in itertools.groupby(_window(count), key=lambda offset: offset[0]):
        found = jnp.zeros_like(row)  # a row beyond the grid is empty
        for i in range(len(packed)):
            found = jnp.where(row == i - down, int(packed[i]), found)
        offset, start, end = found // 2**10 - NUM_BINS, found // 2**5 % 2**5, found % 2**5
        in_a = jnp.square(a - (BIN_STEP * (row + down) + low[0]).astype(jnp.float32))
        for _, right in beside:
            at = column + right
            in_b = jnp.square(b - (BIN_STEP * at + low[1]).astype(jnp.float32))
            distance = jnp.where((at >= start) & (at < end), in_a + in_b, jnp.inf)
            nearest = _insert(nearest, offset + at, distance)
        # Without the barrier XLA would compute the list again for each of its uses.
        nearest = jax.lax.optimization_barrier(nearest)
    return [index for index, _ in nearest], [distance for _, distance in nearest]


def _no_bins(like: jax.Array, count: int) -> list[tuple[jax.Array, jax.Array]]:
    return [(jnp.zeros(like.shape, jnp.int32), jnp.full(like.shape, jnp.inf))] * count


def _insert(nearest: Sequence, index: jax.Array, distance: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Inserts a bin into a list sorted by distance, behind those as near, and drops the last."""
    before, result = None, []
    for old_index, old_distance in nearest:
        nearer = distance < old_distance
        if before is None:
            new_index, new_distance = index, distance
        else:
            # The bins that are farther move on by one place.
            new_index = jnp.where(before[2], before[0], index)
            new_distance = jnp.where(before[2], before[1], distance)
        result.append((jnp.where(nearer, new_index, old_index), jnp.where(nearer, new_distance, old_distance)))
        before = old_index, old_distance, nearer
    return result


@functools.cache
def _grid_rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each a of the grid: index of the first bin, number of bins, and b of the first. No row has gaps."""
    bins = ab_bins()
    _, firsts, sizes = np.unique(bins[:, 0], return_index=True, return_counts=True)
    return firsts.astype(np.int32), sizes.astype(np.int32), bins[firsts, 1].astype(np.int32)


@functools.cache
def _window(count: int) -> list[tuple[int, int]]:
    """The offsets from a color's own grid cell to its `count` nearest bins, in cells and in the bins' order.

    A cell is cut into 8×8 parts. A bin is left out of a part if `count` others are nearer to every point of the part.
    """
    bins, parts = ab_bins(), 8
    half = BIN_STEP / parts / 2
    centers = (np.arange(parts) + 0.5) * BIN_STEP / parts - BIN_STEP / 2
    found = set()
    for y, x in itertools.product(centers, centers):
        offset = np.abs(bins[:, None] + (y, x) - bins)
        # Exact in float64: everything is a multiple of 2⁻⁶.
        nearest = np.square(np.maximum(offset - half, 0)).sum(axis=-1)
        farthest = np.square(offset + half).sum(axis=-1)
        own, other = np.nonzero(nearest <= np.sort(farthest, axis=1)[:, count - 1, None])
        found |= set(map(tuple, ((bins[other] - bins[own]) // BIN_STEP).tolist()))
    return sorted(found)
