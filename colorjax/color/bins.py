"""The 313 color classes ("bins"), their soft targets, rarity weights and decoding.

They are those of Zhang, Isola and Efros, *Colorful Image Colorization* (ECCV 2016), which the paper uses.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from colorjax.color.lab import lab_from_unit_rgb

NUM_BINS = 313
BIN_STEP = 10


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
    gamut = lab_from_unit_rgb(rgb, np)[:, 1:]
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


def bin_shares(
    ab: ArrayLike, *, neighbors: int = 5, sigma: float = 5.0, in_gamut: bool = False
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The entries of `soft_targets` that are not 0: one array for each neighbor, which is fast on every device.

    Args:
        ab: floating [..., 2].
        neighbors, sigma: as in `soft_targets`.
        in_gamut: as in `nearest_bins`.

    Returns:
        The bins, int32 [...], by distance, and their shares, float32 [...], which sum to 1: `neighbors` arrays of each.
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


def uncertainty(logits: ArrayLike) -> jax.Array:
    """How unsure a prediction is of the color: the entropy of its distribution over that of 313 equal probabilities.

    Args:
        logits: floating [..., 313], before the softmax.

    Returns:
        float32 [...]: 0 where one bin has all the probability, 1 where all bins have the same.
    """
    log_p = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    return jnp.clip(-(jnp.exp(log_p) * log_p).sum(axis=-1) / math.log(NUM_BINS), 0.0, 1.0)


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
