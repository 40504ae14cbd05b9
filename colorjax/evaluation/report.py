"""Writes an evaluation: metrics.json, tables of photos and classes, and the table that the terminal shows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colorjax import atomic
from colorjax.evaluation.measures import METHODS, Scores
from colorjax.evaluation.summary import DISTANCES, METRICS, PER_PHOTO
from colorjax.evaluation.tables import markdown_table, write_csv

_SWEEP = ("psnr", "colorfulness", "colorfulness_difference", "auc_rebalanced", "delta_e", "lpips")


def write(
    directory: Path,
    record: dict[str, Any],
    *,
    index: np.ndarray,
    labels: np.ndarray,
    scores: Scores,
    class_names: Sequence[str],
) -> None:
    """Writes per_photo.csv, per_class.csv, and last metrics.json: where that is, the others are.

    Args:
        directory: must exist.
        record: the content of metrics.json.
        index, labels: the photos' positions in the split and their labels, [N].
        scores: see split_pass.scores.
        class_names: names by label.
    """
    undefined = np.full(len(index), np.nan)
    table = np.stack([scores["model"].get(metric, undefined) for metric in PER_PHOTO], axis=1).astype(np.float64)
    write_csv(
        directory / "per_photo.csv",
        ["index", "label", "class", *PER_PHOTO],
        [[i, label, class_names[label], *row] for i, label, row in zip(index, labels, table.tolist(), strict=True)],
    )
    defined = np.isfinite(table)
    members = labels[:, None] == np.arange(len(class_names))  # [N, classes]
    with np.errstate(invalid="ignore"):
        means = (members.T @ np.where(defined, table, 0)) / (members.T.astype(np.float64) @ defined)
    write_csv(
        directory / "per_class.csv",
        ["label", "class", "photos", *PER_PHOTO],
        [
            [label, class_names[label], count, *means[label].tolist()]
            for label, count in enumerate(members.sum(axis=0).tolist())
        ],
    )
    atomic.write_text(directory / "metrics.json", json.dumps(record, indent=2) + "\n")


def metrics_table(record: Mapping[str, Any]) -> str:
    """The means in metrics.json as a Markdown table: a line a metric, a column a method.

    Args:
        record: has `rows` and may have `intervals` and `frechet` (see summary.summarize).
    """
    rows, intervals = record["rows"], record.get("intervals", {}).get("model")
    others = [method for method in METHODS if method in rows and method != "model"]

    def line(metric: object, by_method: Mapping[str, float], ends: Sequence[float] | None = None) -> list[object]:
        interval = [f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "–"] if intervals else []
        # Rounded, so that the gray photo's mean a is 0 and not 1e-6.
        value, *rest = (
            round(by_method[method], 5) + 0.0 if method in by_method else "–" for method in ("model", *others)
        )
        return [metric, value, *interval, *rest]

    lines = [
        line(metric, {method: row[name] for method, row in rows.items() if name in row}, (intervals or {}).get(name))
        for name, metric in METRICS.items()
        if any(name in row for row in rows.values())
    ]
    lines += [line(DISTANCES[network], distances) for network, distances in record.get("frechet", {}).items()]
    return markdown_table(["metric", "model", *(["95 % interval"] if intervals else []), *others], lines)


def sweep_table(record: Mapping[str, Any]) -> str:
    """The means of the model at each temperature of metrics.json's `sweep`, as a Markdown table."""
    names = [name for name in _SWEEP if all(name in row for row in record["sweep"].values())]
    return markdown_table(
        ["temperature", *(str(METRICS[name]) for name in names)],
        [[t, *(row[name] for name in names)] for t, row in record["sweep"].items()],
    )


def as_text(record: Mapping[str, Any]) -> str:
    """The content of metrics.json for the terminal."""
    lines = [metrics_table(record)]
    if "sweep" in record:
        agreeing = record["agreeing_temperature"]
        lines += [
            "",
            sweep_table(record),
            "Predicted and true colorfulness agree at none of these temperatures or between them: use a wider range."
            if agreeing is None
            else f"Predicted and true colorfulness agree at temperature {agreeing:.3g}.",
        ]
    if "calibration" in record:
        found = record["calibration"]
        low, high = found["before"]["ece_interval"]
        lines += [
            "",
            f"Expected calibration error: {found['before']['ece']:.3g} ({low:.3g} to {high:.3g}); "
            f"at the validation split's temperature {found['temperature']:.3g}, {found['after']['ece']:.3g}.",
        ]
    if record["left_out"]:
        lines += ["", f"Left out: {'; '.join(record['left_out'])}."]
    return "\n".join(lines)
