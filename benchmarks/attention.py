"""The output attention over 112×112 tokens: ours, plain softmax in XLA, and PyTorch's scaled_dot_product_attention."""

# The peers' packages need not be installed.
# pyright: reportMissingImports=false

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.measure import Row, Settings
from colorjax.ops.softmax_attention import dot_product_attention

TITLE = "Output attention: milliseconds, and gigabytes over the inputs"

TOKENS, QUERY_FEATURES, VALUE_FEATURES = 112 * 112, 4, 16  # SAGAN's C/8 and C/2 of the paper's 32 channels


def rows(settings: Settings) -> list[Row]:
    """A row for each batch size and pass."""
    tokens, batches = (256, (1,)) if settings.quick else (TOKENS, (1, 8))
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    peak = measure.matmul_rate(repeats=settings.repeats, quick=settings.quick)
    found = []
    for batch in batches:
        # Plain softmax holds several N×N matrices of 0.6 GB each for every image.
        names = [
            "ours",
            *(["XLA softmax"] if batch == 1 else []),
            *(["torch SDPA"] if measure.torch_or_none() else []),
        ]
        for backward in (False, True):
            case = (batch, tokens, dtype, backward)
            seconds = measure.race(_forms(names, case), repeats=settings.repeats)
            row: Row = {"batch": batch, "tokens": tokens, "pass": "forward+backward" if backward else "forward"}
            row |= {f"{name} ms": 1e3 * of for name, of in seconds.items()}
            row |= {f"{name} / ours": of / seconds["ours"] for name, of in seconds.items() if name != "ours"}
            row["ours, share of matmul rate"] = flops(batch, tokens, backward=backward) / seconds["ours"] / peak
            if dtype == "float32":
                for name in names:
                    row |= {f"{name} GB": of / 1e9 for of in measure.resident_peaks(_forms, [name], case).values()}
            else:
                compiled = _jax_run("ours", backward).lower(*_arrays(case)).compile()
                row["ours GB"] = compiled.memory_analysis().temp_size_in_bytes / 1e9
            found.append(row)
    return found


def flops(batch: int, tokens: int, *, width: float = 1.0, backward: bool) -> float:
    """FLOPs of the products alone: 2·N²·(D + E) forward, 2·N²·(3·D + 2·E) backward, which computes q kᵀ again."""
    d, e = QUERY_FEATURES * width, VALUE_FEATURES * width
    return 2 * batch * tokens**2 * (d + e + backward * (3 * d + 2 * e))


def _forms(names: list[str], case: tuple) -> dict[str, Callable[[], Any]]:
    return {name: _torch_form(case) if name == "torch SDPA" else _jax_form(name, case) for name in names}


def _jax_form(name: str, case: tuple) -> Callable[[], Any]:
    run, arrays = _jax_run(name, case[3]), _arrays(case)
    return lambda: run(*arrays)


def _arrays(case: tuple) -> tuple[jax.Array, ...]:
    batch, tokens, dtype, backward = case
    features = [QUERY_FEATURES, QUERY_FEATURES, VALUE_FEATURES] + [VALUE_FEATURES] * backward
    return tuple(jax.random.normal(jax.random.key(i), (batch, tokens, d), dtype) for i, d in enumerate(features))


@functools.cache
def _jax_run(name: str, backward: bool) -> Any:
    form = dot_product_attention if name == "ours" else _plain
    if not backward:
        return jax.jit(form)

    def both(q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array) -> Any:
        out, pull = jax.vjp(form, q, k, v)
        return out, *pull(cotangent)

    return jax.jit(both)


def _plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scores = jnp.einsum("bnd,bmd->bnm", q, k, preferred_element_type=jnp.float32)
    return jnp.einsum("bnm,bme->bne", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def _torch_form(case: tuple) -> Callable[[], Any]:
    import torch
    import torch.nn.functional as F

    batch, tokens, dtype, backward = case
    options = {"device": measure.torch_device(), "dtype": getattr(torch, dtype), "requires_grad": backward}
    q, k = (torch.randn(batch, 1, tokens, QUERY_FEATURES, **options) for _ in range(2))
    v = torch.randn(batch, 1, tokens, VALUE_FEATURES, **options)
    cotangent = torch.randn_like(v)
    # Its flash kernels need equal head sizes. With an explicit scale, zero-padding q and k is exact.
    pad = (0, VALUE_FEATURES - QUERY_FEATURES)
    kept: list[Any] = []

    def run() -> None:
        q.grad = k.grad = v.grad = None
        out = F.scaled_dot_product_attention(F.pad(q, pad), F.pad(k, pad), v, scale=1.0)
        if backward:
            out.backward(cotangent)
        measure.torch_wait()
        kept[:] = [out.detach()]

    return run
