"""Loss (1) of the paper: the class's cross-entropy and the rarity-weighted cross-entropy of every pixel's color."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from colorjax import color, metrics
from colorjax.model.colorizer import Outputs
from colorjax.model.program import Tree
from colorjax.ops import dispatch
from colorjax.run.config import Config


class ColorTargets(NamedTuple):
    """What the color term compares with, at the output's size, float32.

    Attributes:
        ab: [B, h, w, 2], average-pooled.
        bins, shares: the soft targets (color.bin_shares): for each neighbor int32 and float32 [B, h, w].
        weight: [B, h, w], v of loss (1): the rarity weight of the nearest bin.
        valid: [B, h, w], 1 where the pixel counts: not outside the photo, not of a gray photo, not of padding.
    """

    ab: jax.Array
    bins: Sequence[jax.Array]
    shares: Sequence[jax.Array]
    weight: jax.Array
    valid: jax.Array


def color_targets(
    ab: jax.Array,
    *,
    inside: jax.Array,
    mask: jax.Array,
    factor: int,
    rarity_weights: jax.Array,
    neighbors: int,
    sigma: float,
) -> ColorTargets:
    """The color targets of a batch.

    Args:
        ab: float32 [B, S, S, 2], of sRGB colors.
        inside: float32 [B, S, S], 0 where augmentation reached outside the photo.
        mask: float32 [B], 0 where there is no photo.
        factor: S over the output's side.
        rarity_weights: float32 [313] (color.rarity_weights).
        neighbors, sigma: of the soft targets (color.soft_targets).
    """
    small = color.downsample(ab, factor=factor)
    # A pixel that averages anything from outside the photo is outside.
    wholly_inside = color.downsample(inside[..., None], factor=factor)[..., 0] == 1
    colored = ~color.is_gray(ab)
    valid = wholly_inside & (colored & (mask > 0))[:, None, None]
    bins, shares = color.bin_shares(small, neighbors=neighbors, sigma=sigma, in_gamut=True)
    return ColorTargets(
        ab=small,
        bins=bins,
        shares=shares,
        weight=weighted_lookup(rarity_weights, bins[:1], [jnp.ones_like(shares[0])]),
        valid=valid.astype(jnp.float32),
    )


def weighted_lookup(table: jax.Array, bins: Sequence[jax.Array], shares: Sequence[jax.Array]) -> jax.Array:
    """Σ_k share_k · table[bin_k].

    Args:
        table: floating [313], or [..., 313] with a row for each place.
        bins, shares: for each k int32 and float32 [...] (color.bin_shares).

    Returns:
        float32 [...].
    """

    def by_gather(table: jax.Array, bins: Sequence[jax.Array], shares: Sequence[jax.Array]) -> jax.Array:
        def entry(index: jax.Array) -> jax.Array:
            return table[index] if table.ndim == 1 else jnp.take_along_axis(table, index[..., None], axis=-1)[..., 0]

        return functools.reduce(jnp.add, [share * entry(index) for index, share in zip(bins, shares, strict=True)])

    def by_product(table: jax.Array, bins: Sequence[jax.Array], shares: Sequence[jax.Array]) -> jax.Array:
        # Gathers are slow on a TPU.
        dense = color.dense_shares(bins, shares)
        return (dense * jnp.expand_dims(table, range(dense.ndim - table.ndim))).sum(axis=-1)

    return dispatch.by_platform(table, list(bins), list(shares), tpu=by_product, default=by_gather)


@jax.custom_vjp
def cross_entropy(logits: jax.Array, bins: Sequence[jax.Array], shares: Sequence[jax.Array]) -> jax.Array:
    """−Σ_k share_k · log softmax(logits)[bin_k], without dense targets. Only the logits have a gradient.

    Args:
        logits: float32 [..., 313].
        bins, shares: for each k int32 and float32 [...] (color.bin_shares); the shares sum to 1.

    Returns:
        float32 [...].
    """
    return _cross_entropy_fwd(logits, bins, shares)[0]


def _cross_entropy_fwd(
    logits: jax.Array, bins: Sequence[jax.Array], shares: Sequence[jax.Array]
) -> tuple[jax.Array, tuple]:
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    return log_sum - weighted_lookup(logits, bins, shares), (logits, log_sum, bins, shares)


def _cross_entropy_bwd(residuals: tuple, cotangent: jax.Array) -> tuple:
    logits, log_sum, bins, shares = residuals
    probability = jnp.exp(logits - log_sum[..., None])
    return (probability - color.dense_shares(bins, shares)) * cotangent[..., None], None, None


cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def class_terms(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> tuple[jax.Array, metrics.Totals]:
    """The class term of loss (1).

    Args:
        logits: float32 [B, classes].
        labels: int32 [B].
        mask: float32 [B].

    Returns:
        The sum over the photos, and `class_loss` and `accuracy`.
    """
    total = jnp.sum(mask * optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    correct = jnp.sum(mask * (jnp.argmax(logits, axis=-1) == labels))
    count = jnp.sum(mask)
    return total, {"class_loss": (total, count), "accuracy": (correct, count)}


def teacher_terms(
    vector: jax.Array, head: Tree, features: jax.Array, mask: jax.Array
) -> tuple[jax.Array, metrics.Totals]:
    """The teacher's term: 1 − the cosine between a linear map of the global vector and the teacher's features.

    Args:
        vector: float32 [B, C] (colorizer.Outputs).
        head: the map's `kernel` [C, F] and `bias` [F].
        features: float32 [B, F], standardized (data.teacher.Teacher).
        mask: float32 [B].

    Returns:
        The sum over the photos, and `teacher_loss`.
    """
    predicted = vector @ head["kernel"] + head["bias"][None]
    total = jnp.sum(mask * (1 - optax.cosine_similarity(predicted, features, epsilon=1e-6)))
    return total, {"teacher_loss": (total, jnp.sum(mask))}


def color_terms(logits: jax.Array, targets: ColorTargets, *, prior: jax.Array) -> tuple[jax.Array, metrics.Totals]:
    """The color term of loss (1), summed over the photos and their pixels.

    Args:
        logits: float32 [B, h, w, 313].
        targets: color_targets.
        prior: float32 [313], the training split's mean soft target: the constant answer that a network has to beat.

    Returns:
        The sum; and by pixel `color_loss` (weighted), `color_ce` (not weighted), and the same two of the prior,
        `prior_color_loss` and `prior_color_ce`.
    """
    valid, count = targets.valid, jnp.sum(targets.valid)
    weight = valid * targets.weight
    of_network = cross_entropy(logits, targets.bins, targets.shares)
    # A bin that training never saw must not make the reference infinite.
    of_prior = -weighted_lookup(jnp.log(jnp.maximum(prior, 1e-8)), targets.bins, targets.shares)
    total = jnp.sum(weight * of_network)
    return total, {
        "color_loss": (total, count),
        "color_ce": (jnp.sum(valid * of_network), count),
        "prior_color_loss": (jnp.sum(weight * of_prior), count),
        "prior_color_ce": (jnp.sum(valid * of_prior), count),
    }


def regression_terms(ab: jax.Array, targets: ColorTargets) -> tuple[jax.Array, metrics.Totals]:
    """Iizuka's color term: the squared error of ab on the scale of 0…1, summed over the photos and their pixels.

    Args:
        ab: float32 [B, h, w, 2].
        targets: color_targets; its rarity weights count here as well (λ = 1 switches them off).

    Returns:
        The sum, and `color_loss` by pixel.
    """
    error = jnp.sum(((ab - targets.ab) / 256) ** 2, axis=-1)
    total = jnp.sum(targets.valid * targets.weight * error)
    return total, {"color_loss": (total, jnp.sum(targets.valid))}


def total_loss(
    outputs: Outputs,
    *,
    labels: jax.Array,
    mask: jax.Array,
    targets: ColorTargets | None,
    prior: jax.Array | None,
    config: Config,
) -> tuple[jax.Array, metrics.Totals]:
    """Loss (1) of a batch, and what is logged of it.

    The mean over the batch's photos of `class_weight` · class term + color term. It is linear in the photos, so that
    microbatches and devices add up to it exactly.

    Args:
        outputs: a model's.
        labels, mask: int32 [B] and float32 [B].
        targets, prior: of the Colorizer's outputs; None for the Classifier's.
        config: the `loss` section of the configuration.
    """
    batch = labels.shape[0]
    class_sum, measured = class_terms(outputs.class_logits, labels, mask)
    total = class_sum
    if outputs.color is not None:
        assert targets is not None
        if prior is None:
            color_sum, color_measured = regression_terms(outputs.color, targets)
        else:
            color_sum, color_measured = color_terms(outputs.color, targets, prior=prior)
        pixels = outputs.color.shape[1] * outputs.color.shape[2]
        if config.pixels not in ("sum", "mean"):
            raise ValueError(f"loss.pixels is {config.pixels!r}; it must be 'sum' or 'mean'")
        color_sum = color_sum / pixels if config.pixels == "mean" else color_sum
        total = config.class_weight * class_sum + color_sum
        measured |= color_measured
    # Padding and undecodable photos are in the batch, but in no mean.
    return total / batch, measured | {"loss": (total, jnp.sum(mask))}
