"""The colorizer that ships: 64 pixels, half the width, all of Food-101 for tens of epochs on two CPU cores.

    CONFIG=configs/food101_small.py
    colorjax data --config=$CONFIG --config.data.source=food101 --config.data.dir=DIR --out=PACK
    colorjax teacher --config=$CONFIG --config.data.dir=PACK
    colorjax train --config=$CONFIG --config.data.dir=PACK --config.data.teacher=PACK/teacher.npy --workdir=RUN
    colorjax export --workdir=RUN --format=safetensors --dtype=float16 --statistics-batches=200 --out=FOLDER

What is not set here is configs/vivid64.py's.
"""

from typing import Any

from colorjax.study import rows
from configs import vivid64


def get_config(row: str = "full") -> Any:
    """The configuration, with the overrides of one ablation row applied."""
    c = vivid64.get_config().unlock()
    c.data.source = "packed"  # photos decoded once, since there are many epochs
    c.data.train_fraction = 0.97  # nothing is chosen by the validation split any more
    c.model.width = 0.5  # a quarter trains 1.8 times as fast, and knows less: docs/ablations.md
    c.loss.teacher_weight = 10.0  # makes its gradient as large as the color's where the networks share parameters
    for stage in (c.pretrain, c.joint):
        stage.optimizer = "adamw"
        stage.weight_decay = 0.05  # many epochs of few photos
    p = c.pretrain
    p.steps = 10_000  # 9 epochs
    p.warmup_steps = 300
    j = c.joint
    j.steps = 38_000  # 33 epochs
    j.schedule = "constant"  # so that the run may end at any time: a copy of it with fewer `steps` decays at once
    j.decay_steps = 3_800
    j.warmup_steps = 300
    j.ema = 0.999  # the last epoch's average; its statistics are computed anew at export
    j.eval_every = 1_000
    j.save_every = 250  # steps, some five minutes
    return rows.apply(c, row)
