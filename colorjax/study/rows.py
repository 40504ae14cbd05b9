"""The rows of two studies: the fields of the configuration that each row changes.

`ROWS` remove or replace the paper's parts, one at a time. `CURES` change one thing each that may make its pictures less
brown.
"""

from typing import Any

Row = dict[str, Any]
"""Dotted field -> its new value, or a function of the unchanged configuration that returns it."""

_NO_PATCH: Row = {"model.patch_attention": False}
_NO_OUTPUT: Row = {"model.output_attention": "none"}
_NO_PRETRAINING: Row = {"pretrain.steps": 0}
_COSINE: Row = {"joint.schedule": "cosine", "joint.decay_steps": 0}
# Iizuka, section 3.4: the mean squared error of ab in 0…1, and 1/300 of the class cross-entropy.
_REGRESSION: Row = {
    "model.head": "ab",
    "loss.pixels": "mean",
    "loss.class_weight": 1 / 300,
    "loss.rarity": 1.0,
}

ROWS: dict[str, Row] = {
    "full": {},
    "no_pretraining": _NO_PRETRAINING,
    "no_patch_attention": _NO_PATCH,
    "no_output_attention": _NO_OUTPUT,
    "pooled_output_attention": {"model.output_attention": "pooled"},
    "no_rarity": {"loss.rarity": 1.0},
    "hard_targets": {"loss.neighbors": 1},
    "regression": _REGRESSION,
    "no_class_loss": {"loss.class_weight": 0.0},
    "no_fusion": {"model.fusion": False},
    "no_augmentation": {"augment.rotation": 0.0, "augment.scale": (1.0, 1.0)},
    "iizuka2016": _NO_PATCH | _NO_OUTPUT | _NO_PRETRAINING | _REGRESSION,
    # Zhang's loss, targets and quarter-size output on Iizuka's local branch.
    "zhang2016_head": _NO_PATCH
    | _NO_OUTPUT
    | _NO_PRETRAINING
    | {"model.fusion": False, "model.output_stride": 4, "loss.class_weight": 0.0},
}

CURES: dict[str, Row] = {
    "steps_x4": {"joint.steps": lambda c: 4 * c.joint.steps},
    "constant_rate": {"joint.schedule": "constant", "joint.warmup_steps": 0, "joint.decay_steps": 0},
    "cosine": _COSINE | {"joint.warmup_steps": 0},
    "warmup_cosine": _COSINE | {"joint.warmup_steps": lambda c: c.joint.steps // 20},
    # The paper does not give the learning rate.
    "rate_x3": {"joint.learning_rate": lambda c: 3 * c.joint.learning_rate},
    "rate_third": {"joint.learning_rate": lambda c: c.joint.learning_rate / 3},
    "adamw": {"joint.optimizer": "adamw", "joint.weight_decay": 0.01},
    # Averages some hundred steps, since the training is short.
    "ema": {"joint.ema": 0.99},
    # As many photos as before, in fewer steps.
    "batch_x4": {
        "joint.batch_size": lambda c: 4 * c.joint.batch_size,
        "joint.steps": lambda c: c.joint.steps // 4,
        "joint.warmup_steps": lambda c: c.joint.warmup_steps // 4,
        "joint.decay_steps": lambda c: c.joint.decay_steps // 4,
    },
    "group_norm": {"model.norm": "group"},
    "rarity_25": {"loss.rarity": 0.25},
    "rarity_75": {"loss.rarity": 0.75},
    "temperature_20": {"decode.temperature": 0.2},
    "temperature_100": {"decode.temperature": 1.0},
    # Beside a sum over pixels, as in loss (1), the class hardly counts; beside a mean it does.
    "class_as_color": {"loss.pixels": "mean", "loss.class_weight": 1.0},
    "class_tenth_of_color": {"loss.pixels": "mean", "loss.class_weight": 0.1},
    "open_gate": {"model.output_gate": 1.0},
}


def apply(config: Any, row: str) -> Any:
    """Returns a copy of a configuration with one row's changes, locked.

    Args:
        config: a ConfigDict with the fields of configs/paper.py.
        row: a name in ROWS or CURES.

    Raises:
        ValueError: there is no such row.
    """
    rows = ROWS | CURES
    if row not in rows:
        raise ValueError(f"no ablation row {row!r}; the rows are {', '.join(rows)}")
    changed = config.copy_and_resolve_references().unlock()
    changed.update_from_flattened_dict(
        {field: value(config) if callable(value) else value for field, value in rows[row].items()}
    )
    return changed.lock()
