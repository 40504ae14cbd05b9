"""Computes BatchNorm's statistics anew, for weights that do not fit the statistics that they have.

Averaged weights need this (docs/ablations.md, row `ema`): an average of statistics is not the statistics of the
average. `colorjax export --statistics-batches=200` does it for any finished run.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from colorjax import color, data
from colorjax.model.program import Program, Tree
from colorjax.run.trained import Trained


def training_statistics(trained: Trained, *, batches: int, data_dir: str | Path | None = None, seed: int = 1) -> Tree:
    """A colorizer's statistics over batches of its training photos, center-cropped as in evaluation.

    They are not augmented: turning and scaling blurs a photo, and the statistics of blurred photos do not fit others
    (docs/pilots.md; Touvron et al., *Fixing the train-test resolution discrepancy*, NeurIPS 2019, find the like).

    Args:
        trained: the colorizer.
        batches: number of batches, of `joint.batch_size` photos each.
        data_dir: where the photos are; None is the colorizer's own data.dir.
        seed: of the photos' order.

    Raises:
        FileNotFoundError, ValueError: as `data.train_batches`.
    """
    config = trained.config.copy_and_resolve_references().unlock()
    config.data.dir = config.data.dir if data_dir is None else str(data_dir)
    config.lock()
    size = config.data.image_size
    lightness = jax.jit(
        lambda image: color.rgb_to_lab(data.center_crop(image, size).astype(jnp.float32) / 255)[..., :1]
    )
    stream = data.train_batches(config.data, batch_size=config.joint.batch_size, seed=seed)
    inputs = (lightness(batch["image"]) for batch in itertools.islice(stream, batches))
    return statistics_over(inputs, trained.program(), trained.params, trained.stats)


def statistics_over(inputs: Iterable[jax.Array], program: Program, params: Tree, stats: Tree) -> Tree:
    """The mean and variance of every BatchNorm's input over all batches, while each batch is normalized by its own.

    The other statistics, the vectors of spectral normalization, go on by one power iteration a batch.

    Args:
        inputs: what the model is called with, batches of one size.
        program: the model.
        params, stats: its parameters, and statistics of the same shapes.

    Raises:
        ValueError: if there is no batch.
    """

    @jax.jit
    def measure(params: Tree, stats: Tree, x: jax.Array) -> Tree:
        model = program.merged(params, stats)
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.BatchNorm):
                module.momentum = 0.0  # the new statistics are the batch's own
        return Program.split(_trained_on(model, x))[2]

    params = jax.device_put(params)
    each = []
    for x in inputs:
        stats = measure(params, stats, x)
        each.append(jax.device_get(stats))
    if not each:
        raise ValueError("there is no batch to compute the statistics of")
    return _over_batches(jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float64), *each))


def _trained_on(model: nnx.Module, x: jax.Array) -> nnx.Module:
    model.train()
    model(x)  # pyright: ignore[reportCallIssue]
    return model


def _over_batches(node: Any) -> Any:
    """Combines statistics [batches, …]: the mean and variance over all batches; of other statistics the last."""
    if not isinstance(node, dict):
        return node[-1].astype(np.float32)
    if node.keys() != {"mean", "var"}:
        return {name: _over_batches(child) for name, child in node.items()}
    variance = node["var"].mean(axis=0) + node["mean"].var(axis=0)
    return {"mean": node["mean"].mean(axis=0).astype(np.float32), "var": variance.astype(np.float32)}
