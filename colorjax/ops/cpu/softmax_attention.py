"""softmax(q kᵀ) v and its gradients as kernels for CPUs, which never write a score to memory.

As in flash attention (Dao et al. 2022; Dao 2023) a score is computed, used and dropped. A vector holds the scores of
one key and neighboring queries in the forward pass, and of one query and neighboring keys in the backward pass. So the
sums stay in registers; only the queries' gradient is summed up in the first cache.
"""

import functools
import math

import jax
import jax.numpy as jnp

from colorjax.ops.cpu.emitter import Emitter, Integer, Value, lanes
from colorjax.ops.cpu.llvm import call

FEATURES = 32
"""The most features of queries, keys and values that the kernels take: their sums have to stay in registers. With 64
features of the values XLA's blockwise form is faster."""

_CHUNK = 256
"""Queries in an item of the forward pass: a multiple of every processor's vector length."""
_CHUNKS = 8
"""The most items that an image's keys are divided into in the backward pass. Each has a gradient for all queries."""
_SCRATCH = 8192
"""How many float32 of the queries' gradient are summed up at a time: 32 kB, to stay in the first cache."""
_RISE = 8
"""How far a score, as a power of 2, may exceed the one that the others are compared with: no sum of 2^8s overflows."""


def supports(q: jax.Array, v: jax.Array) -> bool:
    """Whether the kernels take so many features."""
    return max(q.shape[2], v.shape[2]) <= FEATURES


