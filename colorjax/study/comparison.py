"""Compares the rows of a study: means over photos, standard deviations over seeds, and differences to `full`."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from colorjax.evaluation import bootstrap
from colorjax.evaluation.summary import PER_PHOTO
from colorjax.study.plan import Run

BASELINE = "full"
METRICS = tuple(name for name in PER_PHOTO if name != "true_colorfulness")

Photos = dict[int, np.ndarray]
"""Seed -> float64 [N, M]: METRICS of every photo, NaN where a metric is undefined."""


@dataclass(frozen=True)
class Summary:
    """One row's results.

    Attributes:
        row: the row's name.
        status: seed -> Run.status.
        mean: metric -> mean over photos and seeds.
        deviation: metric -> standard deviation of the seeds' means; empty with a single seed.
        difference: metric -> row − baseline: mean, and low and high end of its 95 % interval.
        paired: the seeds that the differences cover.
        same_training: whether the row only decodes the baseline's trainings differently, so that seeds play no role.
    """

    row: str
    status: dict[int, str]
    mean: dict[str, float] = field(default_factory=dict)
    deviation: dict[str, float] = field(default_factory=dict)
    difference: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    paired: tuple[int, ...] = ()
    same_training: bool = False


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """Summarizes the joint runs by row, in their order.

    Raises:
        ValueError: two runs were evaluated on different photos, or a file is damaged.
    """
    joint = [run for run in runs if run.stage == "joint"]
    rows = list(dict.fromkeys(run.row for run in joint))
    done = [run for run in joint if run.status() == "done"]
    photos: dict[str, Photos] = {row: {} for row in rows}
    index: np.ndarray | None = None
    for run in done:
        path = run.evaluation / "per_photo.csv"
        positions, values = _read(path)
        if index is not None and not np.array_equal(positions, index):
            raise ValueError(
                f"{path} has other photos than {done[0].evaluation / 'per_photo.csv'}: "
                "evaluate both again with `colorjax evaluate --workdir=…`"
            )
        index = positions
        photos[run.row][run.seed] = values
    stride = {run.row: run.config.model.output_stride for run in joint}
    full = {run.seed: run for run in done if run.row == BASELINE}
    summaries = []
    for row in rows:
        mine, baseline = photos[row], photos.get(BASELINE, {})
        # With another output size the cross-entropies have other targets.
        other_size = stride[row] != stride.get(BASELINE)
        summaries.append(
            Summary(
                row,
                {run.seed: run.status() for run in joint if run.row == row},
                **_over_seeds(mine),
                **_difference(mine, {} if row == BASELINE else baseline, without_entropies=other_size),
                same_training=all(
                    run.trains_like(full[run.seed]) for run in done if run.row == row and run.seed in full
                ),
            )
        )
    return summaries


def seed_deviation(summaries: Sequence[Summary]) -> dict[str, float]:
    """Metric -> the standard deviation between seeds, pooled over the rows with several seeds."""
    pooled = {}
    for name in METRICS:
        squares = [
            (sum(status == "done" for status in summary.status.values()) - 1, summary.deviation[name] ** 2)
            for summary in summaries
            if name in summary.deviation
        ]
        if squares:
            pooled[name] = math.sqrt(sum(n * square for n, square in squares) / sum(n for n, _ in squares))
    return pooled


def paired_difference(row: Photos, baseline: Photos) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of row − baseline over common seeds and over photos, with its 95 % bootstrap interval.

    Runs of the same seed are paired, and photos with themselves. Each resample draws photos with replacement, the same
    for all seeds; with several seeds it draws seeds with replacement too.

    Args:
        row, baseline: seed -> [N, M], with a seed in common.

    Returns:
        Mean, low and high, float64 [M] each; NaN where either has no value.
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
    deviation = means.std(axis=0, ddof=1).tolist() if len(means) > 1 else []
    return {
        "mean": {name: value for name, value in over.items() if np.isfinite(value)},
        "deviation": {name: value for name, value in zip(METRICS, deviation, strict=False) if np.isfinite(value)},
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
    """The mean over the first axis without NaN; NaN where all values are."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0).sum(axis=0) / finite.sum(axis=0)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The photos' positions in the split [N] and their METRICS [N, M] in a per_photo.csv."""
    with path.open(newline="") as f:
        lines = list(csv.DictReader(f))
    try:
        index = np.array([int(line["index"]) for line in lines])
        # A metric that the file lacks, or an empty cell, is undefined.
        values = np.array([[float(line.get(name) or "nan") for name in METRICS] for line in lines], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): "
            f"write it again with `colorjax evaluate --workdir={path.parents[2]}`"
        ) from error
    if not lines:
        raise ValueError(f"{path} has no photo: write it again with `colorjax evaluate --workdir={path.parents[2]}`")
    return index, values
