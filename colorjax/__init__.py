"""Automatic colorization of grayscale images with self-attention, in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colorjax.photos.predictor import Predictor

__all__ = ["Predictor", "__version__"]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    # On first use, since `import colorjax` and `colorjax --help` need no JAX.
    if name == "Predictor":
        from colorjax.photos.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'colorjax' has no attribute {name!r}")
