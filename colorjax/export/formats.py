"""Writes a trained colorizer for other programs; docs/export.md shows how each of them loads it.

Every format is a new folder with config.json and classes.json, and in it:

    safetensors, npz   the parameters and the prior (trained.save_trained)
    stablehlo          model.stablehlo, the program with its parameters, for JAX on CPU, CUDA and TPU
    onnx               model.onnx, the same for ONNX Runtime and others
    hub                safetensors and README.md, a model card: ready for the Hugging Face Hub
"""

import logging
from dataclasses import replace
from pathlib import Path

from colorjax import atomic
from colorjax.export import model_card
from colorjax.export.stablehlo import LEAST_TEMPERATURE, to_stablehlo
from colorjax.run import portable
from colorjax.run.locate import locate
from colorjax.run.portable import MAX_SHARD_SIZE
from colorjax.run.trained import load_trained, new_folder, save_trained, write_trained
from colorjax.training.statistics import training_statistics

_log = logging.getLogger(__name__)

FORMATS = ("safetensors", "npz", "stablehlo", "onnx", "hub")


def export(
    checkpoint: str | Path,
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
        checkpoint: a run's workdir, an exported folder, or the name of shipped weights.
        out: must not exist yet, or be empty.
        format: one of FORMATS.
        dtype: of the tensors in files, as in `trained.save_trained`; a program is float32.
        max_shard_size: of a safetensors file, in bytes.
        statistics_batches: number of training batches over which BatchNorm's statistics are computed anew
            (training/statistics.py); 0 keeps the statistics of the checkpoint.
        data_dir: where the training photos are, for new statistics and for the card's name of the data set; None is
            the run's own data.dir.

    Raises:
        FileExistsError: if `out` holds something.
        PermissionError: if nothing can be written to the folder that `out` is in.
        FileNotFoundError, ValueError: as `trained.load_trained`, `trained.save_trained` and, for new statistics,
            `data.train_batches`; also for new statistics with the format hub, whose card would not describe them.
        ImportError: if the format needs a package that is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    if format in ("stablehlo", "onnx") and dtype != "float32":
        raise ValueError(f"dtype is {dtype!r}, but a program ({format}) is float32")
    if format == "hub" and statistics_batches:
        raise ValueError(
            "statistics_batches changes the colorizer after the metrics for its card were measured: export it as "
            "safetensors first, evaluate that folder, and export the folder as hub"
        )
    folder, out = locate(checkpoint), Path(out)
    atomic.require_writable(out.absolute().parent)
    trained = load_trained(folder)
    if statistics_batches:
        stats = training_statistics(trained, batches=statistics_batches, data_dir=data_dir)
        trained = replace(trained, stats=stats)
    if format == "stablehlo":
        with new_folder(trained, out) as partial:
            (partial / "model.stablehlo").write_bytes(to_stablehlo(trained))
    elif format == "onnx":
        try:
            import onnx

            from colorjax.export import onnx_graph
        except ImportError as error:
            raise ImportError("format=onnx needs a package: pip install onnx") from error
        with new_folder(trained, out) as partial:
            onnx.save(onnx_graph.build(trained, least_temperature=LEAST_TEMPERATURE), partial / "model.onnx")
    elif format == "hub":
        with new_folder(trained, out) as partial:
            write_trained(trained, partial, format="safetensors", dtype=dtype, max_shard_size=max_shard_size)
            card = model_card.render(trained, folder, files=portable.files(partial), data_dir=data_dir)
            (partial / "README.md").write_text(card)
    else:
        save_trained(trained, out, format=format, dtype=dtype, max_shard_size=max_shard_size)
    _log.info("%s: the colorizer of %s, step %d, as %s", out, folder, trained.step, format)
