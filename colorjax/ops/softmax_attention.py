"""softmax(q kᵀ) v without its N×N matrix: the core of the output attention."""

import functools
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from colorjax.ops import dispatch

Implementation = Literal["xla", "llvm", "cudnn"]


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    block_size: int = 128,
    implementation: Implementation | None = None,
) -> jax.Array:
    """softmax(q kᵀ) v, unscaled as in SAGAN, without ever holding all of q kᵀ.

    Args:
        q: floating [B, N, D].
        k: floating [B, M, D].
        v: floating [B, M, E].
        block_size: how many queries the blockwise softmax compares with all keys at a time. Both passes hold
            float32 [B, block_size, M] blocks, a few at once; any N goes with any block_size.
        implementation: None takes what was measured to be fastest on the platform (see ops/dispatch.py). "xla" is the
            blockwise softmax, which runs everywhere; "llvm" is ops/cpu/softmax_attention.py, for one CPU; "cudnn" is
            cuDNN's flash attention, for NVIDIA GPUs and two-byte floats.

    Returns:
        [B, N, E] of v's dtype. Scores and softmax are float32.

    Raises:
        ValueError: if the shapes do not fit each other, M = 0, block_size < 1, or "llvm" does not run here or take so
            many features.
    """
    if not (
        q.ndim == k.ndim == v.ndim == 3
        and q.shape[0] == k.shape[0] == v.shape[0]
        and q.shape[2] == k.shape[2]
        and k.shape[1] == v.shape[1] > 0
    ):
        raise ValueError(
            f"q, k, v must be [B, N, D], [B, M, D], [B, M, E] with M > 0, got {q.shape}, {k.shape}, {v.shape}"
        )
    if block_size < 1:
        raise ValueError(f"block_size must be positive, got {block_size}")
    flash = functools.partial(flash_attention, implementation="cudnn")
    if implementation == "cudnn":
        return flash(q, k, v)
    takes_flash = q.shape[2] <= _FLASH_FEATURES and q.shape[1] and q.dtype == k.dtype == v.dtype
    chosen = implementation is None and takes_flash and dispatch.has_cudnn_attention(q.dtype)
    form = functools.partial(_attention, min(block_size, max(q.shape[1], 1)), implementation)
    return dispatch.by_platform(q, k, v, default=form, cuda=flash if chosen else None)


_FLASH_FEATURES = 128
"""The most features a head of cuDNN's flash attention has on every GPU that has it."""


def _kernels(implementation: Implementation | None, q: jax.Array, v: jax.Array) -> ModuleType | None:
    """The LLVM kernels, if these arrays take them."""
    if implementation != "xla" and dispatch.llvm_kernels_run(q.shape, v.shape):
        from colorjax.ops.cpu import softmax_attention as kernels

        if kernels.supports(q, v):
            return kernels
    if implementation == "llvm":
        raise ValueError(f'implementation="llvm" does not take {q.shape}, {v.shape} here: use None')
    return None


