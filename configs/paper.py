"""The paper, every number of it: `--config=configs/paper.py`, or `--config=configs/paper.py:ROW` for one ablation row.

Where the two pages say nothing, the value is our reading, and the comment says so. The rows are in ablations.py.
"""

from typing import Any

import ml_collections

from configs import ablations


def get_config(row: str = "full") -> Any:
    """The configuration of both stages, with the overrides of one ablation row applied."""
    c: Any = ml_collections.ConfigDict()
    c.seed = 0  # of the initialisation, the shuffling and the augmentation
    c.stage = "both"  # both | pretrain | joint; a stage whose `steps` is 0 is left out

    c.data = d = ml_collections.ConfigDict()
    d.source = "food101"  # food101 | folder | sample | packed
    d.dir = ""  # where it lies; "" is TFDS's own directory
    d.download = False  # whether TFDS may fetch Food-101 (5 GB) when it is not there
    d.train_fraction = 0.8  # of the official training split: 60,600 train, 15,150 validate
    d.resolution = 256  # pixels: the host's square copy of a photo; the margin feeds rotation and scale
    d.image_size = 224  # pixels: the network's input
    d.shuffle_buffer = 8192  # undecoded photos held back for shuffling, some 50 kB each
    d.teacher = ""  # file made by `python -m colorjax.teacher`; needed where loss.teacher_weight is not 0
    d.prior = ""  # file made by `python -m colorjax.prior`; "" counts it once, into the workdir

    c.augment = a = ml_collections.ConfigDict()
    a.rotation = 15.0  # degrees, uniform in ±; the paper rotates, the range is our reading
    a.scale = (0.8, 1.25)  # factor, log-uniform; the paper scales, the range is our reading
    a.shift = 0.0  # pixels of the network's input, uniform in ±; not in the paper
    a.flip = False  # mirror every second photo; not in the paper

    c.model = m = ml_collections.ConfigDict()
    m.width = 1.0  # of every channel count in Iizuka's table; 0.25 is the least
    m.norm = "batch"  # batch | group: after every convolution but the last
    m.dtype = "auto"  # float32 | bfloat16 | auto: bfloat16 on accelerators, float32 on CPU
    m.downsampling = "stride"  # stride (Iizuka's convolutions) | pool (2×2 maxima, as SAN between its stages)
    m.patch_attention = True  # a SAN bottleneck after the convolutions of each low-level resolution
    m.patch_kernels = (3, 7, 7)  # of it, at 1/2, 1/4 and 1/8 of the input's size, as in SAN
    m.patch_relation_ratio = 16  # channels over the channels of φ and ψ (SAN)
    m.patch_output_ratio = 4  # channels over the channels of β (SAN)
    m.patch_share = 8  # channels that share one attention weight (SAN)
    m.patch_relation_norm = "before"  # before | after (SAN's code) the patch is gathered
    m.output_attention = "full"  # full | pooled (SAGAN's code: keys and values at half size) | none
    m.output_gate = 0.0  # σ at the start (SAGAN)
    m.output_stride = 2  # the input's size over the output's: 2 (Iizuka), or 4 (Zhang)
    m.fusion = True  # join the global vector to the local map
    m.head = "bins"  # bins (313 colour classes) | ab (regression)

    c.loss = s = ml_collections.ConfigDict()
    s.neighbors = 5  # bins of a soft target; 1 is a hard target
    s.sigma = 5.0  # ab units: width of a soft target and of the prior's smoothing
    s.rarity = 0.5  # λ, the share of the uniform distribution in the weights; 1 is no weighting
    s.pixels = "sum"  # sum (loss (1)) | mean, over an image's output pixels
    s.class_weight = 1.0  # of the class term beside the colour term; 1 with "sum" is loss (1)
    s.teacher_weight = 0.0  # of the teacher's term (data.teacher) in the joint stage; not in the paper

    c.decode = ml_collections.ConfigDict()
    c.decode.temperature = 0.38  # of the annealed mean (Zhang); 0 takes the mode, 1 the mean

    c.pretrain = p = _stage()
    p.batch_size = 32  # photos, over all devices
    p.steps = 2_000_000

    c.joint = j = _stage()
    j.batch_size = 8  # photos, over all devices
    j.steps = 2_000
    j.eval_every = 500
    j.save_every = 500
    j.log_every = 10
    # Networks that pretraining hands over; an exported folder has mid_level, fusion and colorization to give as well.
    j.carried = ("low_level", "global_features", "classification")
    j.init_from = ""  # a finished pretraining's workdir, or an exported folder; "" is this workdir's own, if it has one

    return ablations.apply(c, row)


def _stage() -> Any:
    """Optimisation, none of which the paper gives; and how often a stage reports."""
    s: Any = ml_collections.ConfigDict()
    s.optimizer = "adam"  # adam | adamw | adadelta (Iizuka)
    s.learning_rate = 1e-3  # its peak; not given either, so Adam's own default
    s.warmup_steps = 0  # linear, from 0
    s.schedule = "constant"  # constant | cosine, down to 0 at the last step
    s.decay_steps = 0  # the last steps of a constant rate, in which it falls to 0 in a straight line
    s.weight_decay = 0.0  # adamw only
    s.clip_norm = 0.0  # of the gradient, over all parameters; 0 is no clipping
    # At a constant rate BatchNorm's averaged statistics do not fit the averaged weights: docs/ablations.md, `ema`.
    s.ema = 0.0  # decay of the moving average of the weights that is evaluated and saved; 0 is no average
    s.accumulate = 1  # microbatches a step: the batch size stays, the memory shrinks
    s.log_every = 100  # steps
    s.eval_every = 5_000  # steps, on the validation split; the last step is always evaluated
    s.eval_photos = 2_048  # of the validation split at most; 0 is all of it
    s.save_every = 5_000  # steps; the last step is always saved
    return s
