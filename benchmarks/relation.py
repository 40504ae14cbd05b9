"""γ's first map: one k×k convolution against a linear map over the unfolded patch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import measure
from benchmarks.measure import Row, Settings
from colorjax.model.attention import PatchwiseSelfAttention, unfold

TITLE = "Relation γ: milliseconds, and gigabytes of inputs, outputs and temporaries"

# (side, channels, kernel size) of the paper's three maps.
SHAPES = ((112, 128, 3), (56, 256, 7), (28, 512, 7))


def rows(settings: Settings) -> list[Row]:
    """A row for each map and pass."""
    shapes, batch = (((16, 128, 3),), 2) if settings.quick else (SHAPES, 8)
    found = []
    for side, channels, kernel_size in shapes:
        for backward in (False, True):
            compiled, turns = {}, {}
            for name in ("fused", "unfolded"):
                run, arrays = _form(name, batch, side, channels, kernel_size, backward)
                compiled[name] = jax.jit(run).lower(*arrays).compile()
                turns[name] = functools.partial(compiled[name], *arrays)
            seconds = measure.race(turns, repeats=settings.repeats)
            row: Row = {
                "map": f"{batch}×{side}²×{channels}",
                "k": kernel_size,
                "pass": "forward+backward" if backward else "forward",
            }
            row |= {f"{name} ms": 1e3 * of for name, of in seconds.items()}
            row["unfolded / fused"] = seconds["unfolded"] / seconds["fused"]
            row |= {f"{name} GB": measure.compiled_memory(of) / 1e9 for name, of in compiled.items()}
            found.append(row)
    return found


def _form(
    name: str, batch: int, side: int, channels: int, kernel_size: int, backward: bool
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    relation = channels // 16
    attention = PatchwiseSelfAttention(
        channels,
        kernel_size=kernel_size,
        relation_features=relation,
        out_features=channels // 4,
        norm=lambda features: nnx.BatchNorm(features, rngs=nnx.Rngs(0)),
        dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    graph, params, rest = nnx.split(attention, nnx.Param, ...)
    maps = (batch, side, side, relation)
    phi, psi = (jax.random.normal(jax.random.key(i), maps, dtype) for i in range(2))
    cotangent = jax.random.normal(jax.random.key(2), (*maps[:3], channels // 32), dtype)

    def forward(params: Any, phi: jax.Array, psi: jax.Array) -> jax.Array:
        module = nnx.merge(graph, params, rest)
        if name == "fused":
            return module._joint_linear(phi, psi)
        return module.gamma_in(jnp.concatenate([phi, unfold(psi, kernel_size=kernel_size)], axis=-1))

    if not backward:
        return forward, (params, phi, psi)

    def both(params: Any, phi: jax.Array, psi: jax.Array, cotangent: jax.Array) -> Any:
        out, pull = jax.vjp(forward, params, phi, psi)
        return out, *pull(cotangent)

    return both, (params, phi, psi, cotangent)
