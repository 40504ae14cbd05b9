"""BatchNorm's statistics, computed anew for weights that were never trained with the ones they have.

Averaged weights need this (docs/ablations.md, `ema`): an average of statistics is not the statistics of the average.
`colorjax export --statistics-batches=200` does it for any finished run.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from colorjax import color, data
from colorjax.model.program import Program, Tree
from colorjax.run.trained import Trained
from colorjax.training.augment import augment


def of_training(trained: Trained, data_dir: str | Path, *, batches: int, seed: int = 1) -> Tree:
    """A colorizer's statistics over augmented batches of its training photos.

    Args:
        trained: the colorizer.
        data_dir: where the photos are.
        batches: how many, of joint.batch_size photos each.
        seed: of their order and augmentation; not the training's own, of which the weights have seen these very views.
    """
    config = trained.config.copy_and_resolve_references().unlock()
    config.data.dir = str(data_dir)
    config.lock()
    size = config.data.image_size
    views = jax.jit(lambda image, key: color.rgb_to_lab(augment(image, key, size=size, **config.augment)[0])[..., :1])
    stream = data.train_batches(config.data, batch_size=config.joint.batch_size, seed=seed)
    inputs = (
        views(batch["image"], jax.random.fold_in(jax.random.key(seed), step))
        for step, batch in enumerate(itertools.islice(stream, batches))
    )
    return recomputed(trained.program(), trained.params, trained.stats, inputs)


def recomputed(program: Program, params: Tree, stats: Tree, inputs: Iterable[jax.Array]) -> Tree:
    """The mean and variance of every BatchNorm's input over all batches, each normalized by its own.

    The other statistics, the vectors of spectral normalization, have gone on by one power iteration a batch.

    Args:
        program: the model.
        params, stats: its parameters, and statistics of the same shapes.
        inputs: what the model is called with, batches of one size.

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
    """Of statistics [batches, …]: the mean and variance over all of them, of the others the last."""
    if not isinstance(node, dict):
        return node[-1].astype(np.float32)
    if node.keys() != {"mean", "var"}:
        return {name: _over_batches(child) for name, child in node.items()}
    variance = node["var"].mean(axis=0) + node["mean"].var(axis=0)
    return {"mean": node["mean"].mean(axis=0).astype(np.float32), "var": variance.astype(np.float32)}
