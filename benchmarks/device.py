"""Checks an accelerator with one command: correctness, speed, and a training run.

    python -m benchmarks device --pack=packs/food256 --out=OUT --pretrain-steps=2000 --joint-steps=2000

It needs neither TensorFlow nor a network connection. `OUT/device.json` is written after every result: versions, device,
the largest deviations of the patch sum and the attention from float64 references on the host, the tables, and the
evaluation of a run of the given length.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import attention, measure, patch_sum, relation, san_kernels, step
from benchmarks.joint import config as joint_config
from benchmarks.measure import Row, Settings
from colorjax.cli.arguments import Parser, number
from colorjax.evaluation.evaluate import evaluate
from colorjax.ops import patch_sum as patch_sum_op
from colorjax.ops.softmax_attention import dot_product_attention
from colorjax.training.loop import train

TITLE = "Results on this device"


def add_arguments(parser: Parser) -> None:
    """Adds the table's arguments."""
    step.add_arguments(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for what is found, and for the run")
    add("--pretrain-steps", type=number(int, 0), default=0, metavar="N", help="pretraining steps of the run")
    add("--joint-steps", type=number(int, 0), default=0, metavar="N", help="joint steps; 0 leaves the run out")


def rows(settings: Settings) -> list[Row]:
    """Names and values of all results but the tables, which are printed at once."""
    out = settings.out
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = measure.environment()

    def note(name: str, value: Any) -> None:
        record[name] = value
        (out / "device.json").write_text(json.dumps(record, indent=2) + "\n")
        print(name, json.dumps(value), flush=True)

    note("deviation_patch_sum", deviation_of_patch_sum())
    note("deviation_attention", deviation_of_attention())
    note("matmul_flops_per_second", measure.matmul_rate(repeats=settings.repeats, quick=settings.quick))
    note("copy_bytes_per_second", measure.copy_rate(repeats=settings.repeats, quick=settings.quick))
    for table in (patch_sum, relation, attention, step):
        found = table.rows(settings)
        note(table.__name__, found)
        print(f"\n{table.TITLE}\n\n{measure.markdown(found)}\n", flush=True)
    if settings.joint_steps:
        note("run", run(settings))
    return [
        {"finding": f"{name} {what}", "value": value}
        for name, of in record.items()
        if name.startswith(("deviation", "run"))
        for what, value in of.items()
    ]


def deviation_of_patch_sum() -> dict[str, float]:
    """Largest relative deviation of the patch sum and both gradients from shifted sums in float64, for every
    implementation that runs here."""
    rng, k, size, channels, groups = np.random.default_rng(0), 7, 28, 64, 8
    values = rng.normal(size=(2, size, size, channels))
    weights = rng.normal(size=(2, size, size, k * k, groups))
    cotangent = rng.normal(size=values.shape)
    index = np.pad(np.arange(size), k // 2, mode="reflect")
    total, d_values, d_weights = np.zeros_like(values), np.zeros_like(values), np.zeros_like(weights)
    for j in range(k * k):
        at = np.ix_([0, 1], index[j // k : j // k + size], index[j % k : j % k + size], range(channels))
        weight = np.tile(weights[:, :, :, j], channels // groups)
        total += weight * values[at]
        np.add.at(d_values, at, weight * cotangent)
        d_weights[:, :, :, j] = (cotangent * values[at]).reshape(2, size, size, -1, groups).sum(3)
    expected = {"forward": total, "values_gradient": d_values, "weights_gradient": d_weights}
    result = {}
    for implementation in ("xla", None):
        form = functools.partial(patch_sum_op.patch_sum, kernel_size=k, implementation=implementation)
        label = implementation or jax.default_backend()
        for dtype in (jnp.float32, jnp.bfloat16):
            out, pull = jax.vjp(form, jnp.asarray(values, dtype), jnp.asarray(weights, dtype))
            got = (out, *pull(jnp.asarray(cotangent, dtype)))
            for name, one in zip(expected, got, strict=True):
                result[f"{label}_{name}_{jnp.dtype(dtype).name}"] = _deviation(one, expected[name])
    if jax.default_backend() == "gpu" and san_kernels.available():
        got = san_kernels.results(*(x.astype(np.float32) for x in (values, weights, cotangent)), kernel_size=k)
        for name, one in zip(expected, got, strict=True):
            result[f"san_{name}_float32"] = _deviation(one, expected[name])
    return result


def deviation_of_attention() -> dict[str, float]:
    """Largest relative deviation of the attention and its queries' gradient from plain softmax in float64."""
    rng, n = np.random.default_rng(0), 1500
    q, k, v, cotangent = (rng.normal(size=(2, n, d)) for d in (4, 4, 16, 16))
    logits = q @ k.transpose(0, 2, 1)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    d_p = cotangent @ v.transpose(0, 2, 1)
    d_q = (p * (d_p - (d_p * p).sum(-1, keepdims=True))) @ k
    result = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        got, vjp = jax.vjp(dot_product_attention, *(jnp.asarray(x, dtype) for x in (q, k, v)))
        result[f"forward_{jnp.dtype(dtype).name}"] = _deviation(got, p @ v)
        result[f"queries_gradient_{jnp.dtype(dtype).name}"] = _deviation(vjp(jnp.asarray(cotangent, dtype))[0], d_q)
    return result


def run(settings: Settings) -> dict[str, dict[str, float]]:
    """The paper's two stages for the given number of steps, and the evaluation of their result."""
    config = joint_config(batch=8, pack=settings.pack).unlock()
    config.pretrain.steps = settings.pretrain_steps
    config.joint.steps = settings.joint_steps
    workdir = settings.out / "run"
    train(config.lock(), workdir)
    return evaluate(workdir)


def _deviation(got: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max())
