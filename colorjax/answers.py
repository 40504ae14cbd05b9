"""What an evaluation compares: a run's colorizer and the answers that need no network, measured photo by photo."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from colorjax import color, losses, metrics, state, steps
from colorjax.config import Config
from colorjax.data import Batch
from colorjax.prior import Prior
from colorjax.state import Program, Tree

ANSWERS = ("model", "prior", "mean colour", "gray", "truth")

Scores = dict[str, dict[str, Any]]
"""Answer -> metric -> [B], or [B, channels] of features; NaN where a photo has no such value."""


def at_temperature(temperature: float) -> str:
    """The answer's name of the model decoded at another temperature."""
    return f"T = {temperature:g}"


def make_step(
    program: Program,
    config: Config,
    *,
    prior: Prior | None,
    temperature: float,
    sweep: tuple[float, ...],
    mesh: Mesh,
) -> Callable[[Tree, Tree, Batch], tuple[Scores, jax.Array | None]]:
    """The jitted measuring of a batch of uint8 photos, centre-cropped: (params, stats, batch) -> (scores, photos).

    The scores of the answers, and of the model at each temperature of the sweep, decoded from the same logits:

    - `psnr` (dB), `ssim`, `colorfulness`, `auc` and `auc_rebalanced` (percent), `delta_e` (CIEDE2000). A photo's
      rebalanced AuC weighs its pixels by 1 / p̃ of their true class (Zhang et al., equation 4 with λ = 0).
    - `color_ce` and `color_loss` of the model and the prior: the cross-entropy of colour in nats a pixel, not weighted
      and weighted by rarity, NaN for a gray photo. Targets and weights are the paper's, whatever the run was trained
      with, so that ablation rows compare; they stand at the output's size.
    - `top1` and `top5` of the model, 1 or 0.

    Of the truth there is `colorfulness` alone. The photos are the model's, uint8 [B, image_size, image_size, 3]; None
    of a Classifier.

    Args:
        program: the model.
        config: of the run.
        prior: of the run; None for a Classifier.
        temperature: of the annealed mean of model and prior.
        sweep: further temperatures for the model.
        mesh: over which batches are split.
    """
    if prior is not None:
        log_prior = jnp.log(jnp.maximum(jnp.asarray(prior.p, jnp.float32), 1e-8))
        mean_ab = jnp.asarray(prior.mean_ab, jnp.float32)
        rarity = jnp.asarray(color.rarity_weights(prior.p))
        inverse = jnp.asarray(color.rarity_weights(prior.p, mix=0.0))

    def step(params: Tree, stats: Tree, batch: Batch) -> tuple[Scores, jax.Array | None]:
        rgb, lab, _ = steps.prepared(batch, config, None)
        l, ab = lab[..., :1], lab[..., 1:]
        outputs, _ = program(params, stats, l, train=False)
        labels = jnp.asarray(batch["label"])
        scores: Scores = {
            "model": {f"top{k}": metrics.top_k_correct(outputs.class_logits, labels, k=k) for k in (1, 5)}
        }
        if outputs.color is None:
            return scores, None

        def constant(ab: jax.Array) -> jax.Array:
            return color.lab_to_rgb(jnp.concatenate([l, jnp.broadcast_to(ab, lab[..., 1:].shape)], axis=-1))

        photos = {
            "model": steps.colorized(outputs, l, temperature=temperature),
            "prior": constant(color.annealed_mean(log_prior, temperature=temperature)),
            "mean colour": constant(mean_ab),
            "gray": constant(jnp.zeros(2)),
        } | {at_temperature(t): steps.colorized(outputs, l, temperature=t) for t in sweep}
        weights = inverse[color.nearest_bin(ab)]

        def measured(photo: jax.Array) -> dict[str, jax.Array]:
            predicted = color.rgb_to_lab(photo)
            return {
                "psnr": metrics.psnr(photo, rgb),
                "ssim": metrics.ssim(photo, rgb),
                "colorfulness": metrics.colorfulness(photo),
                "auc": metrics.auc(predicted[..., 1:], ab),
                "auc_rebalanced": metrics.auc(predicted[..., 1:], ab, weights=weights),
                "delta_e": metrics.ciede2000(predicted, lab),
            }

        # One after the other: a program for each answer would take long to compile.
        values = jax.lax.map(measured, jnp.stack([*photos.values()]))
        for i, answer in enumerate(photos):
            scores[answer] = scores.get(answer, {}) | {metric: value[i] for metric, value in values.items()}
        scores["truth"] = {"colorfulness": metrics.colorfulness(rgb)}

        if config.model.head == "bins":
            small = color.downsample(ab, factor=config.model.output_stride)
            targets, weight = color.soft_targets(small), rarity[color.nearest_bin(small)]
            # As in training, a gray photo has no colour to be told.
            gray = color.is_gray(ab)
            for answer, logits in (("model", outputs.color), ("prior", log_prior)):
                entropy = losses.cross_entropy(logits, targets)
                for metric, value in (("color_ce", entropy), ("color_loss", weight * entropy)):
                    scores[answer][metric] = jnp.where(gray, jnp.nan, value.mean(axis=(1, 2)))
        return scores, color.to_uint8(photos["model"])

    whole, split = state.replicated(mesh), state.by_batch(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, whole, split),
        out_shardings=split,
        compiler_options=state.compiler_options(),
    )
