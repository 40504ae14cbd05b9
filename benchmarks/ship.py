"""Makes the weights that ship with the package, and their model card, from a training run.

    python -m benchmarks ship --checkpoint=runs/food101 --data-dir=packs/food101

1. exports the newest averaged weights in float16, with BatchNorm's statistics computed anew;
2. takes the decoding of configs/food101_small.py, and fits the rest of it on the validation split: the saturation, so
   that the predicted photos are as colorful as the true ones, and the uncertainty's temperature, so that the
   cross-entropy is least;
3. measures the exported file on the test split, at its own temperature and at 1;
4. writes the folder, with a README.md whose figures are those of step 3, in place of the one that is there.

The run may be training meanwhile. It takes minutes on two CPU cores for 64-pixel photos.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from colorjax import atomic
from colorjax.cli.arguments import CHECKPOINT, Parser, number
from colorjax.evaluation.evaluate import evaluate
from colorjax.export import model_card
from colorjax.export.formats import export
from colorjax.run import compilation, portable
from colorjax.run.config import ADDED_FIELDS, Config
from colorjax.run.trained import load_trained, save_trained
from colorjax.run.trees import flatten
from colorjax.run.workdir import evaluation_dir
from configs import food101_small

_RECIPE = """
## Recipe

```sh
CONFIG=configs/food101_small.py
colorjax data --config=$CONFIG --config.data.source=food101 --config.data.dir=DIR --out=PACK
{teacher}colorjax train --config=$CONFIG --config.data.dir=PACK --workdir=RUN{changes}
python -m benchmarks ship --checkpoint=RUN --data-dir=PACK
```

The last command takes the averaged weights of step {step:,} of {steps:,}, computes BatchNorm's statistics
anew{batches}, rounds to float16, and fits the saturation and the uncertainty's temperature on the
validation split.
{start}"""
_TEACHER = "colorjax teacher --config=$CONFIG --config.data.dir=PACK\n"
_CLASSIFIER = """
`joint.init_from` is a classifier that was pretrained on its own (docs/pilots.md). Without it the command pretrains one.
"""
_COLORIZER = """
`joint.init_from` is the colorizer that an earlier run ended with (docs/pilots.md); its steps are not counted here.
"""


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="PATH", help=CHECKPOINT)
    add("--data-dir", required=True, metavar="DIR", help="the pack that it was trained on")
    add("--out", type=Path, default=Path("colorjax/weights/food101"), metavar="DIR", help="the folder of the weights")
    add(
        "--statistics-batches",
        type=number(int, 0),
        default=200,
        metavar="N",
        help="training batches for BatchNorm's statistics; 0 keeps those of the checkpoint",
    )
    add("--lpips-weights", metavar="FILE", help="measure LPIPS too; the file comes from `colorjax weights lpips`")


def run(args: argparse.Namespace) -> None:
    """Writes the folder."""
    compilation.keep_compiled_programs()
    with tempfile.TemporaryDirectory() as name:
        rounded, final = Path(name) / "rounded", Path(name) / "final"
        batches = args.statistics_batches
        export(
            args.checkpoint,
            rounded,
            format="safetensors",
            dtype="float16",
            statistics_batches=batches,
            data_dir=args.data_dir,
        )
        trained = load_trained(rounded)
        config = trained.config.copy_and_resolve_references().unlock()
        config.decode = food101_small.get_config().decode
        # Twice, since colorfulness is only nearly proportional to the saturation.
        for fit in ("first", "second"):
            folder = Path(name) / fit
            save_trained(replace(trained, config=config), folder, dtype="float16")
            means = evaluate(folder, split="validation", data_dir=args.data_dir, calibration=fit == "second")
            ratio = means["truth"]["colorfulness"] / means["model"]["colorfulness"]
            config.decode.saturation = round(config.decode.saturation * ratio, 3)
        record = json.loads((evaluation_dir(folder, "validation") / "metrics.json").read_text())
        config.decode.uncertainty_temperature = round(record["calibration"]["temperature"], 3)
        trained = replace(trained, config=config.lock())
        save_trained(trained, final, dtype="float16")
        evaluate(
            final,
            data_dir=args.data_dir,
            temperature=sorted({config.decode.temperature, 1.0}),
            lpips_weights=args.lpips_weights,
        )
        card = model_card.render(
            trained,
            final,
            files=portable.files(final),
            data_dir=args.data_dir,
            recipe=recipe(config, step=trained.step, batches=batches),
        )
        # Its pictures show photographs that may not be published.
        shutil.rmtree(evaluation_dir(final, "test").parent)
        atomic.write_text(final / "README.md", card)
        shutil.rmtree(args.out, ignore_errors=True)
        shutil.copytree(final, args.out, copy_function=shutil.copyfile)
    print(f"{args.out}: step {trained.step}, saturation {config.decode.saturation}")


def recipe(config: Config, *, step: int, batches: int) -> str:
    """How to repeat the training: the commands, with the fields in which the run differs from food101_small.py."""
    elsewhere = ("data.dir", "data.teacher", "data.source")
    ours, theirs = (ADDED_FIELDS | flatten(json.loads(c.to_json())) for c in (food101_small.get_config(), config))
    fields = {
        key: f'"{tuple(value)}"' if isinstance(value, list) else value
        for key, value in theirs.items()
        if key not in elsewhere and not key.startswith("decode.") and value != ours.get(key)
    }
    teacher = ""
    if config.loss.teacher_weight:
        teacher, fields["data.teacher"] = _TEACHER, "PACK/teacher.npy"
    start = ""
    if config.joint.init_from:
        start = _COLORIZER if "colorization" in config.joint.carried else _CLASSIFIER
    return _RECIPE.format(
        teacher=teacher,
        changes="".join(f" \\\n    --config.{key}={value}" for key, value in fields.items()),
        step=step,
        steps=config.joint.steps,
        batches=f" over {batches} batches of training photographs" if batches else "",
        start=start,
    )
