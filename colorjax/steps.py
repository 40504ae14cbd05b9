"""The jitted steps: one of training, one of evaluation, for either stage's model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from colorjax import color, losses, metrics, state
from colorjax.augment import augment, center_crop
from colorjax.config import Config
from colorjax.data import Batch
from colorjax.models import Outputs
from colorjax.state import Program, TrainState, Tree, Unaveraged


class Reference(NamedTuple):
    """What the colour term takes from the training split.

    Attributes:
        prior: float32 [313], the mean soft target.
        weights: float32 [313], the rarity weights.
    """

    prior: jax.Array
    weights: jax.Array


def make_train_step(
    program: Program,
    optimizer: optax.GradientTransformation,
    config: Config,
    stage: str,
    *,
    reference: Reference | None,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, metrics.Totals]]:
    """The jitted step: (state, batch of uint8 photos) -> (new state, metrics of the state before the update).

    Gradient accumulation splits the batch into `accumulate` microbatches, of which BatchNorm sees one at a time; the
    augmentation and the loss are those of the whole batch. With `ema` the state holds averages besides what is trained.
    With a teacher the batch has its features, the same for every view of a photo; the logged `loss` leaves them out.
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
        total, logged = loss(outputs, micro, targets, config, reference)
        if teacher_weight:
            assert outputs.vector is not None
            head = params[state.TEACHER_HEAD]
            taught, measured = losses.teacher_terms(outputs.vector, head, micro["teacher"], micro["mask"])
            total += teacher_weight * taught / len(micro["mask"])
            logged |= measured
        return total, (stats, logged)

    teacher_weight = config.loss.teacher_weight if stage == "joint" else 0
    gradient = jax.grad(loss_fn, has_aux=True)

    def step(before: TrainState, batch: Batch) -> tuple[TrainState, metrics.Totals]:
        # Random numbers are a function of (seed, step), so that a resumed run draws the same ones.
        key = jax.random.fold_in(jax.random.key(config.seed), before.step)
        rgb, inside = augment(jnp.asarray(batch["image"]), key, size=config.data.image_size, **config.augment)
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
            params, stats = state.moving_average(
                (before.params, before.stats), (now.params, now.stats), decay=ema, step=before.step
            )
            after = TrainState(before.step + 1, params, stats, now)
        else:
            after = TrainState(before.step + 1, *now)
        norm = optax.tree.norm(grads)
        return after, logged | {"gradient_norm": (norm, jnp.ones_like(norm))}

    whole, split = state.replicated(mesh), state.by_batch(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, split),
        out_shardings=whole,
        donate_argnums=0,
        compiler_options=state.compiler_options(),
    )


def make_eval_step(
    program: Program,
    config: Config,
    *,
    reference: Reference | None,
    mesh: Mesh,
) -> Callable[[Tree, Tree, Batch], tuple[metrics.Totals, jax.Array | None]]:
    """The jitted evaluation of a batch of uint8 photos, centre-cropped: (params, stats, batch) -> (metrics, photos).

    The training metrics; and of a Colorizer also `psnr` (dB), `colorfulness` and the photos' own `true_colorfulness`,
    and the coloured photos, uint8 [B, image_size, image_size, 3].
    """

    def step(params: Tree, stats: Tree, batch: Batch) -> tuple[metrics.Totals, jax.Array | None]:
        rgb, lab, targets = prepared(batch, config, reference)
        outputs, _ = program(params, stats, lab[..., :1], train=False)
        _, logged = loss(outputs, batch, targets, config, reference)
        if outputs.color is None:
            return logged, None
        predicted = colorized(outputs, lab[..., :1], temperature=config.decode.temperature)
        measures = {
            "psnr": metrics.psnr(predicted, rgb),
            "colorfulness": metrics.colorfulness(predicted),
            "true_colorfulness": metrics.colorfulness(rgb),
        }
        logged |= metrics.totals(measures, mask=batch["mask"])
        return logged, color.to_uint8(predicted)

    whole, split = state.replicated(mesh), state.by_batch(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, whole, split),
        out_shardings=(whole, split),
        compiler_options=state.compiler_options(),
    )


def colorized(outputs: Outputs, l: jax.Array, *, temperature: float) -> jax.Array:
    """The colour photo of a Colorizer's outputs: float32 [B, H, W, 3], 0…1, with the given L kept.

    Args:
        outputs: of the Colorizer; its colour is decoded by the annealed mean, or taken as it is (regression).
        l: float32 [B, H, W, 1], 0…100.
        temperature: of the annealed mean.
    """
    return painted(decoded(outputs, temperature=temperature), l)


def decoded(outputs: Outputs, *, temperature: float) -> jax.Array:
    """The ab of a Colorizer's outputs, float32 [B, h, w, 2], at the output's size; arguments as of `colorized`."""
    assert outputs.color is not None
    if outputs.color.shape[-1] == 2:
        return outputs.color
    return color.annealed_mean(outputs.color, temperature=temperature)


def painted(ab: jax.Array, l: jax.Array) -> jax.Array:
    """The photo of an L, float32 [B, H, W, 1], and an ab of any size, [B, h, w, 2]: float32 [B, H, W, 3], 0…1."""
    ab = jax.image.resize(ab, (*l.shape[:3], 2), "bilinear")
    return color.lab_to_rgb(jnp.concatenate([l, ab], axis=-1))


def cropped(image: Any, config: Config) -> jax.Array:
    """What evaluation sees of the host's photos: uint8 [B, S, S, 3] -> uint8 [B, image_size, image_size, 3]."""
    return center_crop(jnp.asarray(image), config.data.image_size)


def prepared(
    batch: Batch, config: Config, reference: Reference | None
) -> tuple[jax.Array, jax.Array, losses.ColorTargets | None]:
    """A batch as evaluation sees it: rgb and Lab of the centre crops, float32, and the colour targets if there is a
    reference."""
    rgb = cropped(batch["image"], config).astype(jnp.float32) / 255
    lab = color.rgb_to_lab(rgb)
    inside = jnp.ones(rgb.shape[:3], jnp.float32)
    return rgb, lab, _targets(lab, inside, jnp.asarray(batch["mask"]), config, reference)


def loss(
    outputs: Outputs,
    batch: Any,
    targets: losses.ColorTargets | None,
    config: Config,
    reference: Reference | None,
) -> tuple[jax.Array, metrics.Totals]:
    """losses.total_loss as the configuration wants it."""
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
    reference: Reference | None,
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
