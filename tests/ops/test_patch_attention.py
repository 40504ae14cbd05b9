"""Patchwise attention without its weights tensor, compared with a loop in float64 and with the patch sum."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colorjax.ops import patch_attention as module
from colorjax.ops.patch_attention import (
    offset_by_offset,
    offset_by_offset_gradients,
    patch_attention,
    with_weights,
    with_weights_gradients,
)

# (batch, height, width, channels), groups, kernel size; patches that leave the image on all sides; one group; no patch.
SIZES = [
    ((2, 5, 6, 6), 3, 3),
    ((1, 4, 5, 4), 2, 7),
    ((2, 3, 4, 3), 1, 5),
    ((1, 2, 3, 4), 4, 1),
]


def _arrays(shape: tuple[int, int, int, int], groups: int, kernel_size: int, dtype: Any = np.float32) -> Any:
    """Random hidden features, kernel, bias, values and cotangent of the result."""
    rng = np.random.default_rng(3)
    weights = kernel_size**2 * groups
    shapes = [(*shape[:3], groups), (groups, weights), (weights,), shape, shape]
    arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]
    arrays[0] = np.maximum(arrays[0], 0)  # as a ReLU leaves them
    return tuple(jnp.asarray(x, dtype) for x in arrays)


def _looped(arrays: Any, kernel_size: int) -> np.ndarray:
    """The definition, number by number, in float64."""
    hidden, kernel, bias, values = (np.asarray(x, np.float64) for x in arrays)
    groups, reach = hidden.shape[3], kernel_size // 2
    padded = np.pad(values, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="reflect")
    out = np.zeros(values.shape)
    for b, y, x in np.ndindex(*values.shape[:3]):
        weights = (hidden[b, y, x] @ kernel + bias).reshape(-1, groups)
        for j, (dy, dx) in enumerate(itertools.product(range(kernel_size), repeat=2)):
            for c in range(values.shape[3]):
                out[b, y, x, c] += weights[j, c % groups] * padded[b, y + dy, x + dx, c]
    return out


def _both_ways(form: Callable, gradients: Callable, kernel_size: int, arrays: tuple) -> tuple[jax.Array, ...]:
    run = jax.jit(lambda *a: (form(kernel_size, *a[:4]), *gradients(kernel_size, *a)))
    return run(*arrays)


def _close(found: tuple, expected: tuple, *, relative: float) -> None:
    """Compares each array up to `relative` times its largest number."""
    for name, ours, theirs in zip(("out", "hidden", "kernel", "bias", "values"), found, expected, strict=True):
        assert ours.dtype == theirs.dtype, name
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max(), err_msg=name)


@pytest.mark.parametrize(("shape", "groups", "kernel_size"), SIZES)
def test_equals_the_definition(shape, groups, kernel_size):
    arrays = _arrays(shape, groups, kernel_size)
    expected = _looped(arrays[:4], kernel_size)
    for form in (with_weights, offset_by_offset):
        np.testing.assert_allclose(form(kernel_size, *arrays[:4]), expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize(("shape", "groups", "kernel_size"), [*SIZES, ((3, 11, 9, 16), 4, 7), ((2, 13, 8, 24), 3, 3)])
def test_equals_the_patch_sum_of_weights_with_gradients(shape, groups, kernel_size, blocks, monkeypatch):
    monkeypatch.setattr(module, "_blocks", lambda height, *_: min(blocks, height))
    arrays = _arrays(shape, groups, kernel_size)
    found = _both_ways(offset_by_offset, offset_by_offset_gradients, kernel_size, arrays)
    expected = _both_ways(with_weights, with_weights_gradients, kernel_size, arrays)
    _close(found, expected, relative=1e-6)


def test_gradients_equal_those_of_automatic_differentiation():
    arrays = _arrays((2, 6, 5, 8), 4, 3)
    found = jax.vjp(functools.partial(patch_attention, kernel_size=3), *arrays[:4])[1](arrays[4])
    expected = jax.vjp(functools.partial(offset_by_offset, 3), *arrays[:4])[1](arrays[4])
    _close((arrays[4], *found), (arrays[4], *expected), relative=1e-6)


def test_gradients_equal_finite_differences():
    arrays = _arrays((1, 4, 5, 4), 2, 3)
    gradients = offset_by_offset_gradients(3, *arrays)
    rng = np.random.default_rng(1)
    for _ in range(3):
        steps = [rng.normal(size=x.shape) for x in arrays[:4]]
        ahead, back = (
            _looped([np.asarray(x, np.float64) + sign * 1e-4 * s for x, s in zip(arrays[:4], steps, strict=True)], 3)
            for sign in (1, -1)
        )
        slope = ((ahead - back) * np.asarray(arrays[4])).sum() / 2e-4
        found = sum((np.asarray(g, np.float64) * s).sum() for g, s in zip(gradients, steps, strict=True))
        assert found == pytest.approx(slope, rel=1e-4, abs=1e-3)


def test_bfloat16_rounds_only_operands_and_results():
    hidden, kernel, bias, values, cotangent = _arrays((2, 6, 7, 16), 4, 7, jnp.bfloat16)
    arrays = hidden, kernel.astype(jnp.float32), bias.astype(jnp.float32), values, cotangent
    found = _both_ways(offset_by_offset, offset_by_offset_gradients, 7, arrays)
    wide = tuple(x.astype(jnp.float32) for x in arrays)
    expected = _both_ways(with_weights, with_weights_gradients, 7, wide)
    assert [x.dtype for x in found] == [x.dtype for x in (values, *arrays[:4])]
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        # The operands of products and the results are rounded to 8 bits.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2**-7 * np.abs(theirs).max())


def test_only_a_tpu_never_holds_the_weights():
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in _arrays((2, 8, 9, 12), 3, 5)]
    run = jax.jit(lambda *a: jax.vjp(functools.partial(patch_attention, kernel_size=5), *a[:4])[1](a[4]))
    pixel_weights = {"x75x", "x25x3x", "x5x5x3x"}  # k²·G numbers, however they are grouped
    sizes = {}
    for platform in ("cpu", "cuda", "tpu"):
        text = run.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        sizes[platform] = any(f"x8x9{size}" in text for size in pixel_weights)
    assert sizes == {"cpu": True, "cuda": True, "tpu": False}


def test_symbolic_sizes_can_be_exported():
    b, h, w = jax.export.symbolic_shape("b, h, w", constraints=["h >= 8", "w >= 8"])
    hidden, kernel, bias, values, _ = _arrays((2, 9, 8, 4), 2, 3)
    form = jax.jit(functools.partial(patch_attention, kernel_size=3))
    kinds = [
        jax.ShapeDtypeStruct((b, h, w, 2), jnp.float32),
        jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
        jax.ShapeDtypeStruct(bias.shape, jnp.float32),
        jax.ShapeDtypeStruct((b, h, w, 4), jnp.float32),
    ]
    exported = jax.export.export(form, platforms=("cpu", "cuda", "tpu"))(*kinds)
    expected = _looped((hidden, kernel, bias, values), 3)
    np.testing.assert_allclose(exported.call(hidden, kernel, bias, values), expected, atol=1e-5)


def test_blocks_are_few_and_small():
    assert module._blocks(28, 28, 8, 128) == 1
    for height, width, batch, channels in ((62, 62, 32, 64), (30, 30, 64, 256)):
        count = module._blocks(height, width, batch, channels)
        assert count <= 8
        assert count == 8 or -(-height // count) * width * batch * max(128, channels) < 1.1 * 2**21
    assert module._blocks(3, 4096, 4096, 256) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel": jnp.zeros((2, 20))}, r"kernel and bias must be \[G, k²·G\]"),
        ({"bias": jnp.zeros(17)}, r"kernel and bias must be \[G, k²·G\]"),
        ({"values": jnp.zeros((1, 4, 4, 5))}, "5 channels are not a multiple of the weights' 2"),
        ({"values": jnp.zeros((1, 4, 5, 4))}, "weights must be"),
    ],
)
def test_wrong_shapes_are_refused(wrong, message):
    hidden, kernel, bias, values, _ = _arrays((1, 4, 4, 4), 2, 3)
    arrays = {"hidden": hidden, "kernel": kernel, "bias": bias, "values": values} | wrong
    with pytest.raises(ValueError, match=message):
        patch_attention(*arrays.values(), kernel_size=3)
