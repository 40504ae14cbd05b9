"""A trained colorizer for other programs: docs/export.md says how each of them loads it.

    python -m colorjax.export --workdir=runs/paper --format=safetensors --out=FOLDER

Every format is a new folder with config.json and classes.json, and in it:

    safetensors, npz   the parameters (trained.save_trained)
    stablehlo          model.stablehlo, the program with its parameters, for JAX on CPU, CUDA and TPU
    onnx               model.onnx, the same for ONNX Runtime and its like
    hub                safetensors and README.md, a model card: ready for the Hugging Face Hub
"""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import export as jax_export
from ml_collections import ConfigDict

from colorjax import color, model_card
from colorjax.progress import log_to_terminal
from colorjax.trained import MAX_SHARD_SIZE, Trained, load_trained, new_folder, save_trained

_log = logging.getLogger("colorjax.export")  # also when it is run as __main__

FORMATS = ("safetensors", "npz", "stablehlo", "onnx", "hub")
PLATFORMS = ("cpu", "cuda", "tpu")
LEAST_TEMPERATURE = 1e-6
"""What a program takes a lower temperature for, 0 included: practically the mode."""


def export(
    workdir: str | Path,
    out: str | Path,
    *,
    format: str,
    dtype: str = "float32",
    max_shard_size: int = MAX_SHARD_SIZE,
    statistics_batches: int = 0,
    data_dir: str | Path | None = None,
) -> None:
    """Writes a colorizer into a new folder.

    Args:
        workdir: of a run, or a portable folder.
        out: must not exist yet, or be empty.
        format: one of FORMATS.
        dtype: of the tensors in files, as trained.save_trained; a program is float32.
        max_shard_size: bytes of a safetensors file at most, as there.
        statistics_batches: training batches over which BatchNorm's statistics are computed anew
            (statistics.of_training); 0 keeps those that there are.
        data_dir: where the photos for that are; None is the run's own data.dir.

    Raises:
        FileExistsError: if `out` holds something.
        FileNotFoundError, ValueError: as trained.load_trained and trained.save_trained.
        ImportError: if the format needs a package that is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    if format in ("stablehlo", "onnx") and dtype != "float32":
        raise ValueError(f"dtype is {dtype!r}, but a program ({format}) is float32")
    trained, out = load_trained(workdir), Path(out)
    if statistics_batches:
        from colorjax import statistics  # which needs the photos, and what reads them

        stats = statistics.of_training(trained, data_dir or trained.config.data.dir, batches=statistics_batches)
        trained = replace(trained, stats=stats)
    if format == "stablehlo":
        with new_folder(trained, out) as folder:
            (folder / "model.stablehlo").write_bytes(to_stablehlo(trained))
    elif format == "onnx":
        try:
            import onnx

            from colorjax import onnx_graph
        except ImportError as error:
            raise ImportError("format=onnx needs a package: pip install onnx") from error
        with new_folder(trained, out) as folder:
            onnx.save(onnx_graph.build(trained, least_temperature=LEAST_TEMPERATURE), folder / "model.onnx")
    elif format == "hub":
        card = model_card.render(trained, Path(workdir))
        save_trained(trained, out, dtype=dtype, max_shard_size=max_shard_size)
        (out / "README.md").write_text(card)
    else:
        save_trained(trained, out, format=format, dtype=dtype, max_shard_size=max_shard_size)
    _log.info("%s: the colorizer of %s, step %d, as %s", out, workdir, trained.step, format)


def to_stablehlo(trained: Trained) -> bytes:
    """The colorizer as one program for CPU, CUDA and TPU, with its parameters inside: what `load_stablehlo` reads."""
    config: Any = ConfigDict(json.loads(trained.config.to_json()))
    config.model.dtype = "float32"  # not what the device of this very machine would choose
    program = replace(trained, config=config).program()

    def colorize(l: jax.Array, global_l: jax.Array, temperature: jax.Array) -> dict[str, jax.Array]:
        outputs, _ = program(trained.params, trained.stats, l, global_l=global_l, train=False)
        ab = outputs.color
        if ab.shape[-1] != 2:
            ab = color.annealed_mean(ab / jnp.maximum(temperature, LEAST_TEMPERATURE), temperature=1.0)
        return {"ab": ab, "class_logits": outputs.class_logits}

    least = _least_size(config) // 8
    b, h, w = jax_export.symbolic_shape("b, h, w", constraints=[f"h >= {least}", f"w >= {least}"])
    size = config.data.image_size
    shapes = ((b, 8 * h, 8 * w, 1), (b, size, size, 1), ())
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return bytes(jax_export.export(jax.jit(colorize), platforms=PLATFORMS)(*arguments).serialize())


def load_stablehlo(path: str | Path) -> jax_export.Exported:
    """The program in a file `model.stablehlo`; it needs nothing of colorjax but these lines.

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
    except Exception as error:  # whatever the flatbuffer's reader stumbles over
        raise ValueError(f"{path} is no program of jax.export, or is damaged ({error!r})") from error


def _least_size(config: Any) -> int:
    """The least height and width in pixels: what training takes, and what the reflections around a patch need."""
    least = 32
    for level, kernel in enumerate(config.model.patch_kernels if config.model.patch_attention else ()):
        rows = kernel // 2 + 1
        least = max(least, -(-rows * 2 ** (level + 1) // 8) * 8)
    return least


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every setting is a --flag")
    values = flags.FLAGS
    log_to_terminal()
    export(
        values.workdir,
        values.out,
        format=values.format,
        dtype=values.dtype,
        max_shard_size=values.max_shard_size,
        statistics_batches=values.statistics_batches,
        data_dir=values.data_dir,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The --workdir of train.py, or an exported folder of tensors.", required=True)
    flags.DEFINE_enum("format", None, FORMATS, "What to write.", required=True)
    flags.DEFINE_string("out", None, "The new folder.", required=True)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Of the tensors in files.")
    flags.DEFINE_integer("max_shard_size", MAX_SHARD_SIZE, "Bytes of a safetensors file at most.", lower_bound=1)
    flags.DEFINE_integer(
        "statistics_batches",
        0,
        "Compute BatchNorm's statistics anew over so many training batches; for averaged weights, some hundred.",
        lower_bound=0,
    )
    flags.DEFINE_string("data_dir", None, "Where the photos for that are, if they have moved.")
    app.run(_main)
