"""`colorjax train`, and train.py: trains both stages of a configuration, then evaluates the colorizer.

Every field of the configuration can be set: `--config.joint.steps=100`, `--config.data.dir=…`. One ablation row:
`--config=configs/paper.py:no_fusion`. The same command again resumes; SIGTERM saves and stops.
"""

import jax
from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/quickstart.py", "The configuration file, optionally `file.py:ROW`."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "runs/quickstart",
    "Where config.json, checkpoints, metrics and pictures go. On several hosts, one that all see.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Start jax.distributed. TPU pods, Slurm and Open MPI are found by themselves; elsewhere give the "
    "three flags below.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")


def main() -> None:
    """Runs the command."""
    app.run(_main)


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every setting is a --flag")
    if _DISTRIBUTED.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    # After the flags are read, so that --help is quick.
    from colorjax.cli.terminal import log_to_terminal
    from colorjax.evaluation.evaluate import evaluate
    from colorjax.run import compilation
    from colorjax.training.loop import train

    log_to_terminal()
    compilation.keep_compiled_programs()
    train(_CONFIG.value, _WORKDIR.value)
    if _CONFIG.value.stage != "pretrain" and _CONFIG.value.joint.steps > 0:
        evaluate(_WORKDIR.value, split="test")
