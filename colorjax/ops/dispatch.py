"""Picks the implementation of an operation: by platform, by shape, and by what was measured (docs/performance.md).

| operation | CPU | NVIDIA GPU | elsewhere |
|---|---|---|---|
| sum over patches | LLVM kernels | sums of gathered values (gpu.py), also on AMD | XLA |
| patchwise attention's last map and sum | the two in turn | the two in turn, also on AMD | one offset at a time |
| softmax attention | LLVM kernels | cuDNN for two-byte floats, else XLA | XLA |
| gradient of the halving convolution | four convolutions | XLA | XLA |

What counts is the platform that a program is lowered for, which may be another than the one it is traced on. Where that
cannot be known, this module asks for the devices of this process; nothing else in ops/ or model/ does. An operation's
argument `implementation` overrides the choice.
"""

import functools
import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

Form = Callable[..., Any]


def by_platform(*operands: Any, default: Form, **forms: Form | None) -> Any:
    """Calls the form for the platform that the program is lowered for, or `default` if that has none.

    Args:
        operands: arrays, or trees of them.
        default: the form for all other platforms.
        forms: by JAX's names of platforms: cpu, cuda, rocm, tpu. None is no form.
    """
    known = {platform: form for platform, form in forms.items() if form is not None}
    return lax.platform_dependent(*operands, default=default, **known) if known else default(*operands)


def llvm_kernels_run(*shapes: tuple[Any, ...]) -> bool:
    """Whether LLVM kernels can take arrays of these shapes in this process.

    They want known sizes, none of them 0, and a single CPU, over which XLA has nothing to divide. If the machine or the
    installed packages rule them out, a warning says so, once.
    """
    # In this order: the question for the backend also starts it, which must be before a kernel is registered.
    known = all(isinstance(size, int) and size for shape in shapes for size in shape)
    single_cpu = os.name == "posix" and jax.default_backend() == "cpu" and jax.device_count() == 1
    return known and single_cpu and _llvm_works()


@functools.cache
def _llvm_works() -> bool:
    try:
        # Imported here, as LLVM takes a tenth of a second.
        from colorjax.ops.cpu import llvm

        llvm.check()
    except Exception as error:  # no llvmlite, a processor that LLVM does not know, another interface of jaxlib, …
        warnings.warn(
            f"no LLVM kernels here, so XLA's slower forms run instead: {type(error).__name__}: {str(error)[:160]}. "
            "Try pip install -U llvmlite jax jaxlib.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def has_cudnn_attention(dtype: DTypeLike) -> bool:
    """Whether this process's GPU has cuDNN's flash attention: NVIDIA's from Ampere on, for two-byte floats.

    jax.nn.dot_product_attention asks this process's device as well, while it is traced.
    """
    capability = getattr(jax.devices()[0], "compute_capability", "")
    nvidia = re.fullmatch(r"\d+\.\d+", capability)  # AMD's capability is a name
    return nvidia is not None and float(capability) >= 8 and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def fastest_dtype() -> jnp.dtype:
    """The dtype in which this process's devices multiply fastest: float32 on CPUs, bfloat16 elsewhere."""
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
