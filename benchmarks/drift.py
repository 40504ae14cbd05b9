"""How the losses of 1, 2 and 4 devices drift apart, and whether that is amplified rounding.

Every curve is compared with one device, with the same photos and the same initial parameters. If rounding is all that
differs, float64 drifts 10^9 times less, a smaller rate drifts less, and one device drifts as much as four when each of
its initial parameters is changed in the last place.
"""

import dataclasses
import json
import os
import sys
from typing import Any

from benchmarks import measure
from benchmarks.measure import Row, Settings

TITLE = "Drift: the relative difference of the loss from that of one device"

RATE = 1e-3
CURVES: dict[str, dict[str, Any]] = {
    "2 devices": {"devices": 2},
    "4 devices": {"devices": 4},
    "1 device, parameters changed in the last place": {"nudged": True},
    "4 devices, a rate of 1e-6": {"devices": 4, "rate": 1e-6},
    "4 devices, float64": {"devices": 4, "float64": True},
}
_SHOWN = (1, 2, 4, 8, 16)


def rows(settings: Settings) -> list[Row]:
    """A row for each curve, each run in a process of its own on simulated devices of the CPU."""
    steps = 2 if settings.quick else _SHOWN[-1]
    found: list[Row] = []
    alone: dict[str, list[float]] = {}
    for name, options in CURVES.items():
        base = {"rate": RATE, "float64": False} | {k: v for k, v in options.items() if k in ("rate", "float64")}
        key = json.dumps(base)
        alone[key] = alone.get(key) or _losses(base, steps)
        losses = _losses(base | options, steps)
        difference = [abs(a - b) / b for a, b in zip(losses, alone[key], strict=True)]
        found.append({"curve": name} | {f"step {i}": difference[i - 1] for i in _SHOWN if i <= steps})
        print(found[-1], flush=True)
    return found


def _losses(options: dict[str, Any], steps: int) -> list[float]:
    # Without the compiler's optimizations, which cost minutes and only round in other places.
    flags = f"--xla_force_host_platform_device_count={options.get('devices', 1)} --xla_backend_optimization_level=0"
    printed = measure.run_alone(
        "-m", "benchmarks.drift", json.dumps(options | {"steps": steps}), JAX_PLATFORMS="cpu", XLA_FLAGS=flags
    )
    return measure.last_json(printed)


def _run(options: dict[str, Any]) -> list[float]:
    import jax
    import jax.numpy as jnp

    if options["float64"]:
        jax.config.update("jax_enable_x64", True)
        jnp.float32 = jnp.float64  # before the first import of the modules that name it
        sys.modules["llvmlite"] = None  # pyright: ignore[reportArgumentType]  # the kernels are for float32
        from colorjax.model import colorizer

        colorizer.compute_dtype = lambda config: jnp.dtype("float64")
    import numpy as np

    from benchmarks.joint import JointStep, small_config

    config = small_config(batch=8, size=32).unlock()
    config.model.patch_kernels = (3, 3, 3)
    config.joint.learning_rate, config.joint.schedule, config.joint.warmup_steps = options["rate"], "constant", 0
    step = JointStep.make(config.lock())
    if options.get("nudged"):
        nudge = jax.tree.map(lambda x: jnp.nextafter(x, jnp.full_like(x, np.inf)), step.current.params)
        step.current = dataclasses.replace(step.current, params=nudge)
    batches = step.batches(config, step.mesh)
    losses = []
    for _ in range(options["steps"]):
        _, logged = step.running(batches)()
        total, count = jax.device_get(logged["loss"])
        losses.append(float(total / count))
    return losses


if __name__ == "__main__":
    print(json.dumps(_run(json.loads(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)
