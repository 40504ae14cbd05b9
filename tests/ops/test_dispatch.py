"""Which form a program takes on which platform, and what else depends on this process's devices."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from colorjax.ops import dispatch


def _lowered(platform: str, **forms: Any) -> str:
    run = jax.jit(lambda x: dispatch.by_platform(x, default=jnp.sin, **forms))
    return run.trace(jnp.ones(3)).lower(lowering_platforms=(platform,)).as_text()


def test_a_program_takes_the_form_of_the_platform_that_it_is_lowered_for():
    forms: dict[str, Any] = {"cpu": jnp.cos, "cuda": jnp.exp, "rocm": jnp.exp, "tpu": jnp.tanh}
    operations = {"cpu": "cosine", "cuda": "exponential", "rocm": "exponential", "tpu": "tanh"}
    for platform, operation in operations.items():
        text = _lowered(platform, **forms)
        assert {name for name in ("sine", *operations.values()) if f"stablehlo.{name} " in text} == {operation}
    assert all("stablehlo.sine" in _lowered(platform) for platform in operations)
    assert "stablehlo.sine" in _lowered("tpu", cpu=jnp.cos, cuda=None)


def test_llvm_kernels_need_one_cpu_and_known_sizes(monkeypatch):
    assert dispatch.llvm_kernels_run((2, 3), (1,))
    assert not dispatch.llvm_kernels_run((2, 3), (2, 0))
    (symbol,) = jax.export.symbolic_shape("n")
    assert not dispatch.llvm_kernels_run((symbol, 3))
    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 2)
        assert not dispatch.llvm_kernels_run((2, 3))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not dispatch.llvm_kernels_run((2, 3))


@pytest.mark.parametrize(("backend", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_cpus_multiply_fastest_in_float32(backend, dtype, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert dispatch.fastest_dtype() == jnp.dtype(dtype)
