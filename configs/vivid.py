"""The paper's model and data with a joint stage whose colors are vivid; docs/ablations.md says how it was found.

It was measured at 64 pixels and a quarter of the width: `--config=configs/vivid64.py`.
"""

from typing import Any

from colorjax.study import rows
from configs import paper


def get_config(row: str = "full") -> Any:
    """The configuration, with the overrides of one ablation row applied."""
    return rows.apply(vivid(paper.get_config()), row)


def vivid(config: Any) -> Any:
    """The configuration with this joint stage, unlocked."""
    c = config.copy_and_resolve_references().unlock()
    c.augment.flip = True  # a mirrored plate of food is as likely
    c.loss.pixels = "mean"  # so that the class term counts beside the color term, and classes are not unlearned
    j = c.joint
    j.batch_size = 64  # photos a step; BatchNorm's statistics are of eight times as many as the paper's
    j.steps = 2_500  # ten times the paper's photos
    j.warmup_steps = 100  # steps
    j.schedule = "cosine"  # docs/ablations.md, row `warmup_cosine`
    j.eval_every = 500  # steps
    j.save_every = 250  # steps
    return c