def flash_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: Literal["cudnn", "xla"]) -> jax.Array:
    """softmax(q kᵀ) v by jax.nn.dot_product_attention, which wants equal head sizes of a multiple of 8.

    The padding is exact: zeros in q and k add nothing to a score whose scale is given, and zeros in v come out as zeros
    and are cut off. Values of more than 128 features become several heads that share q and k.

    Args:
        q: [B, N, D], D at most 128; bfloat16 or float16 for cuDNN.
        k: [B, M, D].
        v: [B, M, E].
        implementation: of jax.nn.dot_product_attention; "xla" holds all scores, and is for tests.

    Returns:
        [B, N, E].
    """
    features = v.shape[2]
    heads = -(-features // _FLASH_FEATURES)
    size = max(q.shape[2], -(-features // heads))
    size += -size % 8

    def shared(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, 0), (0, size - x.shape[2])])
        return jnp.broadcast_to(x[:, :, None], (*x.shape[:2], heads, size))

    split = jnp.pad(v, [(0, 0), (0, 0), (0, heads * size - features)]).reshape(*v.shape[:2], heads, size)
    out = jax.nn.dot_product_attention(shared(q), shared(k), split, scale=1.0, implementation=implementation)
    return out.reshape(*out.shape[:2], heads * size)[..., :features]


def _to_blocks(x: jax.Array, size: int) -> jax.Array:
    """[B, N, ...] -> [ceil(N / size), B, size, ...], filled up with zeros."""
    # The number of blocks is spelled out, since of a symbolic N (jax.export) a reshape cannot infer it.
    blocks = -(-x.shape[1] // size)
    x = jnp.pad(x, [(0, 0), (0, blocks * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(x.shape[0], blocks, size, *x.shape[2:]).swapaxes(0, 1)


def _from_blocks(blocks: jax.Array, length: int) -> jax.Array:
    """The inverse of `_to_blocks`: [T, B, size, ...] -> [B, length, ...]."""
    x = blocks.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(size: int, implementation: Implementation | None, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _attention_fwd(size, implementation, q, k, v)[0]


def _attention_fwd(
    size: int, implementation: Implementation | None, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, tuple[Any, ...]]:
    kernels = _kernels(implementation, q, v)
    form = functools.partial(_blockwise_forward, size)
    out, scale = dispatch.by_platform(q, k, v, default=form, cpu=kernels and kernels.forward)
    return out, (q, k, v, out, scale)


def _attention_bwd(
    size: int, implementation: Implementation | None, residuals: tuple[Any, ...], d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, out, scale = residuals
    # dS = P ∘ (dP − Σ_m P dP), and Σ_m P dP is out · d_out.
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=-1)
    kernels = _kernels(implementation, q, v)
    form = functools.partial(_blockwise_backward, size)
    return dispatch.by_platform(q, k, v, scale, delta, d_out, default=form, cpu=kernels and kernels.backward)


def _blockwise_forward(
    size: int, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The result, and `top` and `total`, from which the backward pass computes the weights exp(score - top) / total."""

    # A column of ones makes the product sum the weights too. The compiler for TPUs estimates five times as many cycles
    # for a separate reduction.
    with_ones = jnp.concatenate([v, jnp.ones((*v.shape[:2], 1), v.dtype)], axis=-1)

    def block(q_block: jax.Array) -> tuple[jax.Array, ...]:
        scores = _dot("bnd,bmd->bnm", q_block, k)
        top = scores.max(axis=-1, keepdims=True)
        summed = _dot("bnm,bme->bne", jnp.exp(scores - top).astype(v.dtype), with_ones)
        out, total = summed[..., :-1], summed[..., -1:]
        return (out / total).astype(v.dtype), top[..., 0], total[..., 0]

    out, top, total = (_from_blocks(x, q.shape[1]) for x in lax.map(block, _to_blocks(q, size)))
    return out, (top, total)


def _blockwise_backward(
    size: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: tuple[jax.Array, jax.Array],
    delta: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    top, total = scale
    lse = top + jnp.log(total)

    def block(
        carry: tuple[jax.Array, jax.Array], rows: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        d_k, d_v = carry
        q_block, d_block, lse_block, delta_block = rows
        p = jnp.exp(_dot("bnd,bmd->bnm", q_block, k) - lse_block[..., None])
        d_p = _dot("bne,bme->bnm", d_block, v) - delta_block[..., None]
        # For TPUs. The first barrier makes P and dP once, in the kernels of their products. The second makes dS twice,
        # in the kernels that multiply by it, so that it is never written to memory.
        p, d_p = lax.optimization_barrier((p, d_p))
        d_s = (p * d_p).astype(q.dtype)
        p_again, d_p_again, _ = lax.optimization_barrier((p, d_p, q_block))
        d_s_again = (p_again * d_p_again).astype(q.dtype)
        d_v += _dot("ben,bnm->bem", d_block.swapaxes(1, 2), p.astype(v.dtype))
        d_k += _dot("bdn,bnm->bdm", q_block.swapaxes(1, 2), d_s)
        return (d_k, d_v), _dot("bnm,bmd->bnd", d_s_again, k)

    # The sums are carried as [B, D, M] and [B, E, M]: with M last, the block's matrix is the right operand as it is
    # stored, which makes the two products three and six times as fast on a CPU. Rows that fill up the last block have
    # d_out = 0 and delta = 0, hence no share in d_k and d_v.
    sums = (
        jnp.zeros_like(k.swapaxes(1, 2), jnp.float32),
        jnp.zeros_like(v.swapaxes(1, 2), jnp.float32),
    )
    rows = tuple(_to_blocks(x, size) for x in (q, d_out, lse, delta))
    (d_k, d_v), d_q = lax.scan(block, sums, rows)
    d_q = _from_blocks(d_q, q.shape[1])
    d_k, d_v = d_k.swapaxes(1, 2), d_v.swapaxes(1, 2)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


_attention.defvjp(_attention_fwd, _attention_bwd)
