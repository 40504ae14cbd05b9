"""A trained colorizer for other programs: docs/export.md says how each of them loads it.

    python -m colorjax export --workdir=runs/paper --format=safetensors --out=FOLDER

Every format is a new folder with config.json and classes.json, and in it:

    safetensors, npz   the parameters (trained.save_trained)
    stablehlo          model.stablehlo, the program with its parameters, for JAX on CPU, CUDA and TPU
    onnx               model.onnx, the same for ONNX Runtime and its like
    hub                safetensors and README.md, a model card: ready for the Hugging Face Hub
"""

import logging
from dataclasses import replace
from pathlib import Path

from colorjax.export import model_card
from colorjax.export.stablehlo import LEAST_TEMPERATURE, to_stablehlo
from colorjax.run.portable import MAX_SHARD_SIZE
from colorjax.run.trained import load_trained, new_folder, save_trained

_log = logging.getLogger(__name__)

FORMATS = ("safetensors", "npz", "stablehlo", "onnx", "hub")


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
        from colorjax.training import statistics  # which reads photos; other exports need none

        stats = statistics.of_training(trained, data_dir or trained.config.data.dir, batches=statistics_batches)
        trained = replace(trained, stats=stats)
    if format == "stablehlo":
        with new_folder(trained, out) as folder:
            (folder / "model.stablehlo").write_bytes(to_stablehlo(trained))
    elif format == "onnx":
        try:
            import onnx

            from colorjax.export import onnx_graph
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
