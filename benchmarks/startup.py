"""Start-up: importing, the first step and the first prediction, with and without compiled programs on disk."""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Row, Settings

TITLE = "Start-up: seconds from the start of the process, its end included"

IMPORTS = {
    "import jax": "import jax",
    "import colorjax": "import colorjax",
    "from colorjax.model import colorizer": "from colorjax.model import colorizer",
    "from colorjax.training import loop": "from colorjax.training import loop",
    "from flax import nnx": "from flax import nnx",
}


def rows(settings: Settings) -> list[Row]:
    """A row for each import, in turns; then one for each first result, without and with the cache."""
    repeats = 1 if settings.quick else max(3, settings.repeats // 2)
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for turn in range(repeats + 1):
        for name, statement in IMPORTS.items():
            seconds = _seconds("-c", statement)
            if turn:  # the first one reads the disk
                times[name].append(seconds)
    medians = {name: statistics.median(of) for name, of in times.items()}
    found: list[Row] = [
        {"what": name, "s": of, "over import jax": of / medians["import jax"]} for name, of in medians.items()
    ]
    for what in ("step", "prediction"):
        with tempfile.TemporaryDirectory(prefix="colorjax-startup-") as directory:
            folder = Path(directory) / "colorizer"
            _save_untrained(folder, quick=settings.quick)
            for name in ("no compiled programs", "compiled programs on disk"):
                seconds = _seconds(
                    "-m", "benchmarks.startup", what, str(folder), JAX_COMPILATION_CACHE_DIR=f"{directory}/programs"
                )
                found.append({"what": f"first {what}, {name}", "s": seconds})
    return found


def _save_untrained(folder: Path, *, quick: bool) -> None:
    from benchmarks.joint import config
    from colorjax.model.program import init_model
    from colorjax.run.trained import Trained, save_trained

    own = config(batch=8, size=32, width=0.25) if quick else config(batch=8)
    names = tuple(map(str, range(101)))
    save_trained(Trained(own, names, 0, *init_model(own, "joint", classes=len(names))), folder)


def _seconds(*command: str, **environment: str) -> float:
    start = time.perf_counter()
    measure.run_alone(*command, **environment)
    return time.perf_counter() - start


def _first(what: str, folder: str) -> None:
    """Returns after the first result of this kind. Its imports are timed too."""
    if what == "step":
        import jax

        from benchmarks.joint import JointStep
        from colorjax.run.workdir import load_config

        step = JointStep.make(load_config(Path(folder)))
        jax.block_until_ready(step.running(step.one_batch())())
    else:
        import numpy as np

        from colorjax.photos.predictor import Predictor

        Predictor(folder).colorize([np.zeros((480, 640, 3), np.uint8)])


if __name__ == "__main__":
    _first(*sys.argv[1:])
    # Skips the teardown, since the result is complete.
    os._exit(0)
