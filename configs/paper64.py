"""The paper's joint stage at 64 pixels and a quarter of the width: what docs/ablations.md measures on two CPU cores.

The joint stage has the batch, the steps and the constant rate of configs/paper.py. The pretraining is
configs/food64.py's.
"""

from typing import Any

from colorjax.study import rows
from configs import food64


def get_config(row: str = "full") -> Any:
    """The configuration, with the overrides of one ablation row applied."""
    c = food64.get_config().unlock()
    j = c.joint
    j.batch_size = 8  # photos a step (paper)
    j.steps = 2_000  # (paper)
    j.schedule = "constant"  # as in configs/paper.py
    j.warmup_steps = 0  # as in configs/paper.py
    j.eval_every = 1_000  # steps
    j.eval_photos = 256  # photos: a study validates many short runs
    j.save_every = 500  # steps, about a minute
    return rows.apply(c, row)
