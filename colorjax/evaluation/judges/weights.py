"""Reads pretrained weights into numpy arrays. No file can make its reader run code.

`Weights` have PyTorch's names and layout: a convolution's kernel is [out, in, height, width].
"""

import collections
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colorjax import atomic
from colorjax.run.trees import checksum

Weights = dict[str, Any]
"""Parameter name -> array."""

_CHECKSUM = "sha256"  # entry of a .npz file beside the weights
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before version 1.6


def write_npz(path: str | Path, weights: Weights) -> None:
    """Writes weights and their checksum to a .npz file."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **weights, **{_CHECKSUM: np.array(checksum(weights))})
    atomic.write_bytes(path, content.getvalue())


def read_npz(path: str | Path, *, remedy: str) -> Weights:
    """Reads weights from a .npz file.

    Args:
        path: the file.
        remedy: how to make it, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a .npz file, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {remedy}")
    if path.suffix != ".npz":
        raise ValueError(f"{path} is not a .npz file, the only kind that is read here; {remedy}")
    try:
        # Opened here, since NumPy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as f:
            weights = {name: f[name] for name in f.files}
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen types for damaged files
        raise ValueError(f"{path} is not a readable .npz file ({type(error).__name__}); {remedy}") from error
    expected = weights.pop(_CHECKSUM, None)
    if expected is not None and str(expected) != checksum(weights):
        raise ValueError(f"{path} is damaged: its weights do not match their checksum; {remedy}")
    return weights


def require_network(network: Callable[[Weights, jax.Array], Any], weights: Weights, *, source: str) -> Weights:
    """The weights as float32, if the network can run with them.

    Raises:
        ValueError: a weight is missing, or has another shape.
    """
    floats = {name: np.asarray(x, np.float32) for name, x in weights.items()}
    try:
        jax.eval_shape(network, floats, jnp.zeros((1, 64, 64, 3)))
    except KeyError as error:
        raise ValueError(f"{source} lacks the weight {error}: it belongs to another network") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} belongs to another network, whose weights have other shapes") from error
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


class _Dtype:
    """Takes the place of a pickled numpy.dtype; only little-endian float32 is accepted."""

    def __init__(self, code: str, *_: Any):
        self._code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if (self._code, state[1]) != ("f4", "<"):
            raise pickle.UnpicklingError("its arrays are not float32")


class _Array:
    """Takes the place of a pickled numpy.ndarray."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, _, fortran, content = state
        self.value = np.frombuffer(content, "<f4").reshape(shape, order="F" if fortran else "C")


_KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    """Reads dicts of arrays. Every name in a file stands for something harmless defined here, or is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(key, dtype)


# What unpickling a damaged file raises.
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)


def read_pickled_arrays(file: BinaryIO, *, source: str) -> dict[str, np.ndarray]:
    """Reads a pickle of nested dicts of float32 numpy arrays: path, joined by slashes -> array.

    Raises:
        ValueError: the file is damaged, or holds anything else.
    """
    arrays: dict[str, np.ndarray] = {}

    def collect(path: str, node: Any) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                collect(f"{path}/{name}" if path else str(name), child)
        else:
            arrays[path] = node.value

    try:
        collect("", _Unpickler(file).load())
    except _DAMAGED as error:
        raise ValueError(f"{source} is not a pickle of numpy arrays: {error}") from error
    return arrays


def read_torch(path: str | Path) -> Weights:
    """Reads the state dict in a file of torch.save before PyTorch 1.6, without PyTorch.

    Raises:
        ValueError: the file is damaged, or holds anything but tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as f:
            if _Unpickler(f).load() != _TORCH_MAGIC:
                raise ValueError("the magic number is missing")
            for _ in ("protocol", "system"):
                _Unpickler(f).load()
            tensors = _Unpickler(f).load()
            keys = _Unpickler(f).load()
            dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
            storages = {key: _storage(f, dtypes[key]) for key in keys}
        return {
            name: np.lib.stride_tricks.as_strided(
                _from_offset(storages[t.storage.key], t),
                t.shape,
                [stride * t.storage.dtype.itemsize for stride in t.stride],
            ).copy()
            for name, t in tensors.items()
        }
    except _DAMAGED as error:
        raise ValueError(f"{path} is not a state dict in PyTorch's old format: {error}") from error


def _storage(f: BinaryIO, dtype: np.dtype) -> np.ndarray:
    count = int.from_bytes(f.read(8), "little", signed=True)
    data = f.read(count * dtype.itemsize)
    if count < 0 or len(data) < count * dtype.itemsize:
        raise ValueError("it is cut off")
    return np.frombuffer(data, dtype)


def _from_offset(storage: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """The storage from the tensor's first element on; the last element must lie in it."""
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride, strict=True))
    if min((tensor.offset, last, *tensor.stride)) < 0 or last >= len(storage):
        raise ValueError("a tensor reaches beyond its data")
    return storage[tensor.offset :]
