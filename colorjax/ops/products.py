"""Products of rounded factors that are summed up in float32."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


@functools.cache  # so that two models of one configuration hold the same function
def float32_sums(operation: Callable[..., jax.Array], *, factors: DTypeLike) -> Callable[..., jax.Array]:
    """lax.dot_general or lax.conv_general_dilated with factors of one dtype and a result that was never rounded to it.

    For a float32 layer (nnx.Linear's `dot_general`, nnx.Conv's `conv_general_dilated`) whose inputs and outputs are
    float32 but whose products should run at the speed of bfloat16.

    Args:
        operation: one of the two.
        factors: the dtype that both factors are rounded to; in the gradients, the cotangent too.

    Returns:
        A function of float32 arrays with the arguments of `operation`. Its result and its gradients are float32.
    """
    if jnp.dtype(factors) == jnp.float32:
        return operation

    def call(x: jax.Array, kernel: jax.Array, *args: Any, **options: Any) -> jax.Array:
        def product(x: jax.Array, kernel: jax.Array, **more: Any) -> jax.Array:
            return operation(x.astype(factors), kernel.astype(factors), *args, **options, **more)

        @jax.custom_vjp
        def widened(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return product(x, kernel, preferred_element_type=jnp.float32)

        def backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
            # JAX's own gradient of `widened` would multiply in float32. Without the barrier the compiler for TPUs would
            # compute the cotangent anew in the kernel of each product.
            return jax.vjp(product, *residuals)[1](lax.optimization_barrier(cotangent.astype(factors)))

        widened.defvjp(lambda x, kernel: (widened(x, kernel), (x, kernel)), backward)
        return widened(x, kernel)

    return call
