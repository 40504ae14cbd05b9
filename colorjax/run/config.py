"""The configuration: its type and the ranges of its numbers."""

import json
import math
from typing import Any

from colorjax.run.trees import flatten

Config = Any
"""A locked ConfigDict of configs/paper.py's fields, or one of its sections; its fields have no static types."""

STAGES = ("pretrain", "joint")

_STAGE_RANGES = {
    "learning_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
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
    "decode.temperature": (0, math.inf),
    **{f"{stage}.{field}": ends for stage in STAGES for field, ends in _STAGE_RANGES.items()},
}


def validate(config: Config) -> None:
    """Refuses numbers out of their range, before anything is trained with them.

    Raises:
        ValueError: names every such field, its value and its range.
    """
    values = flatten(json.loads(config.to_json()))
    wrong = [
        f"{field} is {values[field]}; it must be "
        + (f"{least} or more" if most == math.inf else f"between {least} and {most}")
        for field, (least, most) in _RANGES.items()
        if not least <= values[field] <= most or values[field] == math.inf
    ]
    if wrong:
        raise ValueError("\n".join(wrong))
