"""What the rows of a study came to: means over photos, their spread over seeds, and differences to `full`."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from colorjax.evaluation import bootstrap
from colorjax.evaluation.evaluate import PER_PHOTO
from colorjax.study.plan import Run

BASELINE = "full"
METRICS = tuple(name for name in PER_PHOTO if name != "true_colorfulness")

Photos = dict[int, np.ndarray]
"""Seed -> float64 [N, M]: METRICS of every photo, NaN where it has no such value."""


@dataclass(frozen=True)
class Summary:
    """One row.

    Attributes:
        row: its name.
        status: seed -> how far the run is (study.Run.status).
        mean: metric -> the mean over photos and seeds.
        spread: metric -> the standard deviation of the seeds' means; none of a single seed.
        difference: metric -> mean, low and high end of the 95 % interval of row − baseline.
        paired: the seeds that the differences are of.
        same_training: whether its runs are the baseline's, decoded otherwise, so that seeds make no difference.
    """

    row: str
    status: dict[int, str]
    mean: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    difference: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    paired: tuple[int, ...] = ()
    same_training: bool = False


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """The joint runs by row, in their order.

    Raises:
        ValueError: if two runs were evaluated on different photos, or a file is damaged: names it.
    """
    joint = [run for run in runs if run.stage == "joint"]
    rows = list(dict.fromkeys(run.row for run in joint))
    done = [run for run in joint if run.status() == "done"]
    photos: dict[str, Photos] = {row: {} for row in rows}
    index: np.ndarray | None = None
    for run in done:
        path = run.evaluation / "per_photo.csv"
        there, values = _read(path)
        if index is not None and not np.array_equal(there, index):
            raise ValueError(
                f"{path} has other photos than {done[0].evaluation / 'per_photo.csv'}, so the rows cannot be compared; "
                "evaluate both anew: python -m colorjax evaluate --workdir=…"
            )
        index = there
        photos[run.row][run.seed] = values
    stride = {run.row: run.config.model.output_stride for run in joint}
    full = {run.seed: run for run in done if run.row == BASELINE}
    summaries = []
    for row in rows:
        mine, baseline = photos[row], photos.get(BASELINE, {})
        # At another output size the cross-entropies are of other targets.
        differing = stride[row] != stride.get(BASELINE)
        summaries.append(
            Summary(
                row,
                {run.seed: run.status() for run in joint if run.row == row},
                **_over_seeds(mine),
                **_difference(mine, {} if row == BASELINE else baseline, without_entropies=differing),
                same_training=all(run.decodes(full[run.seed]) for run in done if run.row == row and run.seed in full),
            )
        )
    return summaries


def seed_spread(summaries: Sequence[Summary]) -> dict[str, float]:
    """Metric -> the standard deviation that another seed alone makes, pooled over the rows with several seeds."""
    pooled = {}
    for name in METRICS:
        squares = [
            (sum(status == "done" for status in summary.status.values()) - 1, summary.spread[name] ** 2)
            for summary in summaries
            if name in summary.spread
        ]
        if squares:
            pooled[name] = math.sqrt(sum(n * square for n, square in squares) / sum(n for n, _ in squares))
    return pooled


def paired_difference(row: Photos, baseline: Photos) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of row − baseline over the seeds that both have and over photos, and its 95 % bootstrap interval.

    A seed's run is paired with the baseline's of the same seed, a photo with itself. Each resample draws photos with
    replacement, the same for all seeds, and, where there are several seeds, seeds with replacement as well; the
    interval is between the percentiles of its means.

    Args:
        row, baseline: seed -> [N, M], with a seed in common.

    Returns:
        Mean, low and high, float64 [M] each; NaN where either has no values.
    """
    seeds = sorted(row.keys() & baseline.keys())
    differences = np.stack([row[seed] - baseline[seed] for seed in seeds], axis=1)  # [N, S, M]
    photos, _, metrics = differences.shape
    means = bootstrap.resampled_means(differences.reshape(photos, -1)).reshape(-1, len(seeds), metrics)
    drawn = np.random.default_rng(1).integers(len(seeds), size=means.shape[:2])
    means = np.take_along_axis(means, drawn[..., None], axis=1).mean(axis=1)
    return _mean(_mean(differences)), *bootstrap.percentiles(means)


def _over_seeds(photos: Photos) -> dict[str, dict[str, float]]:
    if not photos:
        return {}
    means = np.stack([_mean(values) for values in photos.values()])
    over = dict(zip(METRICS, means.mean(axis=0).tolist(), strict=True))
    spread = means.std(axis=0, ddof=1).tolist() if len(means) > 1 else []
    return {
        "mean": {name: value for name, value in over.items() if np.isfinite(value)},
        "spread": {name: value for name, value in zip(METRICS, spread, strict=False) if np.isfinite(value)},
    }


def _difference(mine: Photos, baseline: Photos, *, without_entropies: bool) -> dict:
    seeds = tuple(sorted(mine.keys() & baseline.keys()))
    if not seeds:
        return {}
    ends = np.stack(paired_difference(mine, baseline), axis=1).tolist()
    left_out = ("color_ce", "color_loss") if without_entropies else ()
    return {
        "difference": {
            name: tuple(end)
            for name, end in zip(METRICS, ends, strict=True)
            if np.isfinite(end[0]) and name not in left_out
        },
        "paired": seeds,
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, of what is not NaN; NaN where all is."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(axis=0) / there.sum(axis=0)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The photos' places in the split [N] and METRICS [N, M] of a per_photo.csv."""
    with path.open(newline="") as f:
        lines = list(csv.DictReader(f))
    try:
        index = np.array([int(line["index"]) for line in lines])
        # A metric that the file lacks, or an empty cell, is no value.
        values = np.array([[float(line.get(name) or "nan") for name in METRICS] for line in lines], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no per_photo.csv ({type(error).__name__}: {error}); "
            f"make it anew: python -m colorjax evaluate --workdir={path.parents[2]}"
        ) from error
    if not lines:
        raise ValueError(f"{path} has no photo; make it anew: python -m colorjax evaluate --workdir={path.parents[2]}")
    return index, values
