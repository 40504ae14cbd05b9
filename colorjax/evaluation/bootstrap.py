"""Bootstrap percentile intervals of means over photos."""

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
RESAMPLES = 2000
_CHUNK = 2**22  # drawn photos in memory at a time


def interval(
    values: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The interval of each column's mean over photos (Efron and Tibshirani 1993, section 13.3).

    A drawn photo brings all of its columns, so a column of differences gives a paired interval. The same seed draws
    the same photos.

    Args:
        values: floating [N] or [N, columns]; NaN where a photo has no value, which is left out of its column's mean.
        level: the share of the resampled means inside the interval.
        resamples: number of data sets of N photos that are drawn.
        seed: random seed.

    Returns:
        float64 low and high, [] or [columns] each; NaN for a column without values.

    Raises:
        ValueError: there is no photo, or `level` is not between 0 and 1.
    """
    return percentiles(resampled_means(values, resamples=resamples, seed=seed), level=level)


def resampled_means(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """The columns' means over N photos drawn with replacement, `resamples` times; for the arguments see `interval`.

    Returns:
        float64 [resamples] or [resamples, columns]; NaN where a draw misses all values of a column.
    """
    values = np.asarray(values, np.float64)
    photos = len(values)
    if not photos:
        raise ValueError("there is no photo to draw from")
    columns = values.reshape(photos, -1)
    defined = np.isfinite(columns)
    filled = np.where(defined, columns, 0.0)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // photos)
    means = []
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        drawn = rng.integers(photos, size=(draws, photos)) + photos * np.arange(draws)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=draws * photos).reshape(draws, photos).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append((counts @ filled) / (counts @ defined))
    return np.concatenate(means).reshape(resamples, *values.shape[1:])


def percentiles(means: np.ndarray, *, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the middle `level` of resampled means: [resamples, …] -> low […] and high […]."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1")
    columns = means.reshape(len(means), -1)
    known = np.isfinite(columns).any(axis=0)
    low, high = np.full((2, columns.shape[1]), np.nan)
    # A draw may miss all of a column's few values.
    low[known], high[known] = np.nanquantile(columns[:, known], ((1 - level) / 2, (1 + level) / 2), axis=0)
    return low.reshape(means.shape[1:]), high.reshape(means.shape[1:])
