"""Which devices a program is for, as far as that can be told while it is traced."""

import os

import jax


def takes_cpu_kernels(*arrays: jax.Array) -> bool:
    """Whether `cpu_kernels` can serve: arrays of known sizes, none of them 0, on a single CPU that has POSIX' threads.

    XLA does not divide a kernel over devices, and of symbolic sizes (jax.export) there is none.
    """
    known = all(isinstance(size, int) and size for x in arrays for size in x.shape)
    return known and os.name == "posix" and jax.default_backend() == "cpu" and jax.device_count() == 1
