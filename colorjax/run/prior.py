"""The prior of a run: the file that `data.prior` names, or one counted once into the workdir."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from colorjax import data
from colorjax.data.batches import center_crop
from colorjax.data.prior import Prior, count, require_color
from colorjax.run.config import Config
from colorjax.run.sharding import barrier
from colorjax.run.workdir import prior_file

_log = logging.getLogger(__name__)


def count_prior(config: Config, path: Path) -> None:
    """Counts the colors of the training split into a file; they depend on the `data` section alone."""
    _log.info("counting the colors of the training split, once, into %s", path)

    def crops() -> Iterator[dict[str, Any]]:
        for batch in data.eval_batches(config.data, "train", batch_size=64):
            yield {**batch, "image": center_crop(batch["image"], config.data.image_size)}

    count(crops(), source=f"{config.data.source}:train").save(path)


def check_prior(config: Config, workdir: Path) -> None:
    """Refuses, before anything is trained, what `load_prior` would refuse after the pretraining.

    Raises:
        ValueError: if the prior's file is missing or damaged, or is to be counted and no training photo has color.
    """
    path = prior_file(config, workdir)
    if config.data.prior or path.exists():
        Prior.load(path)
    else:
        # Usually the first batch ends it.
        batches = data.eval_batches(config.data, "train", batch_size=16)
        require_color(batches, source=f"{config.data.source}:train")


def load_prior(config: Config, workdir: Path) -> Prior:
    """The prior of a run, counted first where it is missing.

    Args:
        config: see configs/paper.py.
        workdir: of the run.

    Raises:
        ValueError: if `data.prior` is missing or damaged.
    """
    path = prior_file(config, workdir)
    if not config.data.prior:
        if jax.process_index() == 0 and not path.exists():
            count_prior(config, path)
        # Every process comes by here, whether it came before or after the file.
        barrier("prior")
    return Prior.load(path)
