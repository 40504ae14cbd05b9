"""Weights of PyTorch networks as numpy arrays, and the layers that they are for. No file is trusted to run code."""

import collections
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Weights = dict[str, Any]
"""PyTorch's name of a parameter -> array, in PyTorch's layout: convolutions [out, in, height, width]."""

_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before version 1.6


def read_npz(path: str | Path, *, convert: str) -> Weights:
    """The weights in a .npz file.

    Args:
        path: of the file.
        convert: the Python that makes it from PyTorch's weights, for the error.

    Raises:
        ValueError: if there is no such file, or it is something else.
    """
    path = Path(path)
    remedy = f"make it with\n  python -c '{convert}'"
    if not path.exists():
        raise ValueError(f"there are no weights at {path}; {remedy}")
    if path.suffix != ".npz":
        raise ValueError(f"{path}: weights are read from .npz alone, for a PyTorch file can run any code; {remedy}")
    try:
        with np.load(path, allow_pickle=False) as f:
            return {name: f[name] for name in f.files}
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no readable .npz file ({error}); {remedy}") from error


def checked(network: Callable[[Weights, jax.Array], Any], weights: Weights, *, source: str) -> Weights:
    """The weights, float32, once the network has been found to run with them.

    Raises:
        ValueError: if it does not: one is missing, or has another shape.
    """
    floats = {name: np.asarray(x, np.float32) for name, x in weights.items()}
    try:
        jax.eval_shape(network, floats, jnp.zeros((1, 64, 64, 3)))
    except KeyError as error:
        raise ValueError(f"{source} lacks the weight {error}: it holds another network's") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} holds weights of other shapes than the network's: {error}") from error
    return floats


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, stride)


_KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    """Of dicts of tensors and nothing else, so that it cannot be made to call anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(key, dtype)


def read_torch(path: str | Path) -> Weights:
    """The state dict in a file of torch.save as it was before PyTorch 1.6, read without PyTorch.

    Raises:
        ValueError: if the file is something else, is damaged, or holds more than tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as f:
            if _Unpickler(f).load() != _MAGIC:
                raise ValueError("it does not begin as one")
            for _ in ("protocol", "system"):
                _Unpickler(f).load()
            tensors = _Unpickler(f).load()
            keys = _Unpickler(f).load()
            dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
            storages = {key: _storage(f, dtypes[key]) for key in keys}
        return {
            name: np.lib.stride_tricks.as_strided(
                _within(storages[t.storage.key], t),
                t.shape,
                [stride * t.storage.dtype.itemsize for stride in t.stride],
            ).copy()
            for name, t in tensors.items()
        }
    except (pickle.UnpicklingError, EOFError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no state dict of PyTorch's old format: {error}") from error


def _storage(f: BinaryIO, dtype: np.dtype) -> np.ndarray:
    count = int.from_bytes(f.read(8), "little", signed=True)
    data = f.read(count * dtype.itemsize)
    if count < 0 or len(data) < count * dtype.itemsize:
        raise ValueError("it is cut off")
    return np.frombuffer(data, dtype)


def _within(storage: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """The storage from the tensor's first element, once the last one is found to lie in it."""
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride, strict=True))
    if min((tensor.offset, last, *tensor.stride)) < 0 or last >= len(storage):
        raise ValueError("a tensor reaches beyond its data")
    return storage[tensor.offset :]


def convolution(
    weights: Weights,
    name: str,
    x: jax.Array,
    *,
    stride: int = 1,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> jax.Array:
    """PyTorch's Conv2d of that name: [B, H, W, in] -> [B, h, w, out], in full float32 on every device."""
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(weights[f"{name}.weight"]),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def depthwise(weights: Weights, name: str, x: jax.Array, *, stride: int = 1) -> jax.Array:
    """PyTorch's Conv2d of that name with a group for each channel and no bias, padded as TensorFlow's SAME."""
    kernel = jnp.asarray(weights[f"{name}.weight"])
    k, size = kernel.shape[-1], -(-x.shape[1] // stride)
    reach = (size - 1) * stride + 1
    padding = max(reach + k - 1 - x.shape[1], 0)
    around = (padding // 2, padding - padding // 2)
    x = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    # A sum of shifted maps: XLA's own grouped convolution takes twenty times as long on CPU.
    total = jnp.zeros((), x.dtype)
    for i, j in np.ndindex(k, k):
        total += kernel[:, 0, i, j] * x[:, i : i + reach : stride, j : j + reach : stride]
    return total


def batch_norm(weights: Weights, name: str, x: jax.Array, *, epsilon: float = 1e-3) -> jax.Array:
    """PyTorch's BatchNorm2d of that name, in evaluation."""
    scale = weights[f"{name}.weight"] / jnp.sqrt(weights[f"{name}.running_var"] + epsilon)
    return x * scale + (weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale)


def max_pool(x: jax.Array, *, stride: int = 2, padding: int = 0) -> jax.Array:
    """The maxima of 3×3 pixels."""
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), around)
