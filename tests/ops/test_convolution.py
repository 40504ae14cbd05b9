"""The convolutions against XLA's own, forward and both gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from colorjax.ops.convolution import halving_convolution, same_convolution


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    padding, numbers = [(1, 1), (1, 1)], ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


def _both_ways(form: Any, x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    out, pull = jax.vjp(form, x, kernel)
    return out, *pull(cotangent)


@pytest.mark.parametrize(
    ("convolution", "stride", "height", "width", "dtype"),
    [
        (halving_convolution, 2, 8, 6, "float32"),
        (halving_convolution, 2, 7, 5, "float32"),
        (halving_convolution, 2, 1, 2, "float32"),
        (halving_convolution, 2, 3, 8, "float32"),
        (halving_convolution, 2, 8, 5, "bfloat16"),
        (same_convolution, 1, 8, 6, "float32"),
        (same_convolution, 1, 2, 2, "float32"),
        (same_convolution, 1, 1, 2, "float32"),
        (same_convolution, 1, 2, 3, "float32"),
        (same_convolution, 1, 2, 2, "bfloat16"),
    ],
)
def test_a_convolution_and_its_gradients_equal_xlas(
    convolution: Any, stride: int, height: int, width: int, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    shapes = (2, height, width, 3), (3, 3, 3, 5), (2, -(-height // stride), -(-width // stride), 5)
    x, kernel, cotangent = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)

    @jax.jit
    def run(*arrays: jax.Array) -> list[tuple[jax.Array, ...]]:
        return [_both_ways(form, *arrays) for form in (convolution, partial(_plain, stride=stride))]

    tolerance = 1e-5 if dtype == "float32" else 5e-2
    for name, a, b in zip(("out", "x", "kernel"), *run(x, kernel, cotangent), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_the_inputs_gradient_equals_a_naive_loop() -> None:
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
    x, cotangent = np.zeros((1, 5, 6, 2), np.float32), rng.normal(size=(1, 3, 3, 4)).astype(np.float32)
    expected = np.zeros((1, 7, 8, 2))
    for row in range(3):
        for column in range(3):
            expected[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += kernel @ cotangent[0, row, column]
    _, d_x, _ = jax.jit(lambda *arrays: _both_ways(halving_convolution, *arrays))(x, kernel, cotangent)
    np.testing.assert_allclose(d_x, expected[:, 1:6, 1:7], rtol=1e-5, atol=1e-5)


def _convolutions_of_zeros(platform: str, implementation: Any) -> int:
    """How many convolutions of both gradients put zeros between the cotangent's pixels, on a platform."""
    arrays = (jnp.zeros((1, 8, 8, 3)), jnp.zeros((3, 3, 3, 5)), jnp.zeros((1, 4, 4, 5)))
    run = jax.jit(lambda *x: _both_ways(lambda *y: halving_convolution(*y, implementation=implementation), *x)[1:])
    return run.trace(*arrays).lower(lowering_platforms=(platform,)).as_text().count("lhs_dilate = [2, 2]")


def test_the_platform_that_a_program_is_lowered_for_picks_the_gradient() -> None:
    found = {
        (platform, implementation): _convolutions_of_zeros(platform, implementation)
        for platform in ("cpu", "tpu", "cuda")
        for implementation in (None, "xla", "phases")
    }
    assert found == {
        **{(platform, "xla"): 1 for platform in ("cpu", "tpu", "cuda")},
        **{(platform, "phases"): 0 for platform in ("cpu", "tpu", "cuda")},
        ("cpu", None): 0,
        ("tpu", None): 1,
        ("cuda", None): 1,
    }
