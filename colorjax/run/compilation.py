"""Compiling: what XLA is told, and where compiled programs are kept."""

import contextlib
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

# Of XLA's YNNPACK fusions those of products and reductions are worth a quarter of the joint step. That of
# convolutions would take their filter gradients as well, at a half to a fifth of the speed of XLA's own.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options() -> dict[str, str]:
    """The options that a step is compiled with on this process's devices."""
    return _CPU if jax.default_backend() == "cpu" and _cpu_options_known() else {}


@functools.cache
def _cpu_options_known() -> bool:
    # The option is experimental: an XLA that no longer has it would refuse every program.
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU).lower(jnp.zeros(())).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk, so that the next process starts in seconds. For the commands.

    JAX_COMPILATION_CACHE_DIR says where ("" is nowhere); by default it is the user's cache directory. The cache's keys
    hold the program, the versions and the processor's features, so a wrong program is never taken.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(RuntimeError):  # a user without a home directory keeps none
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(caches / "colorjax"))
        # Prediction runs many small programs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        # JAX asks for the directory once, at the first program, which may have been before.
        compilation_cache.reset_cache()
