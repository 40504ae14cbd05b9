"""softmax(q kᵀ) v without its N×N matrix, by what is fastest on each device: the output attention's heart.

On NVIDIA GPUs cuDNN's flash attention, on a CPU our own kernels (`attention_kernels`), elsewhere a blockwise softmax.
"""

import functools
import re
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from colorjax.devices import takes_cpu_kernels


def dot_product_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, block_size: int = 128) -> jax.Array:
    """softmax(q kᵀ) v, unscaled as SAGAN has it, never holding more than a block of q kᵀ.

    On NVIDIA GPUs from Ampere on, two-byte floats take cuDNN's flash attention (`flash_attention`); a CPU takes kernels
    that hold no block either (`attention_kernels`); everything else a blockwise softmax.

    Args:
        q: floating [B, N, D].
        k: floating [B, M, D].
        v: floating [B, M, E].
        block_size: how many queries the blockwise softmax compares with all keys at a time. Both passes hold
            float32 [B, block_size, M] blocks, a few at once; any N goes with any block_size.

    Returns:
        [B, N, E] of v's dtype. Scores and softmax are float32.

    Raises:
        ValueError: if the shapes do not fit each other, M = 0, or block_size < 1.
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
    forms = {"default": functools.partial(_attention, min(block_size, max(q.shape[1], 1)))}
    if q.shape[2] <= _FLASH_FEATURES and q.shape[1] and q.dtype == k.dtype == v.dtype and has_cudnn_flash(q.dtype):
        forms["cuda"] = functools.partial(flash_attention, implementation="cudnn")
    return lax.platform_dependent(q, k, v, **forms) if len(forms) > 1 else forms["default"](q, k, v)


_FLASH_FEATURES = 128
"""The most features a head of cuDNN's flash attention has on every GPU that has it."""


def has_cudnn_flash(dtype: DTypeLike) -> bool:
    """Whether a program can be traced in which a GPU takes cuDNN's flash attention."""
    # Asked while tracing, when jax.nn.dot_product_attention asks for cuDNN as well. AMD's capability is a name.
    capability = getattr(jax.devices()[0], "compute_capability", "")
    known = re.fullmatch(r"\d+\.\d+", capability)
    return known is not None and float(capability) >= 8 and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


_KERNEL_FEATURES = 32
"""The most features that the kernels for CPUs take: what they sum up has to stay in registers. With values of 64 the
blockwise softmax is faster."""


def _kernels(q: jax.Array, v: jax.Array) -> ModuleType | None:
    """`attention_kernels`, where they serve."""
    if not takes_cpu_kernels(q, v) or max(q.shape[2], v.shape[2]) > _KERNEL_FEATURES:
        return None
    from colorjax import attention_kernels  # a GPU's jobs are spared the tenth of a second that LLVM takes

    return attention_kernels


def flash_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: Literal["cudnn", "xla"]) -> jax.Array:
    """softmax(q kᵀ) v by jax.nn.dot_product_attention, which wants equal head sizes of a multiple of 8.

    All is exact: zeros in q and k add nothing to a score whose scale is given; zeros in v come out as zeros and are cut
    off; and values of more than 128 features are several heads that share q and k.

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
    """[B, N, ...] -> [ceil(N / size), B, size, ...], zeros behind the last row."""
    # The number of blocks is spelled out, since of a symbolic N (jax.export) a reshape cannot infer it.
    blocks = -(-x.shape[1] // size)
    x = jnp.pad(x, [(0, 0), (0, blocks * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(x.shape[0], blocks, size, *x.shape[2:]).swapaxes(0, 1)


def _from_blocks(blocks: jax.Array, length: int) -> jax.Array:
    """The way back of `_to_blocks`: [T, B, size, ...] -> [B, length, ...]."""
    x = blocks.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(size: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _attention_fwd(size, q, k, v)[0]


def _attention_fwd(size: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
    forms = {"default": functools.partial(_blockwise_forward, size)}
    if kernels := _kernels(q, v):
        forms["cpu"] = kernels.forward
    # What is traced on a CPU may be lowered for another device.
    out, scale = lax.platform_dependent(q, k, v, **forms)
    return out, (q, k, v, out, scale)


def _attention_bwd(size: int, residuals: tuple[Any, ...], d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, out, scale = residuals
    # dS = P ∘ (dP − Σ_m P dP), and Σ_m P dP is out · d_out.
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=-1)
    forms = {"default": functools.partial(_blockwise_backward, size)}
    if kernels := _kernels(q, v):
        forms["cpu"] = kernels.backward
    return lax.platform_dependent(q, k, v, scale, delta, d_out, **forms)


def _blockwise_forward(
    size: int, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The result, and what the way back makes the weights of again: exp(score - top) / total."""

    # Another value, always 1, sums up the weights in the product: a reduction of its own took a TPU five times as long.
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
        # Behind barriers, so that both are made once, where their products leave a TPU's matrix unit, and that dS is
        # made twice, where it enters it again: arrays of this size are what takes the time.
        p, d_p = lax.optimization_barrier((p, d_p))
        d_s = (p * d_p).astype(q.dtype)
        p_again, d_p_again, _ = lax.optimization_barrier((p, d_p, q_block))
        d_s_again = (p_again * d_p_again).astype(q.dtype)
        d_v += _dot("ben,bnm->bem", d_block.swapaxes(1, 2), p.astype(v.dtype))
        d_k += _dot("bdn,bnm->bdm", q_block.swapaxes(1, 2), d_s)
        return (d_k, d_v), _dot("bnm,bmd->bnd", d_s_again, k)

    # The sums are carried as [B, D, M] and [B, E, M]: with M last the block's matrix is the right
    # operand as it lies, which on CPU makes the two products three and six times as fast.
    # Rows padded behind the last have d_out = 0, delta = 0, hence no share in d_k and d_v.
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
