"""What an evaluation compares: a run's colorizer and the answers that need no network, measured photo by photo."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from colorjax import color, metrics
from colorjax.data import Batch, center_crop
from colorjax.data.prior import Prior
from colorjax.evaluation.judges import efficientnet, inception, lpips
from colorjax.evaluation.judges.weights import Weights
from colorjax.model.decode import compose_photo, decode_ab
from colorjax.model.program import Program, Tree
from colorjax.run import compilation, sharding
from colorjax.run.config import Config

ANSWERS = ("model", "prior", "mean color", "gray", "truth")

FEATURES = {"efficientnet": efficientnet.features, "inception": inception.features}
"""The networks whose features have a Fréchet distance."""

Scores = dict[str, dict[str, Any]]
"""Answer -> metric -> [B], NaN where a photo has no such value; or network -> its features, [B, channels]."""

Photos = dict[str, jax.Array]
"""Answer -> uint8 [B, image_size, image_size, 3]."""


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
) -> Callable[[Tree, Tree, Batch], tuple[Scores, Photos]]:
    """The jitted measuring of a batch of uint8 photos, center-cropped: (params, stats, batch) -> (scores, photos).

    The scores of the answers, and of the model at each temperature of the sweep, decoded from the same logits:

    - `psnr` (dB), `ssim`, `colorfulness`, `auc` and `auc_rebalanced` (percent), `delta_e` (CIEDE2000). A photo's
      rebalanced AuC weighs its pixels by 1 / p̃ of their true class (Zhang et al., equation 4 with λ = 0).
    - `mean_a` and `mean_b` of the answer's pixels, and `mean_color_distance`, the mean over pixels of their distance in
      ab to the training split's mean color: what brown is.
    - `color_ce` and `color_loss` of the model and the prior: the cross-entropy of color in nats a pixel, not weighted
      and weighted by rarity, NaN for a gray photo. Targets and weights are the paper's, whatever the run was trained
      with, so that ablation rows compare; they stand at the output's size.
    - `top1` and `top5` of the model, 1 or 0.

    Of the truth there are `colorfulness` and what brown is. A Classifier has no photos, and `top1` and `top5` alone.

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

    def step(params: Tree, stats: Tree, batch: Batch) -> tuple[Scores, Photos]:
        rgb = center_crop(jnp.asarray(batch["image"]), config.data.image_size).astype(jnp.float32) / 255
        lab = color.rgb_to_lab(rgb)
        l, ab = lab[..., :1], lab[..., 1:]
        outputs, _ = program(params, stats, l, train=False)
        labels = jnp.asarray(batch["label"])
        scores: Scores = {
            "model": {f"top{k}": metrics.top_k_correct(outputs.class_logits, labels, k=k) for k in (1, 5)}
        }
        if outputs.color is None:
            return scores, {}

        said = {
            "model": decode_ab(outputs, temperature=temperature),
            "prior": color.annealed_mean(log_prior, temperature=temperature),
            "mean color": mean_ab,
            "gray": jnp.zeros(2),
        } | {at_temperature(t): decode_ab(outputs, temperature=t) for t in sweep}
        weights = inverse[color.nearest_bin(ab)]

        def measured(said_ab: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
            photo = compose_photo(l, said_ab)
            predicted = color.rgb_to_lab(photo)
            values = {
                "psnr": metrics.psnr(photo, rgb),
                "ssim": metrics.ssim(photo, rgb),
                "colorfulness": metrics.colorfulness(photo),
                "auc": metrics.auc(predicted[..., 1:], ab),
                "auc_rebalanced": metrics.auc(predicted[..., 1:], ab, weights=weights),
                "delta_e": metrics.ciede2000(predicted, lab),
            }
            return values | browns(predicted[..., 1:]), color.to_uint8(photo)

        def browns(of: jax.Array) -> dict[str, jax.Array]:
            mean = of.mean(axis=(1, 2))
            distance = jnp.linalg.norm(of - mean_ab, axis=-1).mean(axis=(1, 2))
            return {"mean_a": mean[:, 0], "mean_b": mean[:, 1], "mean_color_distance": distance}

        # One after the other: a program for each answer would take long to compile.
        values, shown = jax.lax.map(
            measured, jnp.stack([jnp.broadcast_to(x, said["model"].shape) for x in said.values()])
        )
        for i, answer in enumerate(said):
            scores[answer] = scores.get(answer, {}) | {metric: value[i] for metric, value in values.items()}
        scores["truth"] = {"colorfulness": metrics.colorfulness(rgb)} | browns(ab)

        if config.model.head == "bins":
            small = color.downsample(ab, factor=config.model.output_stride)
            bins, shares = color.shared_bins(small)
            weight = rarity[bins[..., 0]]
            # As in training, a gray photo has no color to be told.
            gray = color.is_gray(ab)
            log_sum = jax.nn.logsumexp(outputs.color, axis=-1)
            entropies = {
                "model": log_sum - (shares * jnp.take_along_axis(outputs.color, bins, axis=-1)).sum(axis=-1),
                "prior": -(shares * log_prior[bins]).sum(axis=-1),
            }
            for answer, entropy in entropies.items():
                for metric, value in (("color_ce", entropy), ("color_loss", weight * entropy)):
                    scores[answer][metric] = jnp.where(gray, jnp.nan, value.mean(axis=(1, 2)))
        return scores, dict(zip(said, shown, strict=True)) | {"truth": color.to_uint8(rgb)}

    whole, split = sharding.replicated(mesh), sharding.by_batch(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, whole, split),
        out_shardings=split,
        compiler_options=compilation.compiler_options(),
    )


def make_judge(mesh: Mesh) -> Callable[[dict[str, Weights], jax.Array, jax.Array], dict[str, jax.Array]]:
    """The jitted judging of a batch of photos by networks: (judges, predicted, true) -> scores.

    Judges are weights by name, "lpips" and those of FEATURES; photos are uint8 [B, H, W, 3], what a file of them would
    hold. The scores are `lpips` [B] and the features of `predicted`, [B, channels], by the network's name.
    """

    def judged(judges: dict[str, Weights], predicted: jax.Array, true: jax.Array) -> dict[str, jax.Array]:
        scores = {name: network(judges[name], predicted) for name, network in FEATURES.items() if name in judges}
        if "lpips" in judges:
            maps, true_maps = (lpips.features(judges["lpips"], photo) for photo in (predicted, true))
            scores["lpips"] = lpips.distance(judges["lpips"], maps, true_maps)
        return scores

    whole, split = sharding.replicated(mesh), sharding.by_batch(mesh)
    return jax.jit(
        judged,
        in_shardings=(whole, split, split),
        out_shardings=split,
        compiler_options=compilation.compiler_options(),
    )
