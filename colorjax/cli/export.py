"""`colorjax export`: writes a colorizer for other programs."""

import argparse
from pathlib import Path

from colorjax.cli.arguments import CHECKPOINT, Parser, number
from colorjax.cli.errors import as_usage_error

FORMATS = ("safetensors", "npz", "stablehlo", "onnx", "hub")
DESCRIPTION = """Writes a colorizer into a new folder, for other programs to load.

formats:
  safetensors  the parameters; colorjax and any program that reads safetensors load them
  npz          the parameters, for NumPy
  stablehlo    the program with its parameters, for JAX on CPU, CUDA and TPU
  onnx         the program with its parameters, for ONNX Runtime and others; needs `pip install onnx`
  hub          safetensors and a model card, for the Hugging Face Hub

Each folder also has config.json and classes.json; safetensors, npz and hub have the colors of the training photos,
prior.npz, by which `colorjax evaluate` measures them."""

EXAMPLES = """
colorjax export --checkpoint=runs/paper --format=safetensors --out=exported/paper
colorjax predict old.jpg --checkpoint exported/paper --out colored
colorjax export --format=onnx --out=exported/onnx
"""


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("--checkpoint", "--workdir", metavar="PATH", help=f"the colorizer: {CHECKPOINT}; by default food101")
    add("--format", required=True, choices=FORMATS, help="what to write")
    add("--out", type=Path, required=True, metavar="DIR", help="the new folder")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the tensors in files")
    add("--max-shard-size", type=number(int, 1), metavar="BYTES", help="of a safetensors file, by default 5 GB")
    add(
        "--statistics-batches",
        type=number(int, 1),
        default=0,
        metavar="N",
        help="compute BatchNorm's statistics anew over N training batches; averaged weights (ema) need some hundred",
    )
    add(
        "--data-dir",
        metavar="DIR",
        help="the training photos, for new statistics and the model card; by default the training's config.data.dir",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the folder."""
    from colorjax.cli.terminal import log_to_terminal
    from colorjax.export.formats import export
    from colorjax.run.locate import locate
    from colorjax.run.portable import MAX_SHARD_SIZE

    log_to_terminal()
    with as_usage_error(FileNotFoundError, ValueError, flag="--checkpoint"):
        folder = locate(args.checkpoint)
    export(
        folder,
        args.out,
        format=args.format,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size or MAX_SHARD_SIZE,
        statistics_batches=args.statistics_batches,
        data_dir=args.data_dir,
    )