def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """softmax(q kᵀ) v.

    Args:
        q: floating [B, N, D], B, N and D positive.
        k: floating [B, M, D].
        v: floating [B, M, E].

    Returns:
        [B, N, E] of v's dtype; and `top` and `total`, float32 [B, N], from which `backward` computes the weights again:
        a key's weight is 2^(score · log₂ e - top) / total.
    """
    (batch, length, features), (keys, values) = q.shape, v.shape[1:]
    queries = _columns(q.astype(jnp.float32) * math.log2(math.e))
    padded = queries.shape[2]
    chunks = -(-padded // _CHUNK)
    out, top, total = call(
        f"attention_forward_{features}_{values}",
        functools.partial(_forward, features, values),
        items=batch * chunks,
        sizes=[padded, keys, chunks],
        operands=[queries, k.astype(jnp.float32), v.astype(jnp.float32)],
        results=[(batch, values, padded), (batch, padded), (batch, padded)],
    )
    return out.swapaxes(1, 2)[:, :length].astype(v.dtype), (top[:, :length], total[:, :length])


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: tuple[jax.Array, jax.Array],
    delta: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of `forward` with respect to q, k and v, of their shapes and dtypes.

    Args:
        q, k, v: the arguments of `forward`.
        scale: its `top` and `total`.
        delta: float32 [B, N], Σ_e out · d_out.
        d_out: floating [B, N, E].
    """
    (batch, length, features), (keys, values) = q.shape, v.shape[1:]
    columns = _columns(k), _columns(v)
    padded = columns[0].shape[2]
    chunk = _round_up(-(-padded // _CHUNKS))
    chunks = -(-padded // chunk)
    log2e = math.log2(math.e)
    top, total = scale
    # The result is linear in d_out, so dividing d_out replaces dividing the weights.
    d_out = d_out.astype(jnp.float32) / total[..., None]
    d_q, d_k, d_v = call(
        f"attention_backward_{features}_{values}",
        functools.partial(_backward, features, values),
        items=batch * chunks,
        sizes=[length, padded, chunk, chunks],
        operands=[*columns, q.astype(jnp.float32) * log2e, d_out, top, delta / total],
        results=[(batch, chunks, length, features), (batch, features, padded), (batch, values, padded)],
    )
    d_k, d_v = (x.swapaxes(1, 2)[:, :keys] for x in (d_k / log2e, d_v))
    return d_q.sum(axis=1).astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


def _round_up(length: int) -> int:
    return length + -length % lanes()


def _columns(x: jax.Array) -> jax.Array:
    """[B, N, C] -> float32 [B, C, N rounded up to whole vectors], filled up with zeros."""
    x = x.astype(jnp.float32).swapaxes(1, 2)
    return jnp.pad(x, [(0, 0), (0, 0), (0, _round_up(x.shape[2]) - x.shape[2])])


def _forward(
    features: int,
    values: int,
    emitter: Emitter,
    item: Value,
    length: Value,
    keys: Value,
    chunks: Value,
    queries: Value,
    k: Value,
    v: Value,
    out: Value,
    top_out: Value,
    total_out: Value,
) -> None:
    """The queries of one chunk of one image. They are [B, D, N], times log₂ e, since the scores are powers of 2."""
    builder = emitter.builder
    image, chunk = builder.udiv(item, chunks), builder.urem(item, chunks)
    queries, k, v, out = (
        emitter.address(x, emitter.index((builder.mul(image, count), size)))
        for x, count, size in (
            (queries, length, features),
            (k, keys, features),
            (v, keys, values),
            (out, length, values),
        )
    )
    top_out, total_out = (emitter.address(x, emitter.index((image, length))) for x in (top_out, total_out))
    zero = emitter.constant(0)
    first = emitter.index((chunk, _CHUNK))
    with emitter.loop(first, emitter.minimum(emitter.index((first, 1), (_CHUNK, 1)), length), lanes()) as n:
        q = [emitter.load(queries, emitter.index((n, 1), (d, length))) for d in range(features)]

        def score(m: Integer, start: Value) -> Value:
            for d in range(features):
                start = emitter.multiply_add(q[d], emitter.broadcast(k, emitter.index((m, features), (d, 1))), start)
            return start

        # The exponents are of scores less `top`, which only needs to be near the largest. It is seldom raised.
        top, total = emitter.variable(score(0, zero)), emitter.variable(zero)
        sums = [emitter.variable(zero) for _ in range(values)]
        with emitter.loop(0, keys) as m:
            exponent = emitter.variable(score(m, builder.fneg(top.value)))
            with builder.if_then(emitter.any_above(exponent.value, _RISE), likely=False):
                above = builder.fneg(emitter.at_most(builder.fneg(exponent.value), 0))
                scale = emitter.exp2(builder.fneg(above))
                top.value = builder.fadd(top.value, above)
                exponent.value = builder.fsub(exponent.value, above)
                for x in (total, *sums):
                    x.value = builder.fmul(x.value, scale)
            p = emitter.exp2(exponent.value)
            total.value = builder.fadd(total.value, p)
            for e, x in enumerate(sums):
                x.value = emitter.multiply_add(p, emitter.broadcast(v, emitter.index((m, values), (e, 1))), x.value)
        for e, x in enumerate(sums):
            emitter.store(builder.fdiv(x.value, total.value), out, emitter.index((n, 1), (e, length)))
        emitter.store(top.value, top_out, n)
        emitter.store(total.value, total_out, n)


def _backward(
    features: int,
    values: int,
    emitter: Emitter,
    item: Value,
    length: Value,
    keys: Value,
    chunk: Value,
    chunks: Value,
    k: Value,
    v: Value,
    q: Value,
    d_out: Value,
    top: Value,
    delta: Value,
    d_q: Value,
    d_k: Value,
    d_v: Value,
) -> None:
    """The keys of one chunk of one image. k, v and their gradients are [B, D, M] and [B, E, M], q is times log₂ e.

    The zeros that fill up the keys have no share in d_q.
    """
    builder = emitter.builder
    image, first = builder.udiv(item, chunks), builder.urem(item, chunks)

    def of_image(x: Value, count: Value, size: int, number: Value = image) -> Value:
        return emitter.address(x, emitter.index((builder.mul(number, count), size)))

    k, d_k = (of_image(x, keys, features) for x in (k, d_k))
    v, d_v = (of_image(x, keys, values) for x in (v, d_v))
    q, d_out = of_image(q, length, features), of_image(d_out, length, values)
    top, delta = (of_image(x, length, 1) for x in (top, delta))
    d_q = of_image(d_q, length, features, number=item)
    start = emitter.index((first, chunk))
    stop = emitter.minimum(emitter.index((start, 1), (chunk, 1)), keys)
    zero = emitter.constant(0)
    with emitter.loop(start, stop, lanes()) as m:
        for d in range(features):
            emitter.store(zero, d_k, emitter.index((m, 1), (d, keys)))
        for e in range(values):
            emitter.store(zero, d_v, emitter.index((m, 1), (e, keys)))
    # A query's gradient is a sum over vectors of keys, so each of its numbers has a vector of its own until the end.
    row = features * lanes()
    rows = max(1, _SCRATCH // row)
    scratch = emitter.scratch(rows * row)
    with emitter.loop(0, length, rows) as head:
        tail = emitter.minimum(emitter.index((head, 1), (rows, 1)), length)
        with emitter.loop(0, rows * row, lanes()) as i:
            emitter.store(zero, scratch, i)
        with emitter.loop(start, stop, lanes()) as m:
            key = [emitter.load(k, emitter.index((m, 1), (d, keys))) for d in range(features)]
            d_key = [emitter.variable(emitter.load(d_k, emitter.index((m, 1), (d, keys)))) for d in range(features)]
            d_value = [emitter.variable(emitter.load(d_v, emitter.index((m, 1), (e, keys)))) for e in range(values)]
            with emitter.loop(head, tail) as n:
                query = [emitter.broadcast(q, emitter.index((n, features), (d, 1))) for d in range(features)]
                exponent = builder.fneg(emitter.broadcast(top, n))
                d_p = builder.fneg(emitter.broadcast(delta, n))
                for d in range(features):
                    exponent = emitter.multiply_add(key[d], query[d], exponent)
                # No real key is so far above `top`, but one behind the last may be anywhere, and infinity · 0 is NaN.
                p = emitter.exp2(emitter.at_most(exponent, 2 * _RISE))
                for e, x in enumerate(d_value):
                    cotangent = emitter.broadcast(d_out, emitter.index((n, values), (e, 1)))
                    d_p = emitter.multiply_add(emitter.load(v, emitter.index((m, 1), (e, keys))), cotangent, d_p)
                    x.value = emitter.multiply_add(p, cotangent, x.value)
                # dS = P ∘ (dP − Σ_m P dP), and Σ_m P dP is delta.
                d_s = builder.fmul(p, d_p)
                for d, x in enumerate(d_key):
                    x.value = emitter.multiply_add(d_s, query[d], x.value)
                    place = emitter.index((builder.sub(n, head), row), (d, lanes()))
                    emitter.store(emitter.multiply_add(d_s, key[d], emitter.load(scratch, place)), scratch, place)
            for d, x in enumerate(d_key):
                emitter.store(x.value, d_k, emitter.index((m, 1), (d, keys)))
            for e, x in enumerate(d_value):
                emitter.store(x.value, d_v, emitter.index((m, 1), (e, keys)))
        with emitter.loop(head, tail) as n:
            for d in range(features):
                part = emitter.load(scratch, emitter.index((builder.sub(n, head), row), (d, lanes())))
                emitter.store_sums(part, d_q, emitter.index((n, features), (d, 1)), 1)
