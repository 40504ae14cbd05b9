"""Measuring: alternating runs, medians, memory, the device's limits, and Markdown."""

# The peers' packages need not be installed.
# pyright: reportMissingImports=false

import argparse
import ctypes
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from colorjax.cli.errors import UsageError

Row = dict[str, Any]
"""One line of a table: column -> text or number."""

REPOSITORY = Path(__file__).resolve().parents[1]
_WARM_UPS = 2
_PAUSE = 0.02  # seconds until the previous run's threads stop spinning


Settings = argparse.Namespace
"""A benchmark's arguments: `repeats`, of a table also `quick`, and what its `add_arguments` adds."""


def race(forms: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Median seconds of each form. They run in turns, A B A B …, so that other load affects all of them.

    Args:
        forms: name -> a function of no argument, which returns JAX arrays, or nothing once it has finished.
        repeats: timed turns, after two that are not counted.
    """
    import jax

    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(_WARM_UPS + repeats):
        for name, run in forms.items():
            time.sleep(_PAUSE)
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn >= _WARM_UPS:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(of) for name, of in times.items()}


def matmul_rate(*, repeats: int, quick: bool = False) -> float:
    """FLOP/s of a large matrix product in the networks' dtype, the reference for shares of the peak."""
    import jax
    import jax.numpy as jnp

    accelerator = jax.default_backend() != "cpu"
    n, dtype = (8192, jnp.bfloat16) if accelerator else (2048, jnp.float32)
    n = 256 if quick else n
    a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
    product = jax.jit(jnp.matmul)
    return 2 * n**3 / race({"product": lambda: product(a, b)}, repeats=repeats)["product"]


def copy_rate(*, repeats: int, quick: bool = False) -> float:
    """Bytes a second, read plus written, of one pass over an array larger than the caches."""
    import jax
    import jax.numpy as jnp

    size = 2**20 if quick else 2**30 if jax.default_backend() != "cpu" else 2**28
    x = jnp.ones(size // 4, jnp.float32)
    negate = jax.jit(jnp.negative)
    return 2 * size / race({"pass": lambda: negate(x)}, repeats=repeats)["pass"]


def torch_or_none() -> Any:
    """PyTorch; None if it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def torch_device() -> str:
    """The device for PyTorch: the same as JAX's.

    Raises:
        UsageError: if JAX has a GPU and PyTorch sees none, since a comparison would mean nothing.
    """
    import jax
    import torch

    if jax.default_backend() == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise UsageError(
            f"JAX runs on {jax.devices()[0].device_kind} and PyTorch {torch.__version__} sees no GPU: install its CUDA "
            "build, or compare on the CPU with JAX_PLATFORMS=cpu"
        )
    return "cuda"


def torch_wait() -> None:
    """Waits for PyTorch's device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compiled_memory(compiled: Any) -> int:
    """Bytes that XLA's buffer assignment gives a compiled program: inputs, outputs and temporaries."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def resident_peaks(make: Callable[..., dict[str, Callable[[], Any]]], *arguments: Any) -> dict[str, int]:
    """Bytes that each form's second run adds to the resident memory of its own process, outputs included.

    The kernel's high-water mark is reset before the run (Linux), and the allocator gives every freed block of more than
    64 KiB back at once, so that what an earlier run left does not hide what this one takes. It is the same instrument
    for XLA and for PyTorch. Elsewhere than on Linux nothing is returned.

    Args:
        make: a function at the top of a module: (*arguments) -> forms, as `race` takes them.
        arguments: what it is called with.
    """
    if not Path("/proc/self/clear_refs").exists():
        return {}
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(_measure_peaks, (make, arguments))


def _measure_peaks(make: Callable[..., dict[str, Callable[[], Any]]], arguments: Sequence[Any]) -> dict[str, int]:
    import jax

    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 64 * 1024)  # M_MMAP_THRESHOLD
    peaks = {}
    for name, run in make(*arguments).items():
        result = jax.block_until_ready(run())
        del result
        gc.collect()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        result = jax.block_until_ready(run())
        peaks[name] = _status("VmHWM") - before
        del result
    return peaks


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def run_alone(*command: str, **environment: str) -> str:
    """The standard output of a separate Python process.

    Raises:
        RuntimeError: with what it printed to standard error, if it fails.
    """
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def last_json(text: str) -> Any:
    """The JSON value on the last line of a process's output."""
    return json.loads(text.strip().splitlines()[-1])


def environment() -> dict[str, Any]:
    """Versions, device and load, on which the numbers depend."""
    import jax

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    versions = {}
    for package in ("jax", "jaxlib", "flax", "numpy", "torch", "tensorflow-cpu", "cupy-cuda13x"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip(),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table with the columns of all rows, in order of first appearance."""
    from colorjax.evaluation.tables import markdown_table

    columns = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table(columns, [[row.get(name, "–") for name in columns] for row in rows])
