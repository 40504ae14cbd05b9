"""Computes the features that a teacher, EfficientNet-Lite0 trained on ImageNet, has of the training photos in color.

Training with `data.teacher` and `loss.teacher_weight` makes the global vector predict them (losses.teacher_terms).
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from colorjax import atomic, data
from colorjax.data.batches import EVAL_BATCH_SIZE, Share, center_crop
from colorjax.evaluation.judges import efficientnet
from colorjax.run import compilation

_log = logging.getLogger(__name__)

SIZE = 160  # pixels of the photos that the teacher sees; docs/pilots.md has the accuracy and the time of other sizes

_REPORT_EVERY = 100  # batches


def write_features(data_config: Any, path: Path) -> None:
    """Writes the features of the training photos' center crops: a .npy file, float16 [N, 1280], whole or not at all.

    Args:
        data_config: the `data` section of the configuration.
        path: the file.

    Raises:
        FileNotFoundError, ValueError: as `data.open_rows`.
        ImportError: if the package with the network's weights is not installed.
    """
    source = data.open_rows(data_config)
    photos = source.info.sizes["train"]
    weights = jax.device_put(efficientnet.load())
    features = jax.jit(partial(efficientnet.features, size=SIZE), compiler_options=compilation.compiler_options())
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (photos, efficientnet.FEATURES)}
        np.lib.format.write_array_header_1_0(file, header)
        for step, batch in enumerate(source.evaluate("train", Share(EVAL_BATCH_SIZE))):
            done = step * EVAL_BATCH_SIZE
            if done and step % _REPORT_EVERY == 0:
                _log.info("%d of %d photos", done, photos)
            images = center_crop(jnp.asarray(batch["image"]), data_config.image_size)
            file.write(np.asarray(features(weights, images))[: photos - done].astype("<f2").tobytes())
