"""`python -m benchmarks NAME`: measures one table, prints it as Markdown, and writes it as JSON.

    python -m benchmarks patch_sum             the patch sum's kernels, compared with XLA and PyTorch
    python -m benchmarks step --json=step.json the whole joint step, compared with the same model in PyTorch
    python -m benchmarks compile --topology=v5e:2x2   what the compiler estimates for chips that need not be here
    python -m benchmarks device --pack=packs/food256 --out=OUT --pretrain_steps=2000 --joint_steps=2000

The comparisons need PyTorch (pip install torch==2.13.0); without it their columns are left out. Nothing else should run
on the machine meanwhile. Its load at the start is recorded with the numbers.
"""

import importlib
import json
import os
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

# JAX and PyTorch share the GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

TABLES = ("patch_sum", "relation", "attention", "step", "input", "startup", "growth")
NAMES = (*TABLES, "compile", "device")

_JSON = flags.DEFINE_string("json", None, "File for the rows as JSON, with versions and device.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs, of which the median is reported.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Run all of the code with the least work; the numbers mean nothing.")
_PACK = flags.DEFINE_string("pack", "", "A pack of 256-pixel photos (colorjax data); by default the sample.")
_PHOTOS = flags.DEFINE_string("photos", "", "A folder of photo files for `input`; by default made from the sample.")
_OUT = flags.DEFINE_string("out", "", "Folder for the tables and the run of `device`.")
_PRETRAIN_STEPS = flags.DEFINE_integer("pretrain_steps", 0, "Pretraining steps of the run of `device`.")
_JOINT_STEPS = flags.DEFINE_integer("joint_steps", 0, "Joint steps of the run of `device`; 0 leaves the run out.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:2x2", "Chips that `compile` compiles for, by commas: v5e:2x2, h100:1, …"
)
_PROGRAMS = flags.DEFINE_string(
    "programs",
    "joint",
    "What `compile` compiles, by commas: joint, pretrain, evaluate, predict; or parts of the joint step: "
    "augmentation, patch_attention, output_attention, color_loss.",
)
_CONFIG = config_flags.DEFINE_config_file("config", "configs/paper.py", "The configuration that `compile` compiles.")
_PER_CHIP = flags.DEFINE_integer(
    "per_chip", 0, "Photos a chip for `compile`; 0 is the stage's batch_size for each chip."
)
_CLASSES = flags.DEFINE_integer("classes", 101, "Class labels for `compile`.")


def main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[1] not in NAMES:
        raise app.UsageError(f"name one of {', '.join(NAMES)}, not {argv[1:]}")
    if argv[1] == "compile":
        from benchmarks.compile import prepare_environment

        prepare_environment(_TOPOLOGY.value)
    from benchmarks import measure
    from colorjax.cli.terminal import log_to_terminal

    log_to_terminal()
    settings = measure.Settings(
        repeats=1 if _QUICK.value else _REPEATS.value,
        quick=_QUICK.value,
        pack=_PACK.value,
        photos=_PHOTOS.value,
        out=_OUT.value,
        pretrain_steps=_PRETRAIN_STEPS.value,
        joint_steps=_JOINT_STEPS.value,
        topology=_TOPOLOGY.value,
        programs=_PROGRAMS.value,
        config=_CONFIG.value,
        per_chip=_PER_CHIP.value,
        classes=_CLASSES.value,
    )
    record: dict[str, Any] = {"environment": measure.environment() | {"quick": settings.quick}}
    table = importlib.import_module(f"benchmarks.{argv[1]}")
    record["title"] = table.TITLE
    record["rows"] = table.rows(settings)
    shown = record["environment"]
    flat = [{name: value for name, value in row.items() if not isinstance(value, list)} for row in record["rows"]]
    print(f"\n{table.TITLE}\n\n{measure.markdown(flat)}\n")
    print(
        f"{shown['command']}: {shown['device']}, {shown['cores']} cores, load {shown['load']:.1f}, {shown['versions']}"
    )
    if settings.quick:
        print("quick: these numbers mean nothing")
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
