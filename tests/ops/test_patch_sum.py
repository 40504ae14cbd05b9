"""The patch sum against sums written out pixel by pixel."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colorjax.ops import gpu
from colorjax.ops.cpu import emitter, llvm
from colorjax.ops.cpu import patch_sum as cpu_patch_sum
from colorjax.ops.patch_sum import patch_sum


def _reflected(i: int, length: int) -> int:
    i = abs(i)
    return i if i < length else 2 * (length - 1) - i


def _looped(values: np.ndarray, weights: np.ndarray, kernel_size: int) -> np.ndarray:
    """y_i[c] = Σ_j w_{i,j}[c mod G] · v_{i+j}[c], one product after the other."""
    batch, height, width, channels = values.shape
    total = np.zeros(values.shape, np.float64)
    for b, y, x, c in np.ndindex(batch, height, width, channels):
        for j, (dy, dx) in enumerate(itertools.product(range(kernel_size), repeat=2)):
            at_y = _reflected(y + dy - kernel_size // 2, height)
            at_x = _reflected(x + dx - kernel_size // 2, width)
            weight = weights[b, y, x, j, c % weights.shape[4]]
            total[b, y, x, c] += float(weight) * float(values[b, at_y, at_x, c])
    return total


def _looped_gradients(
    values: np.ndarray, weights: np.ndarray, cotangent: np.ndarray, kernel_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The transposes of `_looped`, by giving each product back to its two factors."""
    batch, height, width, channels = values.shape
    d_values, d_weights = np.zeros(values.shape), np.zeros(weights.shape)
    for b, y, x, c in np.ndindex(batch, height, width, channels):
        for j, (dy, dx) in enumerate(itertools.product(range(kernel_size), repeat=2)):
            at_y = _reflected(y + dy - kernel_size // 2, height)
            at_x = _reflected(x + dx - kernel_size // 2, width)
            g, outer = c % weights.shape[4], float(cotangent[b, y, x, c])
            d_values[b, at_y, at_x, c] += outer * float(weights[b, y, x, j, g])
            d_weights[b, y, x, j, g] += outer * float(values[b, at_y, at_x, c])
    return d_values, d_weights


def _unfolded(values: jax.Array, weights: jax.Array, kernel_size: int) -> jax.Array:
    """The naive twin: the patches gathered into a k² times larger tensor, then one product."""
    height, width = values.shape[1:3]
    reach = kernel_size // 2
    around = range(-reach, reach + 1)
    rows = np.array([[_reflected(y + d, height) for y in range(height)] for d in around])
    columns = np.array([[_reflected(x + d, width) for x in range(width)] for d in around])
    patches = values[:, rows[:, None, :, None], columns[None, :, None, :]]
    patches = patches.reshape(values.shape[0], kernel_size**2, *values.shape[1:])
    share = values.shape[3] // weights.shape[4]
    return jnp.einsum("bjhwc,bhwjc->bhwc", patches, jnp.tile(weights, share))


def _arrays(
    shape: tuple[int, int, int, int], groups: int, kernel_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    values = rng.normal(size=shape)
    weights = rng.normal(size=(*shape[:3], kernel_size**2, groups))
    return (
        values.astype(np.float32),
        weights.astype(np.float32),
        rng.normal(size=shape).astype(np.float32),
    )


def _both_ways(
    values: jax.typing.ArrayLike,
    weights: jax.typing.ArrayLike,
    cotangent: jax.typing.ArrayLike,
    kernel_size: int,
    implementation: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    form = functools.partial(patch_sum, kernel_size=kernel_size, implementation=implementation)

    @jax.jit
    def run(values: jax.Array, weights: jax.Array, cotangent: jax.Array):
        out, pull = jax.vjp(form, values, weights)
        return out, *pull(cotangent)

    return run(jnp.asarray(values), jnp.asarray(weights), jnp.asarray(cotangent))


# (2, 5, 4, 6) with k = 3 has an inside; with k = 7, 4 rows are the least that the reflection
# takes, so that every pixel's patch is reflected on all four sides.
SIZES = [
    ((2, 5, 4, 6), 3, 3),
    ((1, 4, 6, 4), 2, 7),
    ((1, 4, 4, 2), 1, 7),
    ((2, 3, 5, 3), 3, 5),
    ((1, 2, 2, 4), 4, 1),
]


def _assert_written_out(shape, groups, kernel_size, implementation=None):
    values, weights, cotangent = _arrays(shape, groups, kernel_size)
    out, d_values, d_weights = _both_ways(values, weights, cotangent, kernel_size, implementation)
    np.testing.assert_allclose(out, _looped(values, weights, kernel_size), atol=1e-4)
    expected = _looped_gradients(values, weights, cotangent, kernel_size)
    np.testing.assert_allclose(d_values, expected[0], atol=1e-4)
    np.testing.assert_allclose(d_weights, expected[1], atol=1e-4)


@pytest.mark.parametrize(("shape", "groups", "kernel_size"), SIZES)
def test_equals_the_written_out_sum_and_its_transposes(shape, groups, kernel_size):
    _assert_written_out(shape, groups, kernel_size, "xla")


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize(("shape", "groups", "kernel_size"), [((2, 14, 11, 32), 4, 3), ((2, 9, 12, 16), 2, 7)])
def test_gradients_equal_those_of_the_unfolded_form(shape, groups, kernel_size, implementation):
    values, weights, cotangent = _arrays(shape, groups, kernel_size)
    found = _both_ways(values, weights, cotangent, kernel_size, implementation)
    out, pull = jax.vjp(lambda v, w: _unfolded(v, w, kernel_size), values, weights)
    for ours, naive in zip(found, (out, *pull(cotangent)), strict=True):
        np.testing.assert_allclose(ours, naive, atol=2e-5)


# An image that every patch leaves on all sides; groups that are no power of two.
@pytest.mark.parametrize(("shape", "groups", "kernel_size"), [*SIZES, ((2, 9, 12, 16), 2, 7), ((1, 5, 37, 48), 6, 5)])
def test_gpu_sums_of_gathered_values_equal_the_unfolded_form(shape, groups, kernel_size):
    arrays = _arrays(shape, groups, kernel_size)
    found = jax.jit(lambda v, w, c: (gpu.patch_sum(v, w), *gpu.patch_sum_gradients(v, w, c)))(*arrays)
    out, pull = jax.vjp(lambda v, w: _unfolded(v, w, kernel_size), *arrays[:2])
    for ours, naive in zip(found, (out, *pull(arrays[2])), strict=True):
        np.testing.assert_allclose(ours, naive, atol=2e-5)


def test_gradients_equal_finite_differences():
    values, weights, cotangent = _arrays((1, 4, 5, 4), 2, 3)
    _, d_values, d_weights = _both_ways(values, weights, cotangent, 3, None)
    rng = np.random.default_rng(1)
    for _ in range(4):
        step_v, step_w = rng.normal(size=values.shape), rng.normal(size=weights.shape)
        ahead = _looped(values + 1e-4 * step_v, weights + 1e-4 * step_w, 3)
        back = _looped(values - 1e-4 * step_v, weights - 1e-4 * step_w, 3)
        slope = ((ahead - back) * cotangent).sum() / 2e-4
        found = (np.asarray(d_values) * step_v).sum() + (np.asarray(d_weights) * step_w).sum()
        assert found == pytest.approx(slope, rel=1e-4, abs=1e-3)


def test_channel_c_takes_weight_channel_c_mod_groups():
    values = np.ones((1, 3, 3, 6), np.float32)
    weights = np.broadcast_to(np.array([1, 2, 3], np.float32), (1, 3, 3, 9, 3))
    out = patch_sum(jnp.asarray(values), jnp.asarray(weights), kernel_size=3)
    np.testing.assert_allclose(out[0, 1, 1], 9 * np.array([1, 2, 3, 1, 2, 3]))


def test_offsets_run_row_by_row():
    values = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    weights = np.zeros((1, 4, 4, 9, 1), np.float32)
    weights[..., 5, 0] = 1  # row 0, column +1: the neighbor on the right, mirrored at the edge.
    out = patch_sum(jnp.asarray(values), jnp.asarray(weights), kernel_size=3)
    np.testing.assert_array_equal(out[0, :, :, 0], values[0, :, [1, 2, 3, 2], 0].T)


@pytest.mark.parametrize("implementation", [None, "xla", "gpu"])
def test_bfloat16_sums_in_float32(implementation):
    values, weights, cotangent = (jnp.asarray(x, jnp.bfloat16) for x in _arrays((1, 6, 5, 16), 2, 7))
    if implementation == "gpu":
        found = gpu.patch_sum(values, weights), *gpu.patch_sum_gradients(values, weights, cotangent)
    else:
        found = _both_ways(values, weights, cotangent, 7, implementation)
    v, w, c = (np.asarray(x, np.float32) for x in (values, weights, cotangent))
    expected = (_looped(v, w, 7), *_looped_gradients(v, w, c, 7))
    for index, (ours, naive) in enumerate(zip(found, expected, strict=True)):
        assert ours.dtype == jnp.bfloat16, index
        # One rounding of the result, 2⁻⁹ of it, and no more: a bfloat16 sum of 49 would lose ten
        # times that.
        np.testing.assert_allclose(np.asarray(ours, np.float32), naive, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(("implementation", "most"), [("xla", 49 * 64 / 8), (None, 1)])
def test_how_much_either_pass_holds_beside_its_results(implementation, most):
    """In numbers a pixel: less than the weights; the kernels nothing."""
    shapes = [(2, 56, 56, 64), (2, 56, 56, 49, 8), (2, 56, 56, 64)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    form = functools.partial(patch_sum, kernel_size=7, implementation=implementation)
    run = jax.jit(lambda v, w, c: jax.vjp(form, v, w)[1](c))
    analysis = run.lower(*arrays).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < most * 2 * 56 * 56 * 4


# The kernels for CPUs


def _kernels_of(shape, groups, kernel_size, **options) -> int:
    """How many calls of them are in a program of both passes."""
    run = jax.jit(lambda *x: jax.vjp(functools.partial(patch_sum, kernel_size=kernel_size), *x[:2])[1](x[2]))
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in _arrays(shape, groups, kernel_size)]
    return run.trace(*arrays).lower(**options).as_text().count("call @colorjax_patch_sum")


# A vector of a period of the weights, of two, of a part of one, and of one number; mirrors on all sides at once; more
# channels than are summed up at a time.
KERNEL_SIZES = [
    ((2, 5, 4, 32), 16, 3),
    ((1, 4, 5, 16), 8, 7),
    ((1, 5, 6, 64), 32, 5),
    ((1, 2, 2, 16), 1, 1),
    ((1, 3, 4, 272), 16, 3),
]


@pytest.mark.parametrize(("shape", "groups", "kernel_size"), KERNEL_SIZES)
def test_cpu_kernels_equal_the_written_out_sum_and_its_transposes(shape, groups, kernel_size):
    assert _kernels_of(shape, groups, kernel_size)
    _assert_written_out(shape, groups, kernel_size)


@pytest.mark.parametrize("lanes", [4, 8])
def test_cpu_kernels_of_other_processors_vectors_equal_the_written_out_sum(lanes, monkeypatch):
    for module in (emitter, llvm, cpu_patch_sum):
        monkeypatch.setattr(module, "lanes", lambda: lanes)
    # Eight vectors are summed up at a time, and in the other there are nine.
    for shape, groups in [((2, 3, 4, 16), 2), ((1, 3, 2, 9 * lanes), lanes)]:
        assert _kernels_of(shape, groups, 3)
        _assert_written_out(shape, groups, 3)


def test_cpu_kernels_may_be_mapped():
    values, weights, cotangent = (jnp.stack([x, 2 * x]) for x in _arrays((2, 4, 5, 16), 4, 3))
    mapped = jax.vmap(lambda v, w, c: _both_ways(v, w, c, 3, None))(values, weights, cotangent)
    for i in range(2):
        for found, expected in zip(mapped, _both_ways(values[i], weights[i], cotangent[i], 3, "xla"), strict=True):
            np.testing.assert_allclose(found[i], expected, atol=2e-5)


@pytest.mark.parametrize("array", range(3))
def test_cpu_kernels_hide_no_number_that_is_none(array):
    arrays = _arrays((1, 6, 7, 16), 4, 3)
    arrays[array][0, 2, 0, ..., 1] = np.nan
    for found, expected in zip(_both_ways(*arrays, 3, None), _both_ways(*arrays, 3, "xla"), strict=True):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_gpus_take_the_sums_of_gathered_values():
    def lowered(platform: str) -> str:
        run = jax.jit(lambda *x: jax.vjp(functools.partial(patch_sum, kernel_size=3), *x[:2])[1](x[2]))
        arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in _arrays((2, 5, 6, 8), 2, 3)]
        return run.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()

    assert {name: "gather" in lowered(name) for name in ("cpu", "cuda", "rocm", "tpu")} == {
        "cpu": False,
        "cuda": True,
        "rocm": True,
        "tpu": False,
    }


def test_only_cpus_take_the_kernels_and_only_for_whole_vectors():
    size = KERNEL_SIZES[0]
    counts = {platform: _kernels_of(*size, lowering_platforms=(platform,)) for platform in ("cpu", "cuda", "tpu")}
    assert counts == {"cpu": 1, "cuda": 0, "tpu": 0}
    assert not _kernels_of((1, 4, 4, 6 * llvm.lanes()), 3, 3)  # three weights make no vector
    assert not _kernels_of((1, 4, 4, 10), 2, 3)
    with pytest.raises(ValueError, match=r'implementation="llvm" does not take \(1, 4, 4, 10\)'):
        _both_ways(*_arrays((1, 4, 4, 10), 2, 3), 3, "llvm")


@pytest.mark.parametrize(
    ("values", "weights", "kernel_size", "message"),
    [
        ((1, 4, 4, 6), (1, 4, 4, 16, 2), 4, "odd"),
        ((4, 4, 6), (1, 4, 4, 9, 2), 3, "values must be"),
        ((1, 4, 4, 6), (1, 4, 4, 25, 2), 3, r"weights must be \[1, 4, 4, 9, G\]"),
        ((1, 4, 4, 6), (1, 4, 5, 9, 2), 3, "weights must be"),
        ((1, 4, 4, 6), (1, 4, 4, 9, 4), 3, "6 channels are not a multiple of the weights' 4"),
        ((1, 3, 4, 6), (1, 3, 4, 49, 2), 7, "larger image than 3×4"),
    ],
)
def test_wrong_shapes_are_refused(values, weights, kernel_size, message):
    with pytest.raises(ValueError, match=message):
        patch_sum(jnp.zeros(values), jnp.zeros(weights), kernel_size=kernel_size)
