"""The tables of an evaluation, from invented numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colorjax.evaluation.report import as_text, metrics_table, write
from colorjax.evaluation.summary import METRICS, summarize

RECORD: dict[str, Any] = {
    "rows": {
        "model": {"psnr": 22.4567, "mean_a": 7.0, "top1": 0.25},
        "prior": {"psnr": 20.0, "mean_a": 6.5},
        "gray": {"psnr": 19.25, "mean_a": -2.5e-06},
        "truth": {"mean_a": 6.0},
    },
    "intervals": {"model": {"psnr": [21.123, 23.2], "mean_a": [6.5, 7.5], "top1": [0.1, 0.4]}},
    "frechet": {"inception": {"model": 55.5, "prior": 80.0, "gray": 90.0}},
    "left_out": ["LPIPS (--lpips-weights)"],
}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]


def test_the_table_has_a_line_for_each_metric() -> None:
    header, _, *lines = cells(metrics_table(RECORD))
    assert header == ["metric", "model", "95 % interval", "prior", "gray", "truth"]
    assert lines == [
        ["PSNR (dB) ↑", "22.46", "21.12 to 23.2", "20", "19.25", "–"],
        ["mean a", "7", "6.5 to 7.5", "6.5", "0", "6"],
        ["top-1 ↑", "0.25", "0.1 to 0.4", "–", "–", "–"],
        ["FID ↓", "55.5", "–", "80", "90", "–"],
    ]
    header, _, *lines = cells(metrics_table({"rows": RECORD["rows"]}))
    assert header == ["metric", "model", "prior", "gray", "truth"]
    assert lines[0] == ["PSNR (dB) ↑", "22.46", "20", "19.25", "–"]
    assert not any("|" in metric.heading for metric in METRICS.values())


def test_the_text_reports_the_sweep_and_what_was_left_out() -> None:
    rows = {str(t): {"psnr": 20.0 + t, "colorfulness_difference": 4 - 10 * t} for t in (0.3, 0.5)}
    text = as_text(RECORD | {"sweep": rows, "agreeing_temperature": 0.4})
    assert "Predicted and true colorfulness agree at temperature 0.4." in text
    assert ["0.3", "20.3", "1"] in cells(text)
    assert text.endswith("Left out: LPIPS (--lpips-weights).")
    assert "use a wider range" in as_text(RECORD | {"sweep": rows, "agreeing_temperature": None})


def test_metrics_that_no_photo_has_are_left_out(tmp_path: Path) -> None:
    scores = {
        "model": {"psnr": np.array([20.0, 22.0, np.nan]), "color_ce": np.full(3, np.nan)},
        "gray": {"psnr": np.array([18.0, 19.0, 20.0])},
    }
    record = summarize(scores, ())
    assert record["rows"] == {"model": {"psnr": 21.0}, "gray": {"psnr": 19.0}}
    low, high = record["intervals"]["model"]["psnr"]
    assert 20 <= low < 21 < high <= 22
    labels = np.array([1, 1, 0])
    write(tmp_path, record, index=np.arange(3), labels=labels, scores=scores, class_names=("a", "b, or c", "d"))
    assert json.loads((tmp_path / "metrics.json").read_text())["rows"]["gray"]["psnr"] == 19
    assert (tmp_path / "per_photo.csv").read_text().splitlines()[1].startswith('0,1,"b, or c",20,,')
    classes = (tmp_path / "per_class.csv").read_text().splitlines()
    assert [line.rstrip(",") for line in classes[1:]] == ["0,a,1", '1,"b, or c",2,21', "2,d,0"]


def test_features_give_a_distance_for_each_method() -> None:
    rng = np.random.default_rng(0)
    methods = ("model", "prior", "mean color", "gray", "truth")
    scores: Any = {method: {"psnr": np.ones(9), "inception": rng.normal(size=(9, 2))} for method in methods}
    scores["gray"]["inception"] = scores["truth"]["inception"] + 3
    distances = summarize(scores, ())["frechet"]["inception"]
    assert [*distances] == [*methods[:-1]]
    assert distances["gray"] == pytest.approx(2 * 9)
