"""Both stages at 64 pixels and a quarter of the width, an epoch and more each: all of Food-101 on two CPU cores.

It starts from configs/paper.py, so what is not set here is the paper's.
"""

from typing import Any

from colorjax.study import rows
from configs import paper


def get_config(row: str = "full") -> Any:
    """The configuration, with the overrides of one ablation row applied."""
    c = paper.get_config().unlock()
    c.data.resolution = 64
    c.data.image_size = 64
    c.model.width = 0.25
    for stage, steps in (("pretrain", 2_000), ("joint", 1_000)):
        s = c[stage]
        s.steps = steps
        s.batch_size = 64
        s.warmup_steps = 100
        s.schedule = "cosine"
        s.log_every = 20
        s.eval_every = 500
        s.save_every = 100
    return rows.apply(c, row)
