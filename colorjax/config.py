"""The configuration: its ranges, and config.json beside the checkpoints, by which a run knows itself."""

import json
import math
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

Config = Any
"""A locked ConfigDict of configs/paper.py's fields, or one of its sections; its fields have no static types."""


# The sections that pretraining does not read.
_OF_JOINT = ("joint.", "loss.", "decode.")
# Where the photographs lie, and of a stage how often it reports: nothing of what is trained.
_PLACES = ("data.dir", "data.download", "data.teacher")
_REPORTING = ("log_every", "eval_every", "eval_photos", "save_every")

_OF_STAGE = {
    "learning_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "decay_steps": (0, math.inf),
    "clip_norm": (0, math.inf),
    "accumulate": (1, math.inf),
    "batch_size": (1, math.inf),
    "steps": (0, math.inf),
    "log_every": (1, math.inf),
    "eval_every": (1, math.inf),
    "eval_photos": (0, math.inf),
    "save_every": (1, math.inf),
}
# Field -> the least and the most of it, for the numbers that nothing else refuses before the first step.
_RANGES = {
    "seed": (0, 2**31 - 1),
    "augment.rotation": (0, 180),
    "augment.shift": (0, math.inf),
    "loss.neighbors": (1, 313),
    "loss.sigma": (1e-3, math.inf),
    "loss.rarity": (0, 1),
    "loss.class_weight": (0, math.inf),
    "loss.teacher_weight": (0, math.inf),
    "decode.temperature": (0, math.inf),
    **{f"{stage}.{field}": ends for stage in ("pretrain", "joint") for field, ends in _OF_STAGE.items()},
}


def check(config: Config) -> None:
    """Refuses numbers out of their range, before anything is trained with them.

    Raises:
        ValueError: names every such field, its value and its range.
    """
    values = flat(json.loads(config.to_json()))
    wrong = [
        f"{field} is {values[field]}; it must be "
        + (f"{least} or more" if most == math.inf else f"between {least} and {most}")
        for field, (least, most) in _RANGES.items()
        if not least <= values[field] <= most or values[field] == math.inf
    ]
    if wrong:
        raise ValueError("\n".join(wrong))


def claim(config: Config, workdir: Path) -> None:
    """Writes the configuration into the workdir, unless another one binds there.

    A field binds from the first checkpoint on that depends on it. So what ended before it had saved anything, as a
    misspelt field does, can be started again with another configuration; and after pretraining the sections `joint`,
    `loss` and `decode` may still change. Where the photographs lie and how often a stage reports never binds; nor do
    the steps of a stage at a constant rate and those of its decay, as long as it has not begun to fall and nothing was
    trained on what they ended with.

    Raises:
        ValueError: if it differs from the one that is there in anything that binds: lists the differences.
    """
    differing = differences(config, workdir)
    if jax.process_index() != 0 or ((workdir / "config.json").exists() and not differing):
        return
    if any(key.startswith("data.") for key in differing) and not any(_last_steps(workdir).values()):
        # They are of the photographs that were to be trained on before.
        for name in ("classes.json", "prior.npz"):
            (workdir / name).unlink(missing_ok=True)
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(config, workdir)


def differences(config: Config, workdir: Path) -> list[str]:
    """The fields in which a configuration differs from the workdir's, if it has one, but for `stage`.

    Raises:
        ValueError: if one of them binds (`claim`): lists those.
    """
    path = workdir / "config.json"
    if not path.exists():
        return []
    there, now = flat(json.loads(path.read_text())), flat(json.loads(config.to_json()))
    differing = [key for key in sorted(there.keys() | now.keys()) if key != "stage" and there.get(key) != now.get(key)]
    last = _last_steps(workdir)
    binding = [key for key in differing if _binds(key, there, now, last)]
    if binding:
        raise ValueError(
            f"{workdir} belongs to a run with another configuration:\n"
            + "\n".join(f"  {k}: {there.get(k, 'absent')!r} there, {now.get(k, 'absent')!r} now" for k in binding)
            + "\nTake another --workdir, or the configuration that is there."
        )
    return differing


def _binds(key: str, there: dict[str, Any], now: dict[str, Any], last: dict[str, int]) -> bool:
    stage, _, field = key.partition(".")
    if key in _PLACES or field in _REPORTING:
        return False
    if field in ("steps", "decay_steps") and {c.get(f"{stage}.schedule") for c in (there, now)} == {"constant"}:
        constant = min(c[f"{stage}.steps"] - c.get(f"{stage}.decay_steps", 0) for c in (there, now))
        return constant < last[stage] or (stage == "pretrain" and last["joint"] > 0)
    return last["joint"] > 0 or (last["pretrain"] > 0 and not key.startswith(_OF_JOINT))


def _last_steps(workdir: Path) -> dict[str, int]:
    """Stage -> the step of its newest checkpoint, 0 without one."""
    # By the names alone, as the packages that read a run need no Orbax.
    return {
        stage: max(
            (int(path.name) for path in (workdir / stage / "checkpoints").glob("*") if path.name.isdigit()), default=0
        )
        for stage in ("pretrain", "joint")
    }


def save_config(config: Config, folder: Path) -> None:
    """Writes config.json into a folder, over what is there."""
    path = folder / "config.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(json.loads(config.to_json()), indent=2) + "\n")
    temporary.replace(path)


def load_config(folder: Path) -> Config:
    """The configuration that a run, or the colorizer of an exported folder, was trained with.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {folder} is neither the workdir of a run nor an exported folder")
    try:
        return ConfigDict(json.loads(path.read_text())).lock()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it is no configuration in JSON ({error})") from error


def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keyed by dotted names."""
    fields: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        fields |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return fields
