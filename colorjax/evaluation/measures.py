"""The metrics of every photo, for the model and for the baselines."""

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
from colorjax.model.decode import compose_photo, make_decoder
from colorjax.model.program import Program, Tree
from colorjax.run import compilation, sharding
from colorjax.run.config import Config

BASELINES = ("prior", "mean color", "gray")
"""The annealed prior, the training split's mean color, and no color."""
METHODS = ("model", *BASELINES, "truth")

FEATURES = {"efficientnet": efficientnet.features, "inception": inception.features}
"""Network -> the features between which a Fréchet distance is computed."""

Scores = dict[str, dict[str, Any]]
"""Method -> metric -> [B], NaN where the metric is undefined for a photo; and network -> features [B, channels]."""

Photos = dict[str, jax.Array]
"""Method -> uint8 [B, image_size, image_size, 3]."""


def at_temperature(temperature: float) -> str:
    """The name under which the model is scored at another temperature."""
    return f"T = {temperature:g}"


def make_measure(
    program: Program,
    config: Config,
    *,
    prior: Prior | None,
    sweep: tuple[float, ...],
    mesh: Mesh,
) -> Callable[[Tree, Tree, Batch], tuple[Scores, Photos]]:
    """Builds the jitted function (params, stats, batch) -> (scores, photos) for batches of uint8 photos.

    Photos are center-cropped. The scores of the model, the baselines, and the model at each temperature of the sweep:

    - `psnr` (dB), `ssim`, `colorfulness`, `auc` and `auc_rebalanced` (percent), `delta_e` (CIEDE2000). The rebalanced
      AuC weights a pixel by 1 / p̃ of its true class (Zhang et al., equation 4 with λ = 0).
    - `mean_a` and `mean_b`, the photo's mean color, and `mean_color_distance`, the mean over pixels of the ab distance
      to the training split's mean color. A brown photo has a small one.
    - `color_ce` and `color_loss` of the model and the prior: the color cross-entropy in nats a pixel, without and with
      rarity weights; NaN for a gray photo. Targets and weights are the paper's, however the run was trained, so that
      ablation rows compare. They have the output's size.
    - `top1` and `top5` of the model, 1 or 0. `top5` is left out with five classes or fewer, where it is always 1.
    - `finite` of the model: whether all outputs of its networks are finite.

    The truth has `colorfulness`, `mean_a`, `mean_b` and `mean_color_distance` only. A Classifier makes no photos; its
    scores are `top1`, `top5` and `finite`.

    Args:
        program: the model.
        config: the run's configuration; the prior is annealed at its temperature too.
        prior: the run's prior; None for a Classifier.
        sweep: further temperatures for the model.
        mesh: the devices that share a batch.
    """
    if prior is not None:
        log_prior = jnp.log(jnp.maximum(jnp.asarray(prior.p, jnp.float32), 1e-8))
        mean_ab = jnp.asarray(prior.mean_ab, jnp.float32).reshape(1, 1, 1, 2)
        rarity = jnp.asarray(color.rarity_weights(prior.p))
        inverse = jnp.asarray(color.rarity_weights(prior.p, mix=0.0))
        decoder = make_decoder(config, prior.p)

    def color_statistics(ab: jax.Array) -> dict[str, jax.Array]:
        mean = ab.mean(axis=(1, 2))
        distance = jnp.linalg.norm(ab - mean_ab, axis=-1).mean(axis=(1, 2))
        return {"mean_a": mean[:, 0], "mean_b": mean[:, 1], "mean_color_distance": distance}

    def measure(params: Tree, stats: Tree, batch: Batch) -> tuple[Scores, Photos]:
        rgb = center_crop(jnp.asarray(batch["image"]), config.data.image_size).astype(jnp.float32) / 255
        lab = color.rgb_to_lab(rgb)
        l, ab = lab[..., :1], lab[..., 1:]
        outputs, _ = program(params, stats, l, train=False)
        labels = jnp.asarray(batch["label"])
        ranks = (1, 5) if outputs.class_logits.shape[-1] > 5 else (1,)
        scores: Scores = {"model": {f"top{k}": metrics.top_k_correct(outputs.class_logits, labels, k=k) for k in ranks}}
        scores["model"]["finite"] = jnp.isfinite(outputs.class_logits).all(axis=-1)
        if outputs.color is None:
            return scores, {}
        scores["model"]["finite"] &= jnp.isfinite(outputs.color).all(axis=(1, 2, 3))

        predictions = {
            "model": decoder.ab(outputs.color),
            "prior": color.annealed_mean(log_prior, temperature=decoder.temperature).reshape(1, 1, 1, 2),
            "mean color": mean_ab,
            "gray": jnp.zeros((1, 1, 1, 2)),
        } | {at_temperature(t): decoder.ab(outputs.color, temperature=t) for t in sweep}
        weights = inverse[color.nearest_bin(ab)]

        def score(predicted_ab: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
            photo = compose_photo(l, predicted_ab)
            predicted = color.rgb_to_lab(photo)
            values = {
                "psnr": metrics.psnr(photo, rgb),
                "ssim": metrics.ssim(photo, rgb),
                "colorfulness": metrics.colorfulness(photo),
                "auc": metrics.auc(predicted[..., 1:], ab),
                "auc_rebalanced": metrics.auc(predicted[..., 1:], ab, weights=weights),
                "delta_e": metrics.ciede2000(predicted, lab),
            }
            return values | color_statistics(predicted[..., 1:]), color.to_uint8(photo)

        # One after the other: compiling a program for each method would take long.
        stacked = jnp.stack([jnp.broadcast_to(x, predictions["model"].shape) for x in predictions.values()])
        values, photos = jax.lax.map(score, stacked)
        for i, method in enumerate(predictions):
            scores[method] = scores.get(method, {}) | {metric: value[i] for metric, value in values.items()}
        scores["truth"] = {"colorfulness": metrics.colorfulness(rgb)} | color_statistics(ab)

        if config.model.head == "bins":
            small = color.downsample(ab, factor=config.model.output_stride)
            bins, shares = (jnp.stack(x, axis=-1) for x in color.bin_shares(small, in_gamut=True))
            weight = rarity[bins[..., 0]]
            # As in training, a gray photo has no color to predict.
            gray = color.is_gray(ab)
            log_sum = jax.nn.logsumexp(outputs.color, axis=-1)
            entropies = {
                "model": log_sum - (shares * jnp.take_along_axis(outputs.color, bins, axis=-1)).sum(axis=-1),
                "prior": -(shares * log_prior[bins]).sum(axis=-1),
            }
            for method, entropy in entropies.items():
                for metric, value in (("color_ce", entropy), ("color_loss", weight * entropy)):
                    scores[method][metric] = jnp.where(gray, jnp.nan, value.mean(axis=(1, 2)))
        return scores, dict(zip(predictions, photos, strict=True)) | {"truth": color.to_uint8(rgb)}

    whole, split = sharding.replicated(mesh), sharding.by_batch(mesh)
    return jax.jit(
        measure,
        in_shardings=(whole, whole, split),
        out_shardings=split,
        compiler_options=compilation.compiler_options(),
    )


def make_judge(mesh: Mesh) -> Callable[[dict[str, Weights], jax.Array, jax.Array], dict[str, jax.Array]]:
    """Builds the jitted function (judges, predicted, true) -> scores that applies pretrained networks to photos.

    `judges` holds weights by network: "lpips", and those of FEATURES. Photos are uint8 [B, H, W, 3], as a file would
    hold them. The scores are `lpips` [B], and under the other networks' names the features of `predicted`,
    [B, channels].
    """

    def judge(judges: dict[str, Weights], predicted: jax.Array, true: jax.Array) -> dict[str, jax.Array]:
        scores = {name: network(judges[name], predicted) for name, network in FEATURES.items() if name in judges}
        if "lpips" in judges:
            scores["lpips"] = lpips.distance(judges["lpips"], predicted, true)
        return scores

    whole, split = sharding.replicated(mesh), sharding.by_batch(mesh)
    return jax.jit(
        judge,
        in_shardings=(whole, split, split),
        out_shardings=split,
        compiler_options=compilation.compiler_options(),
    )
