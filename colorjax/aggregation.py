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

from colorjax import gpu_patch_sum
from colorjax.devices import takes_cpu_kernels


def patch_sum(
    values: jax.Array,
    weights: jax.Array,
    *,
    kernel_size: int,
    implementation: Literal["xla"] | None = None,
) -> jax.Array:
    """Sums the k×k patch around each pixel with that pixel's own weights.

    Args:
        values: floating [B, H, W, C].
        weights: floating [B, H, W, k², G]: the patch's offsets row by row, then the weight
            channels. Channel c of the values takes weight channel c mod G.
        kernel_size: k, odd; the reflection reaches k // 2 pixels out of the image.
        implementation: None takes what is best for the device that the program is lowered for: on a CPU
            colorjax.aggregation_kernels, where they serve, on a GPU colorjax.gpu_patch_sum, and else "xla", the
            reference, which runs everywhere.

    Returns:
        [B, H, W, C] of the values' dtype; summed in float32. Both gradients are summed in float32
        too and have the dtype of what they are gradients of.

    Raises:
        ValueError: if k is even, a shape does not fit the others, C is not a multiple of G, or
            H or W is not larger than k // 2 (the reflection needs that many rows).
    """
    check(values.shape, weights.shape, kernel_size)
    return _patch_sum(kernel_size, implementation is None, values, weights)


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


def _kernels(values: jax.Array, weights: jax.Array) -> ModuleType | None:
    """`aggregation_kernels`, where they serve."""
    if not takes_cpu_kernels(values, weights):
        return None
    from colorjax import aggregation_kernels  # a GPU's jobs are spared the tenth of a second that LLVM takes

    return aggregation_kernels if aggregation_kernels.serves(values, weights) else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _patch_sum(kernel_size: int, fastest: bool, values: jax.Array, weights: jax.Array) -> jax.Array:
    forms = {"default": functools.partial(_shifted_sum, kernel_size)}
    if fastest:
        forms |= {"cuda": gpu_patch_sum.forward, "rocm": gpu_patch_sum.forward}
    if fastest and (kernels := _kernels(values, weights)):
        forms["cpu"] = kernels.forward
    # What is traced on a CPU may be lowered for another device.
    return lax.platform_dependent(values, weights, **forms)


def _patch_sum_fwd(
    kernel_size: int, fastest: bool, values: jax.Array, weights: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _patch_sum(kernel_size, fastest, values, weights), (values, weights)


def _patch_sum_bwd(
    kernel_size: int, fastest: bool, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    forms = {"default": functools.partial(_shifted_sum_gradients, kernel_size)}
    if fastest:
        forms |= {"cuda": gpu_patch_sum.backward, "rocm": gpu_patch_sum.backward}
    if fastest and (kernels := _kernels(*residuals)):
        forms["cpu"] = kernels.backward
    return lax.platform_dependent(*residuals, cotangent, **forms)


_patch_sum.defvjp(_patch_sum_fwd, _patch_sum_bwd)

# What follows keeps the channels as [C / G, G], innermost, so that an offset is a slice and the
# weights broadcast over C / G. The barriers are worth a factor of five on CPU: without them XLA
# computes the reshape's indices, and reflects anew, at each of the k² offsets.


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """[B, H, W, C] -> float32 [B, H, W, C / G, G]."""
    return lax.optimization_barrier(x.astype(jnp.float32).reshape(*x.shape[:3], -1, groups))


def _pad(x: jax.Array, reach: int) -> jax.Array:
    """Reflects H and W of [B, H, W, ...] outwards by so many pixels.

    In one copy, whose border is then written in place; jnp.pad makes another for each axis.
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
    """The way back of `_grouped`, to the shape and dtype of `like`."""
    return lax.optimization_barrier(x).reshape(like.shape).astype(like.dtype)


def _transpose_pad(x: jax.Array, reach: int) -> jax.Array:
    """The transpose of `_pad`: adds what lies in the border to the pixels that it mirrors."""
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
        # Written out, as XLA's own reduction over so few channels is not vectorised on CPU.
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
