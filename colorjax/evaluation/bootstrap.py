"""How sure a mean over photos is: percentile intervals of the bootstrap."""

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
RESAMPLES = 2000
_AT_ONCE = 2**22  # drawn photos held in memory


def interval(
    values: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The interval of each column's mean over photos (Efron and Tibshirani 1993, section 13.3).

    Photos are drawn whole, with all of their columns, so the interval of a column of differences is that of paired
    photos. The same seed draws the same photos.

    Args:
        values: floating [N] or [N, columns]; NaN where a photo has no such value, which its column's mean leaves out.
        level: the share of the resampled means that lies inside.
        resamples: how many data sets of N photos are drawn.
        seed: of the drawing.

    Returns:
        float64 low and high, [] or [columns] each; NaN of a column without a value.

    Raises:
        ValueError: there is no photo, or `level` is not between 0 and 1.
    """
    return percentiles(resampled_means(values, resamples=resamples, seed=seed), level=level)


def resampled_means(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """The columns' means over N photos drawn with replacement, again and again; the arguments are interval's.

    Returns:
        float64 [resamples] or [resamples, columns]; NaN where a drawing missed all of a column's values.
    """
    values = np.asarray(values, np.float64)
    photos = len(values)
    if not photos:
        raise ValueError("there is no photo to draw from")
    columns = values.reshape(photos, -1)
    there = np.isfinite(columns)
    filled = np.where(there, columns, 0.0)
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // photos)
    means = []
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        drawn = rng.integers(photos, size=(draws, photos)) + photos * np.arange(draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=draws * photos).reshape(draws, photos).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append((times @ filled) / (times @ there))
    return np.concatenate(means).reshape(resamples, *values.shape[1:])


def percentiles(means: np.ndarray, *, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Between which two values the middle `level` of resampled means lies: [resamples, …] -> two of […]."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1")
    columns = means.reshape(len(means), -1)
    known = np.isfinite(columns).any(axis=0)
    low, high = np.full((2, columns.shape[1]), np.nan)
    # A drawing may miss a column's few values altogether.
    low[known], high[known] = np.nanquantile(columns[:, known], ((1 - level) / 2, (1 + level) / 2), axis=0)
    return low.reshape(means.shape[1:]), high.reshape(means.shape[1:])
