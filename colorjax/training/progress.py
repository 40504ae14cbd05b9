"""What a run says of itself: JSON lines, TensorBoard files, and a line on the terminal."""

import json
import logging
import time
from pathlib import Path

import jax
import numpy as np

_log = logging.getLogger(__name__)


class Progress:
    """The records of one stage, written by the first process only.

    `metrics.jsonl` holds one object a record: `step`, `split` ("train", "validation") and the scalars. TensorBoard's
    files lie beside it. What an interrupted run recorded past the step that it resumes from is dropped, so no step
    stands twice.
    """

    def __init__(self, directory: Path, *, start: int, steps: int, batch_size: int):
        """Args:
        directory: created if missing.
        start: the step resumed from, 0 at first.
        steps: the stage's number of steps.
        batch_size: photos a step, over all devices.
        """
        self._steps, self._batch_size = steps, batch_size
        self._last_step, self._last_time = start, time.perf_counter()
        self._directory = directory
        self._writer = None
        if jax.process_index() == 0:
            # Here, as it imports PyTorch for two seconds where that is installed.
            from tensorboardX import SummaryWriter

            directory.mkdir(parents=True, exist_ok=True)
            self._jsonl = directory / "metrics.jsonl"
            _drop_after(self._jsonl, start)
            self._writer = SummaryWriter(str(directory), purge_step=start + 1)

    def restart_clock(self, step: int) -> None:
        """Leaves what happened since the last record (compilation, evaluation, saving) out of the next one's speed."""
        self._last_step, self._last_time = step, time.perf_counter()

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Records the means over the steps since the last record, with the speed and the time left."""
        elapsed, done = time.perf_counter() - self._last_time, step - self._last_step
        self.restart_clock(step)
        if done > 0:
            seconds = elapsed / done
            metrics = metrics | {
                "images_per_second": self._batch_size / seconds,
                "seconds_per_step": seconds,
            }
            left = f", {duration((self._steps - step) * seconds)} left"
        else:
            left = ""
        self._write(step, "train", metrics, left)

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Records an evaluation."""
        self._write(step, "validation", metrics, "")

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Shows a picture, uint8 [H, W, 3]."""
        if self._writer:
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is buffered."""
        if self._writer:
            self._writer.close()

    def _write(self, step: int, split: str, metrics: dict[str, float], suffix: str) -> None:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        _log.info("%s %d/%d [%s] %s%s", self._directory.name, step, self._steps, split, shown, suffix)
        if self._writer:
            for name, value in metrics.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)
            with self._jsonl.open("a") as f:
                f.write(json.dumps({"step": step, "split": split} | metrics) + "\n")


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the half-written last line of a killed process
        if record["step"] <= step:
            kept.append(line + "\n")
    # Whole or not at all, as this process may be killed as well.
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def duration(seconds: float) -> str:
    """Seconds as 2h05m, or 3m07s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
