"""The colorizer that ships: 64 pixels, half the width, Food-101 for tens of epochs on two CPU cores (docs/pilots.md).

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
    c.data.source = "packed"  # with many epochs, photos should be decoded once; data.teacher needs it too
    c.data.train_fraction = 0.97  # the validation split chooses nothing any more
    c.model.width = 0.5  # a quarter of the width trains 1.8 times as fast, and learns less
    c.loss.teacher_weight = 10.0  # its gradient is then between the color's and the class's
    # As colorful as true photos, with 0.24 dB more than without (docs/pilots.md); `ship` fits decode.saturation.
    c.decode.temperature, c.decode.unweighting = 0.45, 0.3
    for stage in (c.pretrain, c.joint):
        stage.optimizer = "adamw"
        stage.weight_decay = 0.05  # against overfitting in many epochs
        stage.warmup_steps = 300  # steps
    c.pretrain.steps = 10_000  # 9 epochs
    j = c.joint
    j.steps = 38_000  # 33 epochs
    j.schedule = "constant"  # so that a copy of the run can be finished at any time, with other `steps`
    j.decay_steps = 3_800  # steps; the last tenth
    j.ema = 0.999  # averages about one epoch; export computes the statistics anew
    j.eval_every = 1_000  # steps
    j.save_every = 250  # steps, some five minutes
    return rows.apply(c, row)
