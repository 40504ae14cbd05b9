"""How the joint step's time and memory grow with batch size, image size, devices and processes."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import jax

from benchmarks import measure
from benchmarks.joint import JointStep, config, small_config
from benchmarks.measure import Row, Settings

TITLE = "Growth of the joint step"

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
SIZES = (64, 128, 224, 320, 448)
DEVICES = (1, 2, 4)


def rows(settings: Settings) -> list[Row]:
    """A row for each point of every curve, measured in its own process.

    On a CPU the model has a quarter of the width, and is measured at 64 pixels but for the curve of sizes; on an
    accelerator it is the paper's. Simulated devices, and the two processes, share one CPU: their curve should be flat.
    """
    accelerator = jax.default_backend() != "cpu"
    batches, sizes, devices = ((2, 4), (32, 64), (1, 2)) if settings.quick else (BATCHES, SIZES, DEVICES)
    size = 32 if settings.quick else 224 if accelerator else 64
    fixed = 8 if accelerator else 2
    found = []
    for batch in batches:
        found.append({"curve": "batch"} | _point(settings, batch=batch, size=size))
    for of in sizes:
        found.append({"curve": "size"} | _point(settings, batch=fixed, size=of))
    shared = 4 if settings.quick else 16
    for count in devices:
        found.append({"curve": "simulated devices"} | _point(settings, batch=shared, size=min(size, 64), devices=count))
    found.append({"curve": "processes"} | _point(settings, batch=shared, size=min(size, 64), processes=2))
    for curve in dict.fromkeys(row["curve"] for row in found):
        of_curve = [row for row in found if row["curve"] == curve]
        for row in of_curve:
            row["µs a pixel"] = 1e3 * row["ms a step"] / (row["batch"] * row["size"] ** 2)
    return found


def _point(settings: Settings, *, batch: int, size: int, devices: int = 1, processes: int = 1) -> Row:
    simulated = devices > 1 or processes > 1
    environment = os.environ | {"PYTHONPATH": str(measure.REPOSITORY)}
    if simulated or jax.default_backend() == "cpu":
        flags = os.environ.get("XLA_FLAGS", "")
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
        }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    wanted = {"batch": batch, "size": size, "repeats": settings.repeats, "address": address, "processes": processes}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.growth", json.dumps(wanted | {"process": process})],
            cwd=measure.REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    said = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"{wanted} failed:\n{errors[-4000:]}")
    return {"batch": batch, "size": size, "devices": devices * processes} | measure.last_json(said[0][0])


def _measure(wanted: dict[str, Any]) -> Row:
    if wanted["processes"] > 1:
        jax.distributed.initialize(wanted["address"], wanted["processes"], wanted["process"])
    batch, size = wanted["batch"], wanted["size"]
    small = jax.default_backend() == "cpu"
    step = JointStep.make(small_config(batch=batch, size=size) if small else config(batch=batch, size=size))
    seconds = measure.race({"step": step.running(step.one_batch())}, repeats=wanted["repeats"])["step"]
    return {
        "ms a step": 1e3 * seconds,
        "images/s": batch / seconds,
        "GB": measure.compiled_memory(step.compiled) / 1e9,
        "GFLOP/s": step.flops / seconds / 1e9,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
