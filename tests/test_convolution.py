"""The convolutions against XLA's own, forward and both gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from colorjax.convolution import halving_convolution, same_convolution


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    padding, numbers = [(1, 1), (1, 1)], ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


@pytest.mark.parametrize(
    ("convolution", "stride", "height", "width"),
    [(halving_convolution, 2, h, w) for h, w in ((8, 6), (7, 5), (1, 2), (3, 8))]
    + [(same_convolution, 1, h, w) for h, w in ((8, 6), (2, 2), (1, 2), (2, 3))],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_convolution_is_xlas_with_its_gradients(
    convolution: Any, stride: int, height: int, width: int, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, height, width, 3)), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 5)), dtype)
    expected, pull = jax.vjp(partial(_plain, stride=stride), x, kernel)
    cotangent = jnp.asarray(rng.normal(size=expected.shape), dtype)
    found, pull_found = jax.vjp(convolution, x, kernel)
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    for name, a, b in zip(
        ("out", "x", "kernel"), (found, *pull_found(cotangent)), (expected, *pull(cotangent)), strict=True
    ):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_an_input_gradient_is_a_naive_loops() -> None:
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
    x, cotangent = np.zeros((1, 5, 6, 2), np.float32), rng.normal(size=(1, 3, 3, 4)).astype(np.float32)
    expected = np.zeros((1, 7, 8, 2))
    for row in range(3):
        for column in range(3):
            expected[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += kernel @ cotangent[0, row, column]
    found = jax.vjp(lambda x: halving_convolution(x, jnp.asarray(kernel)), jnp.asarray(x))[1](jnp.asarray(cotangent))[0]
    np.testing.assert_allclose(found, expected[:, 1:6, 1:7], rtol=1e-5, atol=1e-5)
