"""The colorizer as one StableHLO program, lowered for CPU, CUDA and TPU."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export
from ml_collections import ConfigDict

from colorjax import color
from colorjax.run.trained import Trained

PLATFORMS = ("cpu", "cuda", "tpu")
LEAST_TEMPERATURE = 1e-6
"""A program raises lower temperatures to this one, 0 included, which practically gives the mode."""


def to_stablehlo(trained: Trained) -> bytes:
    """The colorizer as one program for CPU, CUDA and TPU, with its parameters inside: what `load_stablehlo` reads."""
    config: Any = ConfigDict(json.loads(trained.config.to_json()))
    config.model.dtype = "float32"  # and not what `auto` would choose for this machine's device
    program, decoder = replace(trained, config=config).program(), trained.decoder()

    def colorize(l: jax.Array, global_l: jax.Array, temperature: jax.Array) -> dict[str, jax.Array]:
        outputs, _ = program(trained.params, trained.stats, l, global_l=global_l, train=False)
        ab = outputs.color
        if ab.shape[-1] != 2:
            logits = decoder.adjusted(ab) / jnp.maximum(temperature, LEAST_TEMPERATURE)
            ab = color.annealed_mean(logits, temperature=1.0)
        return {"ab": decoder.saturation * ab, "class_logits": outputs.class_logits}

    least = _least_size(config) // 8
    b, h, w = jax_export.symbolic_shape("b, h, w", constraints=[f"h >= {least}", f"w >= {least}"])
    size = config.data.image_size
    shapes = ((b, 8 * h, 8 * w, 1), (b, size, size, 1), ())
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return bytes(jax_export.export(jax.jit(colorize), platforms=PLATFORMS)(*arguments).serialize())


def load_stablehlo(path: str | Path) -> jax_export.Exported:
    """The program in a file `model.stablehlo`. Without colorjax, `jax.export.deserialize` loads it.

    Its `call(l, global_l, temperature)` takes float32 arrays, and may be jitted:
        l: [B, H, W, 1], 0…100; H and W multiples of 8, 32 or more.
        global_l: [B, S, S, 1]: the same photos at the size that the model was trained on, `in_avals[1].shape[1]`, or
            those whose style is wanted.
        temperature: [], of the annealed mean; a regression ignores it.
    It returns a dict of `ab`, [B, H/2, W/2, 2] (H/4, W/4 where model.output_stride is 4), and `class_logits`,
    [B, classes].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or from a version of JAX that this one cannot read.
    """
    try:
        return jax_export.deserialize(bytearray(Path(path).read_bytes()))
    except FileNotFoundError:
        raise
    except Exception as error:  # the flatbuffer's reader raises many types
        raise ValueError(f"{path} is damaged or not a program of jax.export ({str(error)[:100]!r})") from error


def _least_size(config: Any) -> int:
    """The least height and width in pixels: what training takes, and what the reflections around a patch need."""
    least = 32
    for level, kernel in enumerate(config.model.patch_kernels if config.model.patch_attention else ()):
        rows = kernel // 2 + 1
        least = max(least, -(-rows * 2 ** (level + 1) // 8) * 8)
    return least
