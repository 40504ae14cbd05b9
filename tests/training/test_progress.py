"""What a training records, and what it shows on a terminal and in a log file."""

import io
import json
import logging
import sys
import time
from pathlib import Path

import pytest

from colorjax.training.progress import Progress, has_validation

METRICS = {
    "loss": 4697.25,
    "color_loss": 4.7123,
    "prior_color_loss": 5.0211,
    "accuracy": 0.125,
    "gradient_norm": 3.0,
}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _joint(directory: Path, *, start: int = 0, summed: bool = True) -> Progress:
    return Progress(directory / "joint" / "metrics.jsonl", start=start, steps=20, batch_size=8, summed=summed)


def test_a_terminal_shows_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with caplog.at_level(logging.INFO, "colorjax"):
        progress = _joint(tmp_path, start=10)
        for step in range(11, 16):
            time.sleep(0.12)
            progress.advance(step, METRICS)
        progress.train(15, METRICS)
        progress.close()
    last = next(part for part in reversed(screen.getvalue().split("\r")) if "15/20" in part)
    assert last.startswith("joint |")
    # The loss to watch, without the sum over pixels, for which a terminal is too narrow.
    shown, rate = last.split("left, ")[1].rsplit(", ", 1)
    assert shown == "color loss 4.712 (prior 5.021), accuracy 12.5 %"
    assert 0 < float(rate.removesuffix(" photos/s")) < 8 / 0.12 * 1.5
    assert not caplog.messages  # the bar says it


def test_a_log_file_gets_a_short_line_for_each_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with caplog.at_level(logging.INFO, "colorjax"):
        progress = _joint(tmp_path, summed=False)
        progress.advance(1, METRICS)
        progress.train(1, METRICS)
        progress.validation(1, METRICS | {"psnr": 21.345})
        progress.close()
    train, validation = caplog.messages
    assert train.startswith("joint 1/20: loss 4697, color loss 4.712 (prior 5.021), accuracy 12.5 %, ")
    assert train.endswith(" left")
    shown = "joint 1/20 validation: loss 4697, color loss 4.712 (prior 5.021), accuracy 12.5 %, PSNR 21.34 dB"
    assert validation in (shown, shown.replace("21.34", "21.35"))
    assert max(map(len, caplog.messages)) < 120
    assert file.getvalue() == ""


def test_records_after_the_step_that_a_run_resumes_from_are_dropped(tmp_path: Path) -> None:
    progress = _joint(tmp_path)
    for step in (1, 2, 3):
        progress.train(step, METRICS)
    progress.validation(2, METRICS)
    progress.close()
    path = tmp_path / "joint" / "metrics.jsonl"
    with path.open("a", encoding="latin-1") as file:
        # A killed process leaves half a line, and a broken disk may leave anything.
        for line in ("3", "{}", '{"step": 2.5, "split": "train"}', "\x80", "[" * 2000, '{"step": 4, "spl'):
            file.write(line + "\n")
    assert has_validation(path, 2)
    assert not has_validation(path, 3)
    assert not has_validation(tmp_path / "nowhere.jsonl", 2)

    _joint(tmp_path, start=2).close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(record["step"], record["split"]) for record in kept] == [(1, "train"), (2, "train"), (2, "validation")]
    assert all(record.items() >= METRICS.items() for record in kept)
