"""Automatic colorization of grayscale images with self-attention, in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colorjax.photos.predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    # On first use, since `import colorjax` and `colorjax --help` need no JAX.
    if name == "Predictor":
        from colorjax.photos.predictor import Predictor

        return Predictor
    if name == "__version__":
        from importlib.metadata import version

        return version("colorjax")
    raise AttributeError(f"module 'colorjax' has no attribute {name!r}")
