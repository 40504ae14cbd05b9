"""Both stages on the offline sample, in minutes on two CPU cores: shows that everything runs, not good colors.

The photos are crops of the few photographs that scikit-image ships. What is not set here is configs/paper.py's.
"""

from typing import Any

from colorjax.study import rows
from configs import paper


def get_config(row: str = "full") -> Any:
    """The configuration, with the overrides of one ablation row applied."""
    c = paper.get_config().unlock()
    c.data.source = "sample"  # needs no download
    c.data.resolution = 80  # pixels; the margin gives rotation its pixels
    c.data.image_size = 64  # pixels
    c.model.width = 0.25  # the least
    for stage, steps in (("pretrain", 200), ("joint", 400)):
        s = c[stage]
        s.steps = steps
        s.batch_size = 16  # photos a step
        s.schedule = "cosine"  # docs/ablations.md, row `cosine`
        s.log_every = 20  # steps
        s.eval_every = 100  # steps
        s.save_every = 100  # steps
    return rows.apply(c, row)
