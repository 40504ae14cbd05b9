"""Both stages at 64 pixels and a quarter of the width: all of Food-101 in hours on two CPU cores.

What is not set here is configs/paper.py's.
"""

from typing import Any

from colorjax.study import rows
from configs import paper


def get_config(row: str = "full") -> Any:
    """The configuration, with the overrides of one ablation row applied."""
    c = paper.get_config().unlock()
    c.data.resolution = 64  # pixels; no margin, so that packs stay small
    c.data.image_size = 64  # pixels; a twelfth of the paper's pixels
    c.model.width = 0.25  # a sixteenth of the arithmetic
    for stage, steps in (("pretrain", 2_000), ("joint", 1_000)):  # 2 epochs and 1
        s = c[stage]
        s.steps = steps
        s.batch_size = 64  # photos a step; so few steps see all photos
        s.warmup_steps = 100  # steps
        s.schedule = "cosine"  # docs/ablations.md, row `warmup_cosine`
        s.log_every = 20  # steps
        s.eval_every = 500  # steps
        s.save_every = 100  # steps, about a minute
    return rows.apply(c, row)
