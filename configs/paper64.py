"""The paper's joint stage at a size for two CPU cores: 64 pixels and a quarter of the width, of which docs/ablations.md
is.

Batch, number of steps and the constant rate of the joint stage are those of configs/paper.py. The pretraining is
configs/food64.py's.
"""

from typing import Any

from colorjax.study import rows
from configs import food64


def get_config(row: str = "full") -> Any:
    """The configuration, with the overrides of one ablation row applied."""
    c = food64.get_config().unlock()
    j = c.joint
    j.batch_size = 8
    j.steps = 2_000
    j.schedule = "constant"
    j.warmup_steps = 0
    j.eval_every = 1_000
    j.eval_photos = 256
    j.save_every = 500
    return rows.apply(c, row)
