"""The records of a training: JSON lines, TensorBoard files, and a progress bar or lines on the terminal."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from colorjax import atomic

_log = logging.getLogger(__name__)

# {bar} takes what the terminal's width leaves.
_BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"


class Progress:
    """The records of one stage, written by the first process only.

    `metrics.jsonl` holds one object a record: `step`, `split` ("train", "validation") and the scalars. TensorBoard's
    files lie beside it. Records of an interrupted run past the step that it resumes from are dropped, so no step
    stands twice. A terminal shows a progress bar, a log file a line for each record.
    """

    def __init__(self, path: Path, *, start: int, steps: int, batch_size: int, summed: bool):
        """Opens the records.

        Args:
            path: of the metrics; its folder, created if missing, is the stage's, whose name is shown.
            start: the step resumed from, 0 at first.
            steps: the stage's number of steps.
            batch_size: photos a step, over all devices.
            summed: whether the color term of `loss` is a sum over pixels.
        """
        directory = path.parent
        self._stage, self._steps, self._batch_size, self._summed = directory.name, steps, batch_size, summed
        self._last_step, self._last_time = start, time.perf_counter()
        self._jsonl = path
        self._writer = None
        if jax.process_index() == 0:
            # Here, as it imports PyTorch for two seconds where that is installed.
            from tensorboardX import SummaryWriter

            directory.mkdir(parents=True, exist_ok=True)
            _drop_after(self._jsonl, start)
            self._writer = SummaryWriter(str(directory), purge_step=start + 1)
        # None shows the bar on a terminal only.
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc=directory.name,
            bar_format=_BAR,
            dynamic_ncols=True,
            leave=False,
            disable=None if self._writer else True,
        )

    def restart_clock(self, step: int) -> None:
        """Leaves what happened since the last record (validation, saving) out of the next one's speed."""
        self._last_step, self._last_time = step, time.perf_counter()
        self._bar.unpause()

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar to a step, with the means since the last record."""
        self._bar.n = step - 1
        if not self._bar.disable:
            rate = self._bar.format_dict["rate"]
            speed = [f"{rate * self._batch_size:.3g} photos/s"] if rate else []
            self._bar.set_postfix_str(", ".join([*self._shown(metrics, narrow=True), *speed]), refresh=False)
        self._bar.update()

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Records the means over the steps since the last record, with the speed."""
        elapsed, done = time.perf_counter() - self._last_time, step - self._last_step
        self.restart_clock(step)
        speed = []
        if done > 0:
            seconds = elapsed / done
            metrics = metrics | {"images_per_second": self._batch_size / seconds, "seconds_per_step": seconds}
            speed = [f"{self._batch_size / seconds:.3g} photos/s", f"{duration((self._steps - step) * seconds)} left"]
        if self._bar.disable:
            _log.info("%s %d/%d: %s", self._stage, step, self._steps, ", ".join([*self._shown(metrics), *speed]))
        self._write(step, "train", metrics)

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Records a validation."""
        _log.info("%s %d/%d validation: %s", self._stage, step, self._steps, ", ".join(self._shown(metrics)))
        self._write(step, "validation", metrics)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Shows a picture, uint8 [H, W, 3], in TensorBoard."""
        if self._writer:
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is buffered, and removes the bar."""
        self._bar.close()
        if self._writer:
            self._writer.close()

    def _shown(self, metrics: Mapping[str, float], *, narrow: bool = False) -> list[str]:
        """The metrics that a person watches, the loss first; where it is narrow, no sum beside the loss per pixel."""
        shown = [f"loss {metrics['loss']:.4g}" + (" (sum over pixels)" if self._summed else "")]
        if narrow and self._summed and "color_loss" in metrics:
            shown = []
        if "color_loss" in metrics:
            prior = f" (prior {metrics['prior_color_loss']:.4g})" if "prior_color_loss" in metrics else ""
            shown.append(f"color loss {metrics['color_loss']:.4g}{prior}")
        if "accuracy" in metrics:
            shown.append(f"accuracy {100 * metrics['accuracy']:.3g} %")
        if "psnr" in metrics:
            shown.append(f"PSNR {metrics['psnr']:.4g} dB")
        return shown

    def _write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        if self._writer:
            for name, value in metrics.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)
            with self._jsonl.open("a") as f:
                f.write(json.dumps({"step": step, "split": split} | metrics) + "\n")


def has_validation(path: Path, step: int) -> bool:
    """Whether a metrics.jsonl has the validation after a step."""
    return any((record["step"], record["split"]) == (step, "validation") for record in read_records(path))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records in a metrics.jsonl. Other lines are left out, such as the half that a killed process leaves."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except (RecursionError, ValueError):
            continue
        if isinstance(record, dict) and type(record.get("step")) is int and isinstance(record.get("split"), str):
            records.append(record)
    return records


def _drop_after(path: Path, step: int) -> None:
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in read_records(path) if record["step"] <= step]
        atomic.write_text(path, "".join(kept))


def duration(seconds: float) -> str:
    """Seconds as 2h05m, or 3m07s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
