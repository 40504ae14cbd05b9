"""One pass over a split on all devices and hosts: every photo's scores, or some of its photos, in the split's order."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from colorjax import data
from colorjax.data.batches import Share, center_crop
from colorjax.evaluation.measures import Photos, Scores
from colorjax.run import sharding
from colorjax.run.config import Config

Measure = Callable[[data.Batch], tuple[Scores, Photos]]
"""This host's share of a batch -> the scores and the photos of the whole batch, on the devices."""


def scores(measure: Measure, config: Config, split: str, share: Share) -> tuple[np.ndarray, np.ndarray, Scores]:
    """Scores every photo that decodes: its position in the split [N], its label [N] and its scores.

    Padding is left out. Besides what `measure` returns, every method but the truth gets `colorfulness_difference`,
    predicted − true, and `colorfulness_error`, its absolute value; the model gets `true_colorfulness`.
    """
    local: list[Any] = []
    pending: list[tuple[data.Batch, Scores]] = []

    def fetch() -> None:
        batch, measured = pending.pop(0)
        local.append((batch["mask"], batch["label"], jax.tree.map(sharding.local_rows, measured)))

    # None shows the bar on a terminal only.
    options = {"dynamic_ncols": True, "leave": False, "disable": True if share.process_index else None}
    with tqdm(total=data.dataset_info(config.data).sizes.get(split), desc=split, unit=" photos", **options) as bar:
        for batch in _batches(config, split, share):
            pending.append((batch, measure(batch)[0]))
            if len(pending) > 1:  # the devices already work on the next one
                fetch()
                bar.update(share.batch_size)
        while pending:
            fetch()
    joined = jax.tree.map(lambda *rows: np.concatenate(rows), *local)
    mask, labels, scores = jax.tree.map(lambda rows: _from_all_hosts(rows, share), joined)
    index = np.flatnonzero(mask > 0)
    labels, scores = jax.tree.map(lambda rows: rows[index], (labels, scores))
    if "truth" in scores:
        true = scores["truth"]["colorfulness"]
        for method in scores.keys() - {"truth"}:
            difference = scores[method]["colorfulness"] - true
            scores[method] |= {"colorfulness_difference": difference, "colorfulness_error": np.abs(difference)}
        scores["model"]["true_colorfulness"] = true
    return index, labels, scores


def photos(positions: np.ndarray, config: Config, split: str, share: Share) -> np.ndarray:
    """The photos at these positions of the split, uint8 [N, S, S, 3], on every host."""
    found: np.ndarray | None = None
    for step, batch in enumerate(_batches(config, split, share)):
        if found is None:
            found = np.zeros((len(positions), *batch["image"].shape[1:]), np.uint8)
        for row, position in enumerate(share.positions(step)):
            found[positions == position] = batch["image"][row]
        if (step + 1) * share.batch_size > positions.max():
            break
    # One host has read a photo; it is black on the others.
    return multihost_utils.process_allgather(found).sum(axis=0, dtype=np.uint8)


def colored(measure: Measure, raw: np.ndarray, config: Config, share: Share) -> tuple[np.ndarray, np.ndarray]:
    """Photos as the network sees them and as it colors them, uint8 [N, image_size, image_size, 3] each."""
    local = []
    for start in range(0, len(raw), share.batch_size):
        whole = np.zeros((share.batch_size, *raw.shape[1:]), np.uint8)
        rows = raw[start : start + share.batch_size]
        whole[: len(rows)] = rows
        batch = data.Batch(
            image=whole[share.rows],
            label=np.zeros(share.local_size, np.int32),
            mask=np.ones(share.local_size, np.float32),
        )
        local.append(sharding.local_rows(measure(batch)[1]["model"]))
    predicted = _from_all_hosts(np.concatenate(local), share)[: len(raw)]
    return np.asarray(center_crop(raw, config.data.image_size)), predicted


def _batches(config: Config, split: str, share: Share) -> Iterator[data.Batch]:
    return data.eval_batches(
        config.data,
        split,
        batch_size=share.batch_size,
        process_index=share.process_index,
        process_count=share.process_count,
    )


def _from_all_hosts(rows: np.ndarray, share: Share) -> np.ndarray:
    """One host's rows of all batches, [batches · local_size, …], to the rows of all hosts, in the split's order."""
    hosts = multihost_utils.process_allgather(rows).reshape(share.process_count, -1, share.local_size, *rows.shape[1:])
    return hosts.swapaxes(0, 1).reshape(-1, *rows.shape[1:])
