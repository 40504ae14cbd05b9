"""The patch sum: every pixel's weighted sum over the k×k patch around it.

This is the aggregation of patchwise self-attention (Zhao, Jia, Koltun, *Exploring Self-attention
for Image Recognition*, section 3.2; hszhao/SAN lib/sa/functions/aggregation_refpad.py):

    y_i[c] = Σ_j w_{i,j}[c mod G] · v_{i+j}[c]

with j over the k×k offsets of the patch, row by row, and v padded by reflection.
"""

import functools
from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from colorjax.ops import dispatch, gpu

Implementation = Literal["xla", "llvm"]


def patch_sum(
    values: jax.Array,
    weights: jax.Array,
    *,
    kernel_size: int,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Sums the k×k patch around each pixel with that pixel's own weights.

    Args:
        values: floating [B, H, W, C].
        weights: floating [B, H, W, k², G]: the patch's offsets row by row, then the weight
            channels. Channel c of the values takes weight channel c mod G.
        kernel_size: k, odd; the reflection reaches k // 2 pixels out of the image.
        implementation: None takes what is best on the platform (see ops/dispatch.py). "xla" is the reference, which
            runs everywhere; "llvm" is ops/cpu/patch_sum.py, for one CPU.

    Returns:
        [B, H, W, C] of the values' dtype. The sums, and those of both gradients, are in float32.

    Raises:
        ValueError: if k is even, a shape does not fit the others, C is not a multiple of G, H or W is not larger than
            k // 2 (the reflection needs that many rows), or "llvm" does not run here or take so many channels.
    """
    check(values.shape, weights.shape, kernel_size)
    return _patch_sum(kernel_size, implementation, values, weights)


def check(values: tuple[int, ...], weights: tuple[int, ...], kernel_size: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    if len(values) != 4:
        raise ValueError(f"values must be [B, H, W, C], got shape {values}")
    batch, height, width, channels = values
    if len(weights) != 5 or weights[:4] != (batch, height, width, kernel_size**2):
        raise ValueError(
            f"weights must be [{batch}, {height}, {width}, {kernel_size**2}, G] for values "
            f"{values} and kernel_size {kernel_size}, got shape {weights}"
        )
    if weights[4] == 0 or channels % weights[4]:
        raise ValueError(
            f"the values' {channels} channels are not a multiple of the weights' {weights[4]}: "
            "let as many values share a weight channel as divide them"
        )
    if any(side <= kernel_size // 2 for side in (height, width)):  # symbolic sizes have no least
        raise ValueError(
            f"reflection by {kernel_size // 2} pixels needs a larger image than "
            f"{height}×{width}: use a smaller kernel_size than {kernel_size}"
        )


def _kernels(implementation: Implementation | None, values: jax.Array, weights: jax.Array) -> ModuleType | None:
    """The LLVM kernels, if these arrays take them."""
    if implementation != "xla" and dispatch.llvm_kernels_run(values.shape, weights.shape):
        from colorjax.ops.cpu import patch_sum as kernels

        if kernels.supports(values, weights):
            return kernels
    if implementation == "llvm":
        raise ValueError(f'implementation="llvm" does not take {values.shape}, {weights.shape} here: use None')
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _patch_sum(
    kernel_size: int, implementation: Implementation | None, values: jax.Array, weights: jax.Array
) -> jax.Array:
    kernels = _kernels(implementation, values, weights)
    form = functools.partial(_shifted_sum, kernel_size)
    on_gpu = gpu.patch_sum if implementation is None else None
    return dispatch.by_platform(
        values, weights, default=form, cpu=kernels and kernels.forward, cuda=on_gpu, rocm=on_gpu
    )


def _patch_sum_fwd(
    kernel_size: int, implementation: Implementation | None, values: jax.Array, weights: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _patch_sum(kernel_size, implementation, values, weights), (values, weights)


def _patch_sum_bwd(
    kernel_size: int,
    implementation: Implementation | None,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    kernels = _kernels(implementation, *residuals)
    form = functools.partial(_shifted_sum_gradients, kernel_size)
    on_gpu = gpu.patch_sum_gradients if implementation is None else None
    return dispatch.by_platform(
        *residuals, cotangent, default=form, cpu=kernels and kernels.backward, cuda=on_gpu, rocm=on_gpu
    )


_patch_sum.defvjp(_patch_sum_fwd, _patch_sum_bwd)

# XLA's form keeps the channels as [C / G, G], innermost, so that an offset is a slice and the weights broadcast over
# C / G. The barriers make it five times as fast on a CPU: without them XLA computes the reshape's indices, and
# reflects again, at each of the k² offsets.


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """[B, H, W, C] -> float32 [B, H, W, C / G, G]."""
    return lax.optimization_barrier(x.astype(jnp.float32).reshape(*x.shape[:3], -1, groups))


def _pad(x: jax.Array, reach: int) -> jax.Array:
    """Pads H and W of [B, H, W, ...] by reflection, `reach` pixels on each side.

    Makes one copy and writes its border in place; jnp.pad makes another copy for each axis.
    """
    width = [(reach, reach, 0) if axis in (1, 2) else (0, 0, 0) for axis in range(x.ndim)]
    x = lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), width))
    for axis in (1, 2) if reach else ():
        end = x.shape[axis]
        before = lax.rev(lax.slice_in_dim(x, reach + 1, 2 * reach + 1, axis=axis), [axis])
        behind = lax.rev(lax.slice_in_dim(x, end - 2 * reach - 1, end - reach - 1, axis=axis), [axis])
        x, before, behind = lax.optimization_barrier((x, before, behind))
        x = lax.dynamic_update_slice_in_dim(x, before, 0, axis)
        x = lax.optimization_barrier(lax.dynamic_update_slice_in_dim(x, behind, end - reach, axis))
    return x


def _ungrouped(x: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `_grouped`: to the shape and dtype of `like`."""
    return lax.optimization_barrier(x).reshape(like.shape).astype(like.dtype)


def _transpose_pad(x: jax.Array, reach: int) -> jax.Array:
    """The transpose of `_pad`: adds the border's numbers to the pixels that they mirror."""
    # The barriers take the border out before the inside is updated, so that both happen in place.
    for axis in (1, 2) if reach else ():
        x = lax.optimization_barrier(x)
        end = x.shape[axis]
        before = lax.rev(lax.slice_in_dim(x, 0, reach, axis=axis), [axis])
        behind = lax.rev(lax.slice_in_dim(x, end - reach, end, axis=axis), [axis])
        x, before, behind = lax.optimization_barrier((x, before, behind))
        x = _add_at(x, before, reach + 1, axis=axis)
        x = _add_at(x, behind, end - 2 * reach - 1, axis=axis)
    x = lax.optimization_barrier(x)
    return x[:, reach : x.shape[1] - reach, reach : x.shape[2] - reach]


def _add_at(x: jax.Array, summand: jax.Array, start: int, *, axis: int) -> jax.Array:
    part = lax.slice_in_dim(x, start, start + summand.shape[axis], axis=axis)
    return lax.dynamic_update_slice_in_dim(x, part + summand, start, axis)


def _shifted_sum(kernel_size: int, values: jax.Array, weights: jax.Array) -> jax.Array:
    height, width = values.shape[1:3]
    padded = _pad(_grouped(values, weights.shape[4]), kernel_size // 2)
    total = jnp.zeros((), jnp.float32)
    for j in range(kernel_size**2):
        dy, dx = divmod(j, kernel_size)
        shifted = padded[:, dy : dy + height, dx : dx + width]
        total += weights[:, :, :, j, None].astype(jnp.float32) * shifted
    return _ungrouped(total, values)


def _shifted_sum_gradients(
    kernel_size: int, values: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    groups = weights.shape[4]
    reach = kernel_size // 2
    padded = _pad(_grouped(values, groups), reach)
    outer = _grouped(cotangent, groups)

    def add_offset(j: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d_padded, d_weights = sums
        corner = (0, j // kernel_size, j % kernel_size, 0, 0)
        product = outer * lax.dynamic_slice(padded, corner, outer.shape)
        # Written out, as XLA's own reduction over so few channels is not vectorized on CPU.
        shared = sum(product[..., c, :] for c in range(product.shape[3]))
        shared = jnp.asarray(shared, weights.dtype)
        d_weights = lax.dynamic_update_index_in_dim(d_weights, shared, j, axis=3)
        weight = lax.dynamic_slice_in_dim(weights, j, 1, axis=3).astype(jnp.float32)
        d_patch = lax.dynamic_slice(d_padded, corner, outer.shape) + weight * outer
        return lax.dynamic_update_slice(d_padded, d_patch, corner), d_weights

    # A loop updates both sums in place; stacking k² results would hold them all twice.
    d_padded, d_weights = lax.fori_loop(
        0, kernel_size**2, add_offset, (jnp.zeros_like(padded), jnp.zeros_like(weights))
    )
    d_values = _transpose_pad(d_padded, reach)
    return _ungrouped(d_values, values), d_weights
