"""The recipe that docs/ablations.md ends with: the paper's model and data, and a joint stage that does not stay brown.

`--config=configs/vivid64.py` is the same at 64 pixels and a quarter of the width, which is what was measured.
"""

from typing import Any

from colorjax.study import rows
from configs import paper


def get_config(row: str = "full") -> Any:
    """The configuration, with the overrides of one ablation row applied."""
    return rows.apply(vivid(paper.get_config()), row)


def vivid(config: Any) -> Any:
    """A configuration with the recipe's joint stage, unlocked."""
    c = config.copy_and_resolve_references().unlock()
    c.augment.flip = True
    # The class keeps a weight beside the color's, so that the joint stage does not unlearn it.
    c.loss.pixels = "mean"
    j = c.joint
    # Ten times the paper's photographs. BatchNorm's running statistics are of eight times as many.
    j.batch_size = 64
    j.steps = 2_500
    j.warmup_steps = 100
    j.schedule = "cosine"
    j.eval_every = 500
    j.save_every = 250
    return c
