"""The teacher: what EfficientNet-Lite0, trained on ImageNet, sees of the training photos in color.

`colorjax teacher` writes a file, float16 [N, 1280], in the order of the training split. Training with `data.teacher`
set to that file makes the global vector predict these features beside the labels (losses.teacher_terms).
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from colorjax import atomic, data
from colorjax.data.batches import center_crop
from colorjax.evaluation.judges import efficientnet
from colorjax.run import compilation

_log = logging.getLogger(__name__)

SIZE = 160
"""Pixels of the photos that the teacher sees. Of photos of 64 pixels a linear classifier of its features, fitted on
2,000 and tested on 1,000, gets 21.8 % right at 128 pixels, 22.3 % at 160 and 25.4 % at 224, which takes 2.6 times as
long as 160."""

_BATCH = 32


def write(data_config: Any, path: str | Path) -> None:
    """Computes the features of the training split's center crops into a file, all of it or nothing.

    Args:
        data_config: the `data` section.
        path: of the new file.

    Raises:
        ImportError: if the package with the network's weights is not installed.
        ValueError: if a photo does not decode, since then features and photos would not match.
    """
    weights = jax.device_put(efficientnet.load())
    features = jax.jit(partial(efficientnet.features, size=SIZE), compiler_options=compilation.compiler_options())
    photos = data.dataset_info(data_config).sizes["train"]
    with atomic.replacing(Path(path)) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (photos, efficientnet.FEATURES)}
        np.lib.format.write_array_header_1_0(file, header)
        for step, batch in enumerate(data.eval_batches(data_config, "train", batch_size=_BATCH)):
            done = step * _BATCH
            if not batch["mask"][: photos - done].all():
                raise ValueError("a training photo does not decode; make a pack, which leaves such photos out")
            images = center_crop(jnp.asarray(batch["image"]), data_config.image_size)
            file.write(np.asarray(features(weights, images))[: photos - done].astype("<f2").tobytes())
            if done % (100 * _BATCH) == 0 and done:
                _log.info("%d of %d photos", done, photos)
