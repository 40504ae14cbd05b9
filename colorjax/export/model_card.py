"""The model card of an exported colorizer, README.md for the Hugging Face Hub. It states only what was measured."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from colorjax import data
from colorjax.run.trained import Trained
from colorjax.run.workdir import evaluation_dir

_log = logging.getLogger(__name__)

# Of a data set: how it is named in a sentence, its name on the Hub, and the rights in its photographs.
_DATA_SETS = {
    "food101": (
        "[Food-101](https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/) "
        "(Bossard, Guillaumin, Van Gool, ECCV 2014)",
        "ethz/food101",
        "The photographs of Food-101 belong to their owners. The data set's terms allow scientific fair use; any\n"
        "other use must be settled with the owners.",
    ),
    "sample": (
        "crops of the few photographs that scikit-image ships: enough to test the program, not to color well",
        "",
        "The photographs come with scikit-image, whose repository names their licenses.",
    ),
}


def render(
    trained: Trained, workdir: Path, *, files: Sequence[Path], data_dir: str | Path | None = None, recipe: str = ""
) -> str:
    """The card in Markdown, with its YAML front matter.

    Args:
        trained: what is exported.
        workdir: where it comes from. The card has the figures of its `evaluation/test/metrics.json` if that is of the
            same step, and otherwise states that there are none.
        files: the exported files of tensors, whose checksums the card has.
        data_dir: where the training photos are, for the name of the data set; None is the colorizer's own data.dir.
        recipe: how to repeat the training, a section in Markdown; "" leaves it out.
    """
    config = trained.config.copy_and_resolve_references().unlock()
    config.data.dir = config.data.dir if data_dir is None else str(data_dir)
    info = _pack_info(config)
    name = info.name if info else config.data.source
    count = f"{info.sizes['train']:,} of " if info and "train" in info.sizes else ""
    unknown = f"the data set `{name}`", "", "The rights in the photographs are those of that data set."
    title, hub_name, rights = _DATA_SETS.get(name, unknown)
    record = _metrics(workdir, trained.step)
    size, parameters = config.data.image_size, sum(x.size for x in jax.tree.leaves(trained.params))
    return f"""---
{_front_matter(hub_name, record)}
---

# A colorizer of grayscale photographs

A network of colorjax, a JAX reproduction of *Automatic colorization of grayscale images with self-attention*
(Shimokawa, Kurosaki, Ochi). From the lightness of a photograph it predicts the color, and scores for
{len(trained.class_names)} classes. It has {parameters / 1e6:.1f} M parameters and was trained on {size}×{size} pixels.
`config.json` holds the configuration, `classes.json` the class names.

## Intended use

Coloring photographs that resemble those it was trained on, and research on colorization. **The colors are a guess.
They are no evidence of what the scene looked like.** Where you show such a picture, state that it was colored.

## Limits

- It knows {"food" if name == "food101" else "the subjects of its training photographs (below)"}; elsewhere it guesses.
- Whole regions can have a wrong color.
- The class scores are a by-product of training. They are not a reliable classifier.

## Training

Photographs: {count}{title}, as {size}×{size} pixels.
{_pretraining(config)}
All networks were then trained together, {trained.step:,} steps of {config.joint.batch_size} photographs.
{recipe}
## Evaluation

{_evaluation(record)}

## Loading

```python
from colorjax import Predictor
from huggingface_hub import snapshot_download

predictor = Predictor(snapshot_download("OWNER/NAME"))
(colored,) = predictor.colorize([photo])  # uint8 or uint16, [H, W] or [H, W, 3]
```

Any program that reads safetensors can take the parameters: a tensor's key is the path of its network and layer with
dots; kernels are `[height, width, in, out]` or `[in, out]`. Every tensor has a CRC-32, which colorjax verifies.

| file | bytes | SHA-256 |
|---|--:|---|
{_checksums(files)}

## Licenses

The code of colorjax is under the Apache License 2.0. The card grants no license to the weights.
{rights} This folder holds none of the photographs.
"""


def _front_matter(hub_name: str, record: dict[str, Any] | None) -> str:
    front: dict[str, Any] = {
        "library_name": "colorjax",
        "license": "other",
        "license_name": "not-stated",
        "license_link": "README.md",
        "pipeline_tag": "image-to-image",
        "tags": ["colorization", "image-colorization", "jax", "flax", "self-attention"],
    }
    if hub_name:
        front["datasets"] = [hub_name]
    if record:
        measured = {"accuracy" if key == "top1" else key: x for key, x in record["rows"]["model"].items()}
        front["metrics"] = list(measured)
        if hub_name:
            result = {
                "task": {"type": "image-to-image", "name": "Colorization"},
                "dataset": {"type": hub_name, "name": hub_name, "split": record["split"]},
                "metrics": [{"type": key, "value": x} for key, x in measured.items()],
            }
            front["model-index"] = [{"name": "colorjax", "results": [result]}]
    # JSON is YAML, quoting included.
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())


def _checksums(files: Sequence[Path]) -> str:
    contents = {path.name: path.read_bytes() for path in files}
    return "\n".join(f"| `{name}` | {len(x):,} | `{hashlib.sha256(x).hexdigest()}` |" for name, x in contents.items())


def _pretraining(config: Any) -> str:
    if not config.joint.init_from and config.pretrain.steps == 0:
        return "All networks started from scratch."
    of_this_run = f", {config.pretrain.steps:,} steps of {config.pretrain.batch_size}"
    return (
        f"These networks were pretrained{'' if config.joint.init_from else f' as a classifier{of_this_run}'}: "
        f"{', '.join(config.joint.carried)}."
    )


def _pack_info(config: Any) -> data.DatasetInfo | None:
    """What a pack was made from, which it alone knows; None for other sources, and if the pack is not here."""
    if config.data.source != "packed":
        return None
    try:
        return data.dataset_info(config.data)
    except (FileNotFoundError, ValueError):
        return None


def _metrics(workdir: Path, step: int) -> dict[str, Any] | None:
    path = evaluation_dir(workdir, "test") / "metrics.json"
    if not path.exists():
        _log.warning("%s does not exist, so the model card has no metrics; `colorjax evaluate` makes them", path)
        return None
    record = json.loads(path.read_text())
    if record["stage"] != "joint" or record["step"] != step:
        _log.warning(
            "%s is of the %s stage's step %d, not of the joint stage's %d, so the model card has no metrics; "
            "`colorjax evaluate` makes new ones",
            path,
            record["stage"],
            record["step"],
            step,
        )
        return None
    return record


def _evaluation(record: dict[str, Any] | None) -> str:
    if record is None:
        return "This checkpoint has not been evaluated."
    # Here, since evaluation needs Orbax, and a folder without metrics does not.
    from colorjax.evaluation.report import metrics_table, sweep_table

    text = (
        f"Measured on the center crops of {record['photos']:,} photographs of the {record['split']} split, which were "
        f"not trained on. Three baselines are reported: the annealed prior, the mean color and gray.\n\n"
        f"{metrics_table(record)}"
    )
    if "temperature" in record:
        text += f"\n\nThe colors are decoded at temperature {record['temperature']:g}"
        if unweighting := record.get("unweighting"):
            text += f", {unweighting:.0%} of the rarity weights are taken out of the logits"
        if (saturation := record.get("saturation", 1)) != 1:
            text += f", and a and b are multiplied by {saturation:g}"
        text += "."
    if "sweep" in record:
        text += f" The model at other temperatures:\n\n{sweep_table(record)}"
    return text
