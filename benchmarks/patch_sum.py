"""The patch sum against the same sum over unfolded patches, in XLA and in PyTorch (and SAN's kernels on a GPU)."""

# The peers' packages need not be installed.
# pyright: reportMissingImports=false

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, san_kernels
from benchmarks.measure import Row, Settings
from colorjax.model.attention import unfold
from colorjax.ops.patch_sum import patch_sum

TITLE = "Patch sum: milliseconds, and memory over inputs plus outputs"

SHARE = 8
# (side, channels, kernel size): the low-level network's three maps, the first also with a large kernel.
SHAPES = ((112, 64, 3), (112, 64, 7), (56, 128, 7), (28, 256, 7))
BATCHES = (2, 8)
PASSES = ("forward", "forward+backward")


def rows(settings: Settings) -> list[Row]:
    """A row for each shape and pass: the time of every form, its ratio to ours, its memory, and the time of one pass
    over the bytes."""
    shapes, batches = (((16, 64, 3),), (2,)) if settings.quick else (SHAPES, BATCHES)
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    cases = [(batch, *shape, dtype) for shape in shapes for batch in batches]
    rate = measure.copy_rate(repeats=settings.repeats, quick=settings.quick)
    names = _names()
    peaks = {name: measure.resident_peaks(_all_cases, name, cases) for name in names} if dtype == "float32" else {}
    found = []
    for case in cases:
        batch, side, channels, kernel_size, _ = case
        for backward in (False, True):
            floor = moved_bytes(*case, backward=backward)
            seconds = measure.race({name: _form(name, case, backward) for name in names}, repeats=settings.repeats)
            row: Row = {
                "shape": f"{batch}×{side}²×{channels}",
                "k": kernel_size,
                "pass": PASSES[backward],
                "floor ms": 1e3 * floor / rate,
            }
            for name in names:
                row[f"{name} ms"] = 1e3 * seconds[name]
                if name != "ours":
                    row[f"{name} / ours"] = seconds[name] / seconds["ours"]
            inputs = input_bytes(*case, backward=backward)
            for name, of_cases in peaks.items():
                # The measured process holds the inputs too.
                row[f"{name} memory"] = (inputs + of_cases[_label(case, backward)]) / (
                    inputs + output_bytes(*case, backward=backward)
                )
            if dtype != "float32":
                for name in ("ours", "XLA unfold"):
                    compiled = _jax_run(name, kernel_size, backward).lower(*_arrays(case, backward)).compile()
                    row[f"{name} memory"] = measure.compiled_memory(compiled) / (
                        inputs + output_bytes(*case, backward=backward)
                    )
            found.append(row)
    return found


def input_bytes(batch: int, side: int, channels: int, kernel_size: int, dtype: str, *, backward: bool) -> int:
    """Values, weights and, for the gradients, the cotangent."""
    numbers = channels + kernel_size**2 * channels // SHARE + backward * channels
    return batch * side**2 * numbers * jnp.dtype(dtype).itemsize


def output_bytes(batch: int, side: int, channels: int, kernel_size: int, dtype: str, *, backward: bool) -> int:
    """The sum, and both gradients."""
    gradients = channels + kernel_size**2 * channels // SHARE if backward else 0
    return batch * side**2 * (channels + gradients) * jnp.dtype(dtype).itemsize


def moved_bytes(batch: int, side: int, channels: int, kernel_size: int, dtype: str, *, backward: bool) -> int:
    """The least memory traffic: forward reads values and weights and writes the sum; backward reads
    values, weights and cotangent and writes both gradients."""
    weights = kernel_size**2 * channels // SHARE
    numbers = 2 * channels + weights + backward * (3 * channels + 2 * weights)
    return batch * side**2 * numbers * jnp.dtype(dtype).itemsize


def _names() -> list[str]:
    names = ["ours", "XLA unfold"]
    if measure.torch_or_none():
        names.append("F.unfold")
    if jax.default_backend() == "gpu" and san_kernels.available():
        names.append("SAN's kernels")
    return names


def _label(case: tuple, backward: bool) -> str:
    return f"{case} {PASSES[backward]}"


def _all_cases(name: str, cases: list[tuple]) -> dict[str, Callable[[], Any]]:
    return {_label(case, backward): _late(name, case, backward) for case in cases for backward in (False, True)}


def _late(name: str, case: tuple, backward: bool) -> Callable[[], Any]:
    # Created at the first run, so that only one case's arrays are in memory.
    make = functools.cache(lambda: _form(name, case, backward))
    return lambda: make()()


def _form(name: str, case: tuple, backward: bool) -> Callable[[], Any]:
    kernel_size = case[3]
    if name == "F.unfold":
        return _torch_form(case, backward)
    arrays = _arrays(case, backward)
    if name == "SAN's kernels":
        return san_kernels.form(*(np.asarray(x, np.float32) for x in arrays), kernel_size=kernel_size)
    run = _jax_run(name, kernel_size, backward)
    return lambda: run(*arrays)


def _arrays(case: tuple, backward: bool) -> tuple[jax.Array, ...]:
    """Values, weights and, with `backward`, the cotangent."""
    batch, side, channels, kernel_size, dtype = case
    shapes = [(batch, side, side, channels), (batch, side, side, kernel_size**2, channels // SHARE)]
    shapes += [shapes[0]] * backward
    return tuple(jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes))


@functools.cache
def _jax_run(name: str, kernel_size: int, backward: bool) -> Any:
    form = {
        "ours": functools.partial(patch_sum, kernel_size=kernel_size),
        "XLA unfold": functools.partial(_unfolded, kernel_size=kernel_size),
    }[name]
    if not backward:
        return jax.jit(form)

    def both(values: jax.Array, weights: jax.Array, cotangent: jax.Array) -> Any:
        out, pull = jax.vjp(form, values, weights)
        return out, *pull(cotangent)

    return jax.jit(both)


def _unfolded(values: jax.Array, weights: jax.Array, *, kernel_size: int) -> jax.Array:
    groups = weights.shape[4]
    patches = unfold(values, kernel_size=kernel_size)
    patches = patches.reshape(*values.shape[:3], kernel_size**2, -1, groups)
    return (weights[..., None, :] * patches).sum(axis=3).reshape(values.shape)


def _torch_form(case: tuple, backward: bool) -> Callable[[], Any]:
    import torch

    from benchmarks.torch_model import patch_sum as torch_patch_sum

    batch, side, channels, kernel_size, dtype = case
    options = {"device": measure.torch_device(), "dtype": getattr(torch, dtype)}
    values = torch.randn(batch, channels, side, side, requires_grad=backward, **options)
    weights = torch.randn(batch, kernel_size**2, channels // SHARE, side * side, requires_grad=backward, **options)
    cotangent = torch.randn(values.shape, **options)

    def run() -> Any:
        if not backward:
            result = torch_patch_sum(values, weights, kernel_size=kernel_size)
        else:
            values.grad = weights.grad = None
            result = torch_patch_sum(values, weights, kernel_size=kernel_size)
            result.backward(cotangent)
        measure.torch_wait()
        # The caller holds it until the next run, like JAX's results; jax.block_until_ready ignores it.
        kept[:] = [result.detach()]

    kept: list[Any] = []
    return run
