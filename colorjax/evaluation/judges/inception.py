"""The InceptionV3 of the Fréchet inception distance (Heusel et al., NeurIPS 2017).

It is TensorFlow's network of 2015-12-05 as in the package pytorch-fid, with the names of torchvision's InceptionV3.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from colorjax import color
from colorjax.evaluation.judges.layers import batch_norm, convolution, max_pool
from colorjax.evaluation.judges.weights import Weights, read_npz, require_network

REMEDY = (
    "make it from the weights that pytorch-fid downloads, where PyTorch is: python -c 'import torch, numpy; "
    's = torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True); '
    'numpy.savez("inception.npz", **{k: v.numpy() for k, v in s.items()})\''
)

SIZE = 299  # pixels: the network's input


def load(path: str | Path) -> Weights:
    """Reads the state dict of pytorch-fid's network from a .npz file (see `REMEDY`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or belongs to another network.
    """
    return require_network(features, read_npz(path, remedy=REMEDY), source=str(path))


def features(weights: Weights, rgb: jax.Array) -> jax.Array:
    """The features between which FID is computed.

    Args:
        weights: see `load`.
        rgb: [B, H, W, 3], uint8 (0…255) or floating (0…1); resized to 299×299 without antialiasing, as in pytorch-fid.

    Returns:
        float32 [B, 2048], the last feature map averaged over pixels.
    """
    rgb = color.unit_rgb(rgb)
    x = 2 * jax.image.resize(rgb, (len(rgb), SIZE, SIZE, 3), "bilinear", antialias=False) - 1
    unit = partial(_unit, weights)
    x = unit("Conv2d_1a_3x3", x, stride=2)
    x = unit("Conv2d_2a_3x3", x)
    x = max_pool(unit("Conv2d_2b_3x3", x, padding=(1, 1)))
    x = unit("Conv2d_3b_1x1", x)
    x = max_pool(unit("Conv2d_4a_3x3", x))
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _a(weights, name, x)
    x = _b(weights, "Mixed_6a", x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _c(weights, name, x)
    x = _d(weights, "Mixed_7a", x)
    x = _e(weights, "Mixed_7b", x, _average(x))
    # Not an average: TensorFlow's network of that date has a max pool here, and FID has kept it.
    x = _e(weights, "Mixed_7c", x, max_pool(x, stride=1, padding=1))
    return x.mean(axis=(1, 2))


def _unit(
    weights: Weights, name: str, x: jax.Array, *, stride: int = 1, padding: tuple[int, int] = (0, 0)
) -> jax.Array:
    """Convolution, BatchNorm and ReLU; `padding` is of height and width."""
    y = convolution(weights, f"{name}.conv", x, stride=stride, padding=[(p, p) for p in padding])
    return jax.nn.relu(batch_norm(weights, f"{name}.bn", y))


def _chain(weights: Weights, name: str, x: jax.Array, *paddings: tuple[int, int]) -> jax.Array:
    """Applies the units name_1, name_2, … with these paddings."""
    for i, padding in enumerate(paddings, start=1):
        x = _unit(weights, f"{name}_{i}", x, padding=padding)
    return x


def _average(x: jax.Array) -> jax.Array:
    """Averages 3×3 pixels, without counting the padding."""
    return _sum(x) / _sum(jnp.ones_like(x[:1, ..., :1]))


def _sum(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def _a(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    branches = (
        _unit(weights, f"{name}.branch1x1", x),
        _chain(weights, f"{name}.branch5x5", x, (0, 0), (2, 2)),
        _chain(weights, f"{name}.branch3x3dbl", x, (0, 0), (1, 1), (1, 1)),
        _unit(weights, f"{name}.branch_pool", _average(x)),
    )
    return jnp.concatenate(branches, axis=-1)


def _b(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    double = _chain(weights, f"{name}.branch3x3dbl", x, (0, 0), (1, 1))
    branches = (
        _unit(weights, f"{name}.branch3x3", x, stride=2),
        _unit(weights, f"{name}.branch3x3dbl_3", double, stride=2),
        max_pool(x),
    )
    return jnp.concatenate(branches, axis=-1)


def _c(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    branches = (
        _unit(weights, f"{name}.branch1x1", x),
        _chain(weights, f"{name}.branch7x7", x, (0, 0), (0, 3), (3, 0)),
        _chain(weights, f"{name}.branch7x7dbl", x, (0, 0), (3, 0), (0, 3), (3, 0), (0, 3)),
        _unit(weights, f"{name}.branch_pool", _average(x)),
    )
    return jnp.concatenate(branches, axis=-1)


def _d(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    single = _unit(weights, f"{name}.branch3x3_1", x)
    sevens = _chain(weights, f"{name}.branch7x7x3", x, (0, 0), (0, 3), (3, 0))
    branches = (
        _unit(weights, f"{name}.branch3x3_2", single, stride=2),
        _unit(weights, f"{name}.branch7x7x3_4", sevens, stride=2),
        max_pool(x),
    )
    return jnp.concatenate(branches, axis=-1)


def _e(weights: Weights, name: str, x: jax.Array, pooled: jax.Array) -> jax.Array:
    single = _unit(weights, f"{name}.branch3x3_1", x)
    double = _chain(weights, f"{name}.branch3x3dbl", x, (0, 0), (1, 1))
    branches = (
        _unit(weights, f"{name}.branch1x1", x),
        _unit(weights, f"{name}.branch3x3_2a", single, padding=(0, 1)),
        _unit(weights, f"{name}.branch3x3_2b", single, padding=(1, 0)),
        _unit(weights, f"{name}.branch3x3dbl_3a", double, padding=(0, 1)),
        _unit(weights, f"{name}.branch3x3dbl_3b", double, padding=(1, 0)),
        _unit(weights, f"{name}.branch_pool", pooled),
    )
    return jnp.concatenate(branches, axis=-1)
