"""The mesh of all devices, and the placement of arrays on it."""

import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# How JAX's errors name an exchange with other hosts: on CPUs, on GPUs, and by its coordination service.
_EXCHANGE = re.compile(r"\bGloo\b|\bNCCL\b|\b[Bb]arrier\b|\bUNAVAILABLE\b|\bDEADLINE_EXCEEDED\b")


def make_mesh() -> Mesh:
    """All devices of all hosts in one axis, `data`."""
    devices = jax.devices()
    # jax.make_mesh defaults to Explicit axes, which refuse what BatchNorm does to a sharded batch.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: the state."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Split along the first axis: a batch. Statistics over a batch are then global by construction."""
    return NamedSharding(mesh, PartitionSpec("data"))


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """This host's share of a batch (a tree of numpy arrays) as global arrays, split over all devices."""
    sharding = by_batch(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array split by_batch that lie on this host's devices, in order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def barrier(name: str) -> None:
    """Waits until every host has reached the barrier of this name; with one host, returns at once."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def is_lost_host(error: BaseException) -> bool:
    """Whether the error is JAX's of an exchange with other hosts, which fails when one of them has ended."""
    if jax.process_count() == 1 or not isinstance(error, (jax.errors.JaxRuntimeError, ValueError)):
        return False
    return bool(_EXCHANGE.search(str(error)))
