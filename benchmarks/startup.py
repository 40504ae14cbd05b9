"""Start-up: importing, the first step and the first prediction, with and without compiled programs on disk."""

import os
import statistics
import sys
import tempfile
import time

import jax

from benchmarks import measure
from benchmarks.joint import JointStep, config, small_config
from benchmarks.measure import Row, Settings

TITLE = "Start-up: seconds from the start of the process, its end included"

IMPORTS = {
    "import jax": "import jax",
    "import colorjax": "import colorjax",
    "from colorjax import models": "from colorjax import models",
    "from colorjax import training": "from colorjax import training",
    "from flax import nnx": "from flax import nnx",
}


def rows(settings: Settings) -> list[Row]:
    """One row an import, in turns; then one a first result, cold and from the cache."""
    repeats = 1 if settings.quick else max(3, settings.repeats // 2)
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for turn in range(repeats + 1):
        for name, statement in IMPORTS.items():
            seconds = _seconds("-c", statement)
            if turn:  # the first reads the disk
                times[name].append(seconds)
    medians = {name: statistics.median(of) for name, of in times.items()}
    found: list[Row] = [
        {"what": name, "s": of, "over import jax": of / medians["import jax"]} for name, of in medians.items()
    ]
    scale = "quick" if settings.quick else "paper"
    for what in ("step", "prediction"):
        with tempfile.TemporaryDirectory(prefix="colorjax-cache-") as cache:
            for name in ("no compiled programs", "compiled programs on disk"):
                seconds = _seconds("-m", "benchmarks.startup", what, scale, JAX_COMPILATION_CACHE_DIR=cache)
                found.append({"what": f"first {what}, {name}", "s": seconds})
    return found


def _seconds(*command: str, **environment: str) -> float:
    start = time.perf_counter()
    measure.run_alone(*command, **environment)
    return time.perf_counter() - start


def _first(what: str, scale: str) -> None:
    """Returns at the first result of the given kind."""
    own = small_config(batch=2, size=32) if scale == "quick" else config(batch=8)
    step = JointStep.make(own) if what == "step" else None
    if step:
        jax.block_until_ready(step.running(step.one_batch())())
        return
    import numpy as np

    from colorjax import state, steps, training

    mesh = state.make_mesh()
    program = training.build_program(own, "joint", classes=101)
    params, stats = training.init_model(own, "joint", classes=101)
    photo = np.zeros((1, own.data.image_size, own.data.image_size, 1), np.float32)

    def colorize(params: state.Tree, stats: state.Tree, l: jax.Array) -> jax.Array:
        return steps.colorized(program(params, stats, l, train=False)[0], l, temperature=own.decode.temperature)

    options = state.compiler_options()
    jax.block_until_ready(
        jax.jit(colorize, compiler_options=options)(*jax.device_put((params, stats, photo), state.replicated(mesh)))
    )


if __name__ == "__main__":
    _first(*sys.argv[1:])
    # Without the teardown of what a process has loaded: the result is there.
    os._exit(0)
