"""The paper's configuration: `--config=configs/paper.py`, or `--config=configs/paper.py:ROW` for an ablation row.

Where the paper gives no value, the comment says where ours comes from. The rows are in colorjax/study/rows.py.
"""

from typing import Any

import ml_collections

from colorjax.study import rows


def get_config(row: str = "full") -> Any:
    """The configuration of both stages, with the overrides of one ablation row applied."""
    c: Any = ml_collections.ConfigDict()
    c.seed = 0  # for the initialization, the shuffling and the augmentation
    c.stage = "both"  # both | pretrain | joint: what to train; a stage with 0 steps is skipped

    c.data = d = ml_collections.ConfigDict()
    d.source = "food101"  # food101 | folder | sample | packed
    d.dir = ""  # folder of the data set; "" is TFDS's own
    d.download = False  # whether TFDS may download Food-101 (5 GB) if it is missing
    d.train_fraction = 0.8  # share of the official training split that trains: 60,600 photos; 15,150 validate (paper)
    d.resolution = 256  # pixels: side of the decoded photo; larger than image_size, so that rotation finds pixels
    d.image_size = 224  # pixels: side of the network's input (paper)
    d.shuffle_buffer = 8192  # photos to shuffle among, kept as JPEG in memory: some 50 kB each
    d.max_undecodable = 0.1  # share of a split's photos that may not decode; with more of them the run ends
    d.teacher = ""  # file written by `colorjax teacher`; needed where loss.teacher_weight is not 0
    d.prior = ""  # file written by `colorjax prior`; "" counts the colors once and keeps them in the workdir

    c.augment = a = ml_collections.ConfigDict()
    a.rotation = 15.0  # degrees, uniform in ±15; the paper rotates and gives no range; 15 keeps plates upright
    a.scale = (0.8, 1.25)  # magnification, log-uniform; the paper scales and gives no range: a quarter both ways
    a.shift = 0.0  # pixels of the network's input, uniform in ±shift; not in the paper
    a.flip = False  # whether to mirror half of the photos; not in the paper

    c.model = m = ml_collections.ConfigDict()
    m.width = 1.0  # factor on all channel counts, 0.25 or more; 1 is Iizuka's table
    m.norm = "batch"  # batch (Iizuka) | group: normalization after every convolution but the last
    m.norm_photos = 0  # photos that share the statistics of "batch", for example a device's; 0 is the whole batch
    m.dtype = "auto"  # float32 | bfloat16 | auto: activations; auto is bfloat16 on accelerators, where it is faster
    m.downsampling = "stride"  # stride (Iizuka's convolutions) | pool (2×2 maxima, SAN's)
    m.patch_attention = True  # whether a SAN bottleneck follows each resolution of the low-level network (paper)
    m.patch_kernels = (3, 7, 7)  # pixels: sides of its patches at 1/2, 1/4 and 1/8 of the input's size (SAN)
    m.patch_relation_ratio = 16  # input channels ÷ channels of φ and ψ (SAN)
    m.patch_output_ratio = 4  # input channels ÷ channels of β (SAN)
    m.patch_share = 8  # channels that share one attention weight (SAN)
    m.patch_relation_norm = "before"  # before | after (SAN's code): normalize before or after gathering the patch
    m.output_attention = "full"  # full (SAGAN's paper) | pooled (its code: keys and values at half size) | none
    m.output_gate = 0.0  # initial σ, which scales the output attention (SAGAN)
    m.output_stride = 2  # input size ÷ output size: 2 (paper, Iizuka) or 4 (Zhang)
    m.fusion = True  # whether the global vector joins the local map (paper)
    m.head = "bins"  # bins (313 color classes: paper, Zhang) | ab (regression: Iizuka)

    c.loss = s = ml_collections.ConfigDict()
    s.neighbors = 5  # bins that share a pixel's target (Zhang); 1 is a hard target
    s.sigma = 5.0  # ab units: width of a soft target and of the prior's smoothing (Zhang)
    s.rarity = 0.5  # λ, the share of the uniform distribution in the rarity weights (Zhang); 1 is no weighting
    s.pixels = "sum"  # sum (paper, equation 1) | mean: over a photo's output pixels
    s.class_weight = 1.0  # factor on the class term; 1 with "sum" is the paper's equation 1
    s.teacher_weight = 0.0  # factor on the teacher's term in the joint stage (data.teacher); not in the paper

    c.decode = ml_collections.ConfigDict()
    c.decode.temperature = 0.38  # of the annealed mean (Zhang): 0 takes the mode, 1 the mean
    c.decode.unweighting = 0.0  # 0…1: how much of the rarity weights decoding takes out of the logits; not in the paper
    c.decode.saturation = 1.0  # factor on the decoded ab; not in the paper
    c.decode.uncertainty_temperature = 1.0  # divides the logits for the uncertainty; `evaluate --calibration` finds it

    c.pretrain = p = _stage()
    p.batch_size = 32  # photos a step, over all devices (paper)
    p.steps = 2_000_000  # the paper's "about 2.0×10^6 iterations"

    c.joint = j = _stage()
    j.batch_size = 8  # photos a step, over all devices (paper)
    j.steps = 2_000  # the paper's "about 2.0×10^3 iterations"
    j.eval_every = 500  # steps; fewer than in pretraining, which has a thousand times as many
    j.save_every = 500  # steps
    j.log_every = 10  # steps
    # The networks to start from pretraining; an exported folder also has mid_level, fusion and colorization.
    j.carried = ("low_level", "global_features", "classification")
    j.init_from = ""  # workdir of a pretraining, or an exported folder; "" is this workdir's pretraining, if any

    return rows.apply(c, row)


def _stage() -> Any:
    """Optimization, which the paper does not describe, and how often a stage reports."""
    s: Any = ml_collections.ConfigDict()
    s.optimizer = "adam"  # adam | adamw | adadelta (Iizuka)
    s.learning_rate = 1e-3  # peak; Adam's default
    s.warmup_steps = 0  # steps in which the rate rises linearly from 0
    s.schedule = "constant"  # constant | cosine: after the warm-up; cosine falls to 0 at the last step
    s.decay_steps = 0  # last steps of a constant rate, in which it falls to 0 in a straight line
    s.weight_decay = 0.0  # of kernels, times the rate; adamw only
    s.clip_norm = 0.0  # largest norm of the gradient over all parameters; 0 is no clipping
    # Decay of a moving average of the weights, which is then what is evaluated and handed on; 0 is no average. At a
    # constant rate the averaged BatchNorm statistics do not fit averaged weights: docs/ablations.md, row `ema`.
    s.ema = 0.0
    s.accumulate = 1  # microbatches a step; more take less memory for the same batch
    s.log_every = 100  # steps between records of the training metrics
    s.eval_every = 5_000  # steps between validations; the last step is always followed by one
    s.eval_photos = 2_048  # photos of the validation split to use, which takes a fraction of all; 0 is all
    s.save_every = 5_000  # steps between checkpoints; every validation comes after one
    return s
