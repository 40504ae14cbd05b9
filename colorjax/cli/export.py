"""`colorjax export`: writes a colorizer for other programs."""

from absl import app, flags

from colorjax.cli.terminal import log_to_terminal
from colorjax.export.formats import FORMATS, export
from colorjax.run.portable import MAX_SHARD_SIZE


def main() -> None:
    """Runs the command."""
    flags.DEFINE_string("workdir", None, "The --workdir of train.py, or an exported folder of tensors.", required=True)
    flags.DEFINE_enum("format", None, FORMATS, "What to write.", required=True)
    flags.DEFINE_string("out", None, "The new folder.", required=True)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Of the tensors in files.")
    flags.DEFINE_integer("max_shard_size", MAX_SHARD_SIZE, "Bytes of a safetensors file at most.", lower_bound=1)
    app.run(_main)


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
    )
