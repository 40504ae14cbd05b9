"""The configuration: its type and the ranges of its numbers."""

import json
import math
from collections.abc import Iterable
from typing import Any

from colorjax.data.batches import MAX_UNDECODABLE
from colorjax.data.errors import first_few
from colorjax.run.trees import flatten

Config = Any
"""A locked ConfigDict of configs/paper.py's fields, or one of its sections; its fields have no static types."""

STAGES = ("pretrain", "joint")

ADDED_FIELDS = {
    "data.max_undecodable": MAX_UNDECODABLE,
    "data.teacher": "",
    "model.norm_photos": 0,
    "loss.teacher_weight": 0.0,
    "decode.unweighting": 0.0,
    "decode.saturation": 1.0,
    "decode.uncertainty_temperature": 1.0,
    "pretrain.decay_steps": 0,
    "joint.decay_steps": 0,
}
"""Fields that an older config.json lacks, and the value that it is read with."""

# The fields and sections that pretraining does not read.
_JOINT_ONLY = (
    "stage",
    "data.prior",
    "data.download",
    "data.teacher",
    "model.output_attention",
    "model.output_gate",
    "model.output_stride",
    "model.fusion",
    "model.head",
    "loss.",
    "decode.",
    "joint.",
)

_STAGE_RANGES = {
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
DECODING = ("decode.temperature", "decode.unweighting", "decode.saturation", "decode.uncertainty_temperature")

# Field -> the least and the most of it, for the numbers that nothing else refuses before the first step.
_RANGES = {
    "seed": (0, 2**31 - 1),
    "data.max_undecodable": (0, 1),
    "augment.rotation": (0, 180),
    "augment.shift": (0, math.inf),
    "loss.neighbors": (1, 313),
    "loss.sigma": (1e-3, math.inf),
    "loss.rarity": (0, 1),
    "loss.class_weight": (0, math.inf),
    "loss.teacher_weight": (0, math.inf),
    "decode.temperature": (0, math.inf),
    "decode.unweighting": (0, 1),
    "decode.saturation": (0, math.inf),
    "decode.uncertainty_temperature": (1e-3, math.inf),
    **{f"{stage}.{field}": ends for stage in STAGES for field, ends in _STAGE_RANGES.items()},
}


def pretraining_reads(field: str) -> bool:
    """Whether a field, such as "loss.rarity", can change what pretraining trains; true for fields added later."""
    return not field.startswith(_JOINT_ONLY)


def validate(config: Config, *, fields: Iterable[str] = _RANGES) -> None:
    """Refuses numbers out of their range, before anything is trained with them.

    Args:
        config: see configs/paper.py.
        fields: which to look at.

    Raises:
        ValueError: names the fields, their values and their ranges.
    """
    values = ADDED_FIELDS | flatten(json.loads(config.to_json()))
    wrong = []
    for field in fields:
        least, most = _RANGES[field]
        value = values.get(field, "absent")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most or value == math.inf:
            span = f"{least} or more" if most == math.inf else f"between {least} and {most}"
            wrong.append(f"{field} is {value}; it must be {span}")
    if wrong:
        raise ValueError(first_few(wrong))
