"""Both stages on the offline sample, in minutes on two CPU cores: that everything runs, not that it colors well.

The photographs are the few that scikit-image ships, the width is a quarter, and the steps are some hundred. It starts
from configs/paper.py, so what is not set here is the paper's.
"""

from typing import Any

from colorjax.study import rows
from configs import paper


def get_config(row: str = "full") -> Any:
    """The configuration, with the overrides of one ablation row applied."""
    c = paper.get_config().unlock()
    c.data.source = "sample"
    c.data.resolution = 80
    c.data.image_size = 64
    c.model.width = 0.25
    for stage, steps in (("pretrain", 200), ("joint", 400)):
        s = c[stage]
        s.steps = steps
        s.batch_size = 16
        s.schedule = "cosine"
        s.log_every = 20
        s.eval_every = 100
        s.save_every = 100
    return rows.apply(c, row)
