"""What an accelerator has to show, in one command: right numbers, their speed, and a training run.

    python benchmarks/device.py --pack=packs/food256 --out=OUT --pretrain_steps=2000 --joint_steps=2000

It needs neither TensorFlow nor a network. `OUT/device.json` holds the versions, the device, the largest deviations of
the patch sum and of the attention from float64 references on the host, the joint step's time, memory and share of the
matrix-product rate by batch size, and the evaluation of a run of the given length.
"""

import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parent.parent))

from colorjax import data, evaluate, progress, state, steps, training
from colorjax.aggregation import patch_sum
from colorjax.attention import dot_product_attention
from configs import paper

_PACK = flags.DEFINE_string("pack", None, "A pack of 256-pixel photos (python -m colorjax.data).", required=True)
_OUT = flags.DEFINE_string("out", None, "Where device.json and the run go.", required=True)
_BATCHES = flags.DEFINE_list("batches", ["8", "32", "128"], "Batch sizes of the timed joint step.")
_PRETRAIN_STEPS = flags.DEFINE_integer("pretrain_steps", 0, "Steps of the training run's first stage.")
_JOINT_STEPS = flags.DEFINE_integer("joint_steps", 0, "Steps of its second; 0 leaves the run out.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs, of which the median counts.")


def main(argv: list[str]) -> None:
    del argv
    progress.log_to_terminal()
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "command": " ".join(sys.argv),
    }

    def note(name: str, value: Any) -> None:
        record[name] = value
        (out / "device.json").write_text(json.dumps(record, indent=2) + "\n")
        print(name, json.dumps(value), flush=True)

    note("deviation_patch_sum", deviation_of_patch_sum())
    note("deviation_attention", deviation_of_attention())
    note("matmul_flops_per_second", matmul_rate())
    for batch in map(int, _BATCHES.value):
        note(f"joint_step_{batch}", joint_step(batch, peak=record["matmul_flops_per_second"]))
    if _JOINT_STEPS.value:
        note("run", run(out / "run"))


def deviation_of_patch_sum() -> dict[str, float]:
    """Largest relative deviation of the patch sum and its gradients from shifted sums in float64."""
    rng, k, size, channels, groups = np.random.default_rng(0), 7, 28, 64, 8
    values = rng.normal(size=(2, size, size, channels))
    weights = rng.normal(size=(2, size, size, k * k, groups))
    cotangent = rng.normal(size=values.shape)
    padded = np.pad(values, [(0, 0), (3, 3), (3, 3), (0, 0)], mode="reflect")
    shifts = [
        padded[:, dy : dy + size, dx : dx + size].reshape(2, size, size, -1, groups)
        for dy in range(k)
        for dx in range(k)
    ]
    total = np.sum([weights[..., j, None, :] * s for j, s in enumerate(shifts)], axis=0).reshape(values.shape)
    d_weights = np.stack([(cotangent.reshape(s.shape) * s).sum(-2) for s in shifts], axis=3)
    result = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        got, vjp = jax.vjp(
            lambda v, w: patch_sum(v, w, kernel_size=k), jnp.asarray(values, dtype), jnp.asarray(weights, dtype)
        )
        result[f"forward_{jnp.dtype(dtype).name}"] = _deviation(got, total)
        result[f"weights_gradient_{jnp.dtype(dtype).name}"] = _deviation(
            vjp(jnp.asarray(cotangent, dtype))[1], d_weights
        )
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


def matmul_rate() -> float:
    """FLOP/s of a large matrix product in the dtype that the networks use."""
    accelerator = jax.default_backend() != "cpu"
    n, dtype = (8192, jnp.bfloat16) if accelerator else (2048, jnp.float32)
    a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
    return 2 * n**3 / _seconds(jax.jit(jnp.matmul), a, b)


def joint_step(batch: int, *, peak: float) -> dict[str, float]:
    """Time, speed, memory and share of the matrix-product rate of the paper's joint step on one repeated batch."""
    config = _config(batch)
    mesh = state.make_mesh()
    info = data.dataset_info(config.data)
    program = training.build_program(config, "joint", classes=len(info.class_names))
    params, stats = training.init_model(config, "joint", classes=len(info.class_names))
    optimizer = state.make_optimizer(config.joint)
    current = state.init_state(params, stats, optimizer, mesh)
    reference = steps.Reference(jnp.full(313, 1 / 313), jnp.ones(313))
    step = steps.make_train_step(program, optimizer, config, "joint", reference=reference, mesh=mesh)
    photos = state.to_devices(next(data.train_batches(config.data, batch_size=batch, seed=0)), mesh)
    compiled = step.lower(current, photos).compile()
    times = []
    for i in range(_REPEATS.value + 2):
        start = time.perf_counter()
        current, measured = compiled(current, photos)
        jax.block_until_ready((current, measured))
        if i >= 2:
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    memory, flops = compiled.memory_analysis(), compiled.cost_analysis()["flops"]
    return {
        "seconds": seconds,
        "images_per_second": batch / seconds,
        "temporary_gib": memory.temp_size_in_bytes / 2**30,
        "state_gib": memory.argument_size_in_bytes / 2**30,
        "flops": flops,
        "share_of_matmul_rate": flops / seconds / peak,
    }


def run(workdir: Path) -> dict[str, dict[str, float]]:
    """The paper's two stages for the given number of steps, and the evaluation of what they made."""
    config = _config(8)
    config.pretrain.steps = _PRETRAIN_STEPS.value
    config.joint.steps = _JOINT_STEPS.value
    training.train(config, workdir)
    return evaluate.evaluate(workdir)


def _config(batch: int) -> Any:
    config = paper.get_config().unlock()
    config.data.source, config.data.dir = "packed", _PACK.value
    config.joint.batch_size = batch
    return config.lock()


def _seconds(f: Callable, *args: Any) -> float:
    times = []
    for i in range(_REPEATS.value + 2):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        if i >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _deviation(got: jax.Array, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    app.run(main)
