"""The ablation rows: what each changes in the paper's configuration, and nothing else."""

from typing import Any

_NO_PATCH: dict[str, Any] = {"model.patch_attention": False}
_NO_OUTPUT: dict[str, Any] = {"model.output_attention": "none"}
_NO_PRETRAINING: dict[str, Any] = {"pretrain.steps": 0}
# Iizuka, section 3.4: the mean squared error of ab in 0…1, and 1/300 of the class's cross-entropy.
_REGRESSION: dict[str, Any] = {
    "model.head": "ab",
    "loss.pixels": "mean",
    "loss.class_weight": 1 / 300,
    "loss.rarity": 1.0,
}

ROWS: dict[str, dict[str, Any]] = {
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
