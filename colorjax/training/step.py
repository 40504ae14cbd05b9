"""The jitted steps: one of training, one of validation, for either stage's model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from colorjax import color, metrics
from colorjax.data import Batch, center_crop
from colorjax.model.colorizer import Outputs
from colorjax.model.decode import make_decoder
from colorjax.model.program import TEACHER_HEAD, Program, Tree
from colorjax.run import compilation, sharding
from colorjax.run.checkpoints import TrainState, Unaveraged
from colorjax.run.config import STAGES, Config
from colorjax.training import losses
from colorjax.training.augment import augment
from colorjax.training.optimizer import moving_average

# Folded into the seed's key; the initialization folds in 0, 1, 2, … there.
_AUGMENTATION = 2**32 - 1


class ColorReference(NamedTuple):
    """What the color term takes from the training split.

    Attributes:
        prior: float32 [313], the mean soft target.
        weights: float32 [313], the rarity weights.
    """

    prior: jax.Array
    weights: jax.Array


def color_reference(p: np.ndarray, config: Config) -> ColorReference:
    """The reference of a prior's `p` with the rarity and smoothing of the configuration's `loss` section."""
    weights = color.rarity_weights(p, mix=config.loss.rarity, sigma=config.loss.sigma)
    return ColorReference(jnp.asarray(p, jnp.float32), jnp.asarray(weights, jnp.float32))


def make_train_step(
    program: Program,
    optimizer: optax.GradientTransformation,
    config: Config,
    stage: str,
    *,
    reference: ColorReference | None,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, metrics.Totals]]:
    """The jitted step: (state, batch of uint8 photos) -> (new state, metrics of the state before the update).

    Gradient accumulation splits the batch into `accumulate` microbatches; BatchNorm sees one at a time, and the
    augmentation and the loss are those of the whole batch. With `ema` the state holds averages besides what is trained.
    A teacher's features are the same for every view of a photo; the logged `loss` does not count its term.

    Raises:
        ValueError: if the devices and microbatches do not divide the batch, or `ema` is not a decay.
    """
    accumulate, batch_size, ema = config[stage].accumulate, config[stage].batch_size, config[stage].ema
    if not 0 <= ema < 1:
        raise ValueError(f"{stage}.ema is {ema}; a decay is at least 0, which is no average, and below 1")
    devices = mesh.devices.size
    if accumulate < 1 or batch_size % (accumulate * devices):
        raise ValueError(
            f"{stage}.batch_size is {batch_size}, which {devices} device(s) × {stage}.accumulate = "
            f"{accumulate} do not divide"
        )

    def loss_fn(params: Tree, stats: Tree, micro: dict) -> tuple[jax.Array, tuple[Tree, Any]]:
        lab = color.rgb_to_lab(micro["rgb"])
        outputs, stats = program(params, stats, lab[..., :1], train=True)
        targets = _targets(lab, micro["inside"], micro["mask"], config, reference)
        total, logged = _loss(outputs, micro, targets, config, reference)
        if teacher_weight:
            assert outputs.vector is not None
            head = params[TEACHER_HEAD]
            taught, measured = losses.teacher_terms(outputs.vector, head, micro["teacher"], micro["mask"])
            total += teacher_weight * taught / len(micro["mask"])
            logged |= measured
        return total, (stats, logged)

    teacher_weight = config.loss.teacher_weight if stage == "joint" else 0
    gradient = jax.grad(loss_fn, has_aux=True)

    def step(before: TrainState, batch: Batch) -> tuple[TrainState, metrics.Totals]:
        rgb, inside = augment(
            jnp.asarray(batch["image"]),
            augmentation_key(config.seed, stage, before.step),
            size=config.data.image_size,
            **config.augment,
        )
        whole = {name: x for name, x in batch.items() if name != "image"} | {"rgb": rgb, "inside": inside}
        now = before.opt_state if ema else Unaveraged(before.params, before.stats, before.opt_state)
        if accumulate == 1:
            grads, (stats, logged) = gradient(now.params, now.stats, whole)
        else:
            # Every accumulate-th photo, so that a microbatch is as evenly spread over the devices as the batch.
            micros = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), whole)

            def add(carry: tuple[Tree, Tree], micro: dict) -> tuple[tuple[Tree, Tree], Any]:
                total, stats = carry
                grads, (stats, logged) = gradient(now.params, stats, micro)
                return (jax.tree.map(jnp.add, total, grads), stats), logged

            zeros = jax.tree.map(jnp.zeros_like, now.params)
            (grads, stats), logged = jax.lax.scan(add, (zeros, now.stats), micros)
            grads = jax.tree.map(lambda g: g / accumulate, grads)
            logged = jax.tree.map(lambda x: x.sum(axis=0), logged)
        updates, opt_state = optimizer.update(grads, now.opt_state, now.params)
        now = Unaveraged(jax.tree.map(jnp.add, now.params, updates), stats, opt_state)
        if ema:
            params, stats = moving_average(
                (before.params, before.stats), (now.params, now.stats), decay=ema, step=before.step
            )
            after = TrainState(before.step + 1, params, stats, now)
        else:
            after = TrainState(before.step + 1, *now)
        norm = optax.tree.norm(grads)
        return after, logged | {"gradient_norm": (norm, jnp.ones_like(norm))}

    whole, split = sharding.replicated(mesh), sharding.by_batch(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, split),
        out_shardings=whole,
        donate_argnums=0,
        compiler_options=compilation.compiler_options(),
    )


def augmentation_key(seed: int, stage: str, step: jax.Array | int) -> jax.Array:
    """The key of a step's augmentation: a function of seed, stage and step, so that a resumed run draws the same.

    No other stage, step or purpose has the same key.
    """
    key = jax.random.fold_in(jax.random.key(seed), _AUGMENTATION)
    return jax.random.fold_in(jax.random.fold_in(key, STAGES.index(stage)), step)


def make_eval_step(
    program: Program,
    config: Config,
    *,
    reference: ColorReference | None,
    mesh: Mesh,
) -> Callable[[Tree, Tree, Batch], tuple[metrics.Totals, jax.Array | None]]:
    """The jitted validation of a batch of uint8 photos, center-cropped: (params, stats, batch) -> (metrics, photos).

    The training metrics; for a Colorizer also `psnr` (dB), `colorfulness` and the photos' own `true_colorfulness`,
    and the colored photos, uint8 [B, image_size, image_size, 3].
    """

    decoder = None if reference is None else make_decoder(config, np.asarray(reference.prior))

    def step(params: Tree, stats: Tree, batch: Batch) -> tuple[metrics.Totals, jax.Array | None]:
        rgb = center_crop(jnp.asarray(batch["image"]), config.data.image_size).astype(jnp.float32) / 255
        lab = color.rgb_to_lab(rgb)
        inside = jnp.ones(rgb.shape[:3], jnp.float32)
        targets = _targets(lab, inside, jnp.asarray(batch["mask"]), config, reference)
        outputs, _ = program(params, stats, lab[..., :1], train=False)
        _, logged = _loss(outputs, batch, targets, config, reference)
        if outputs.color is None:
            return logged, None
        assert decoder is not None
        predicted = decoder.photo(outputs.color, lab[..., :1])
        measures = {
            "psnr": metrics.psnr(predicted, rgb),
            "colorfulness": metrics.colorfulness(predicted),
            "true_colorfulness": metrics.colorfulness(rgb),
        }
        logged |= metrics.totals(measures, mask=batch["mask"])
        return logged, color.to_uint8(predicted)

    whole, split = sharding.replicated(mesh), sharding.by_batch(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, whole, split),
        out_shardings=(whole, split),
        compiler_options=compilation.compiler_options(),
    )


def _loss(
    outputs: Outputs,
    batch: Any,
    targets: losses.ColorTargets | None,
    config: Config,
    reference: ColorReference | None,
) -> tuple[jax.Array, metrics.Totals]:
    return losses.total_loss(
        outputs,
        labels=jnp.asarray(batch["label"]),
        mask=jnp.asarray(batch["mask"]),
        targets=targets,
        prior=None if config.model.head == "ab" or reference is None else reference.prior,
        config=config.loss,
    )


def _targets(
    lab: jax.Array,
    inside: jax.Array,
    mask: jax.Array,
    config: Config,
    reference: ColorReference | None,
) -> losses.ColorTargets | None:
    if reference is None:
        return None
    return losses.color_targets(
        lab[..., 1:],
        inside=inside,
        mask=mask,
        factor=config.model.output_stride,
        rarity_weights=reference.weights,
        neighbors=config.loss.neighbors,
        sigma=config.loss.sigma,
    )
