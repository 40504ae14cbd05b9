"""What an evaluation reports: the metrics with their headings, their means, and bootstrap intervals."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from colorjax.evaluation import bootstrap, frechet
from colorjax.evaluation.measures import FEATURES, METHODS, Scores, at_temperature


class Metric(NamedTuple):
    """A metric's heading, the better direction (↑, ↓, or "" where neither is better), and its meaning."""

    heading: str
    better: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.heading} {self.better}".strip()


METRICS = {
    "psnr": Metric("PSNR (dB)", "↑", "peak signal-to-noise ratio of the predicted RGB photo"),
    "ssim": Metric("SSIM", "↑", "structural similarity to the true photo, at most 1"),
    "colorfulness": Metric("colorfulness", "", "Hasler and Süsstrunk's; best near the truth's"),
    "colorfulness_difference": Metric("colorfulness − truth", "", "predicted minus true colorfulness, photo by photo"),
    "colorfulness_error": Metric("colorfulness error", "↓", "absolute difference from the true photo's colorfulness"),
    "auc": Metric("AuC (%)", "↑", "share of pixels within an ab distance, averaged over distances of 0 to 150"),
    "auc_rebalanced": Metric("rebalanced AuC (%)", "↑", "the same with rare colors weighted up"),
    "delta_e": Metric("ΔE2000", "↓", "mean CIEDE2000 color difference of the pixels"),
    "mean_a": Metric("mean a", "", "mean green-red coordinate of the predicted photo"),
    "mean_b": Metric("mean b", "", "mean blue-yellow coordinate of the predicted photo"),
    "mean_color_distance": Metric("distance to mean color", "", "mean ab distance to the training photos' mean color"),
    "color_ce": Metric("color cross-entropy", "↓", "nats a pixel"),
    "color_loss": Metric("weighted color cross-entropy", "↓", "nats a pixel, weighted by the rarity of the true color"),
    "lpips": Metric("LPIPS", "↓", "perceptual distance to the true photo, version 0.1 over AlexNet"),
    "top1": Metric("top-1", "↑", "share of photos whose class is the classifier's first guess"),
    "top5": Metric("top-5", "↑", "share of photos whose class is among its five first guesses"),
}
"""Metric -> its description, in the order of the tables."""

PER_PHOTO = (
    "psnr",
    "ssim",
    "colorfulness",
    "true_colorfulness",
    "colorfulness_error",
    "auc",
    "auc_rebalanced",
    "delta_e",
    "mean_a",
    "mean_b",
    "mean_color_distance",
    "color_ce",
    "color_loss",
    "top1",
    "top5",
    "lpips",
)
"""The model's columns of per_photo.csv and per_class.csv; empty where a metric is undefined."""

DISTANCES = {
    "efficientnet": Metric("Fréchet distance", "↓", "between EfficientNet-Lite0 features of predicted and true photos"),
    "inception": Metric("FID", "↓", "Fréchet distance between Inception features of predicted and true photos"),
}
"""Network -> the description of the Fréchet distance between its features."""


def summarize(scores: Scores, sweep: tuple[float, ...]) -> dict[str, Any]:
    """Averages scores over photos.

    Args:
        scores: method -> metric -> [N].
        sweep: the temperatures of the sweep, whose scores are under `at_temperature`.

    Returns:
        Part of metrics.json: `rows` (method -> metric -> mean) and `intervals` (method -> metric -> [low, high], the
        bootstrap's 95 % interval); with a sweep also `sweep`, `sweep_intervals` (by temperature) and
        `agreeing_temperature`; with features also `frechet` (network -> method -> distance to the truth). A metric that
        is undefined for every photo is left out.
    """
    columns = {
        (method, metric): row[metric]
        for method, row in scores.items()
        for metric in METRICS
        if metric in row and np.isfinite(row[metric]).any()
    }
    table = np.stack([*columns.values()], axis=1).astype(np.float64)
    means = np.nanmean(table, axis=0)
    low, high = bootstrap.interval(table)
    rows: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    for i, (method, metric) in enumerate(columns):
        rows.setdefault(method, {})[metric] = float(means[i])
        intervals.setdefault(method, {})[metric] = [float(low[i]), float(high[i])]

    methods = [method for method in METHODS if method in rows]
    record: dict[str, Any] = {"rows": {m: rows[m] for m in methods}, "intervals": {m: intervals[m] for m in methods}}
    if sweep:
        differences = {t: rows[at_temperature(t)]["colorfulness_difference"] for t in sweep}
        record |= {
            "sweep": {str(t): rows[at_temperature(t)] for t in sweep},
            "sweep_intervals": {str(t): intervals[at_temperature(t)] for t in sweep},
            "agreeing_temperature": agreeing_temperature(differences),
        }
    true = scores.get("truth", {})
    distances = {
        network: {
            method: frechet.distance(scores[method][network], true[network])
            for method in (*METHODS[:-1], *map(at_temperature, sweep))
        }
        for network in FEATURES
        if network in true
    }
    return record | ({"frechet": distances} if distances else {})


def agreeing_temperature(differences: dict[float, float]) -> float | None:
    """Finds the temperature at which predicted and true colorfulness agree, by linear interpolation.

    Args:
        differences: temperature -> mean of predicted − true colorfulness.

    Returns:
        The lowest such temperature; None if the difference has the same sign at all temperatures.
    """
    points = sorted(differences.items())
    for t, difference in points:
        if difference == 0:
            return t
    for (t0, d0), (t1, d1) in itertools.pairwise(points):
        if d0 * d1 < 0:
            return t0 + (t1 - t0) * d0 / (d0 - d1)
    return None
