"""Products of bfloat16 factors with float32 sums, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from colorjax.ops.products import float32_sums


def _rounded(x: np.ndarray) -> np.ndarray:
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)


@pytest.fixture(scope="module")
def factors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers with sums near 16, which bfloat16 rounds by up to 1/32."""
    rng = np.random.default_rng(0)
    x, kernel = rng.uniform(0.5, 1.5, (6, 17)), rng.uniform(0.5, 1.5, (17, 4))
    return x.astype(np.float32), kernel.astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return float32_sums(lax.dot_general, factors=jnp.bfloat16)(x, kernel, (((1,), (0,)), ((), ())), precision=None)


def test_a_product_equals_float64_but_for_its_factors_rounding(factors):
    x, kernel, cotangent = factors
    out, pull = jax.vjp(_product, x, kernel)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, _rounded(x) @ _rounded(kernel), rtol=1e-6)
    # The gradients' factors are rounded too, and so are the gradients.
    d_x, d_kernel = pull(jnp.asarray(cotangent))
    assert d_x.dtype == d_kernel.dtype == jnp.float32
    np.testing.assert_allclose(d_x, _rounded(cotangent) @ _rounded(kernel).T, rtol=2**-8, atol=2**-8)
    np.testing.assert_allclose(d_kernel, _rounded(x).T @ _rounded(cotangent), rtol=2**-8, atol=2**-8)


def test_a_convolution_equals_float64_but_for_its_factors_rounding(factors):
    x, kernel, cotangent = factors

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        operation = float32_sums(lax.conv_general_dilated, factors=jnp.bfloat16)
        out = operation(
            x.reshape(2, 3, 1, 17),
            kernel.reshape(1, 1, 17, 4),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out.reshape(6, 4)

    out, pull = jax.vjp(convolution, jnp.asarray(x), jnp.asarray(kernel))
    expected, pull_expected = jax.vjp(_product, x, kernel)
    np.testing.assert_allclose(out, _rounded(x) @ _rounded(kernel), rtol=1e-6)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    for found, other in zip(pull(jnp.asarray(cotangent)), pull_expected(jnp.asarray(cotangent)), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, other, rtol=2**-7, atol=2**-7)


def test_float32_factors_leave_the_operation_as_it_is():
    assert float32_sums(lax.dot_general, factors=jnp.bfloat16) is float32_sums(lax.dot_general, factors=jnp.bfloat16)
    assert float32_sums(lax.dot_general, factors=jnp.float32) is lax.dot_general
