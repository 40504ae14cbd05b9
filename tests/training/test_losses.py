"""Loss (1) against numpy written out pixel by pixel."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from colorjax import color
from colorjax.model.colorizer import Outputs
from colorjax.training import losses

_RNG = np.random.default_rng(0)
_WEIGHTS = _RNG.uniform(0.2, 3, 313).astype(np.float32)
_PRIOR = _RNG.dirichlet(np.ones(313)).astype(np.float32)


def _config(**fields: Any) -> Any:
    return ml_collections.ConfigDict({"pixels": "sum", "class_weight": 1.0} | fields)


def _ab(batch: int = 2, size: int = 8) -> np.ndarray:
    return _RNG.uniform(-60, 60, (batch, size, size, 2)).astype(np.float32)


def _targets(
    ab: np.ndarray, *, inside: np.ndarray | None = None, mask: np.ndarray | None = None
) -> losses.ColorTargets:
    return losses.color_targets(
        jnp.asarray(ab),
        inside=jnp.ones(ab.shape[:3]) if inside is None else jnp.asarray(inside, jnp.float32),
        mask=jnp.ones(len(ab)) if mask is None else jnp.asarray(mask, jnp.float32),
        factor=2,
        rarity_weights=jnp.asarray(_WEIGHTS),
        neighbors=5,
        sigma=5.0,
    )


def _soft(point: np.ndarray) -> np.ndarray:
    distance = ((color.ab_bins() - point) ** 2).sum(-1)
    nearest = np.argsort(distance, kind="stable")[:5]
    target = np.zeros(313)
    target[nearest] = np.exp(-distance[nearest] / (2 * 25))
    return target / target.sum()


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - x.max() - math.log(np.exp(x - x.max()).sum())


def test_loss_1_by_hand() -> None:
    ab, labels = _ab(), np.array([2, 0])
    class_logits = _RNG.normal(size=(2, 3)).astype(np.float32)
    color_logits = _RNG.normal(size=(2, 4, 4, 313)).astype(np.float32)
    by_hand = colored = plain = prior = 0.0
    for b in range(2):
        by_hand -= _log_softmax(class_logits[b])[labels[b]]
        for y in range(4):
            for x in range(4):
                pooled = ab[b, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((0, 1))
                target = _soft(pooled)
                v = _WEIGHTS[((color.ab_bins() - pooled) ** 2).sum(-1).argmin()]
                ce = -(target * _log_softmax(color_logits[b, y, x])).sum()
                colored += v * ce
                plain += ce
                prior -= (target * np.log(_PRIOR.astype(np.float64))).sum()
    total, measured = losses.total_loss(
        Outputs(jnp.asarray(class_logits), jnp.asarray(color_logits)),
        labels=jnp.asarray(labels),
        mask=jnp.ones(2),
        targets=_targets(ab),
        prior=jnp.asarray(_PRIOR),
        config=_config(),
    )
    assert float(total) == pytest.approx((by_hand + colored) / 2, rel=1e-5)
    means = {name: float(s / n) for name, (s, n) in measured.items()}
    assert means["color_loss"] == pytest.approx(colored / 32, rel=1e-5)
    assert means["color_ce"] == pytest.approx(plain / 32, rel=1e-5)
    assert means["prior_color_ce"] == pytest.approx(prior / 32, rel=1e-5)
    assert means["loss"] == pytest.approx((by_hand + colored) / 2, rel=1e-5)


def test_cross_entropy_equals_that_of_dense_targets_with_its_gradient() -> None:
    ab = color.rgb_to_lab(_RNG.random((2, 3, 5, 3)))[..., 1:]
    bins, shares = color.bin_shares(ab, neighbors=5, sigma=5.0, in_gamut=True)
    dense = color.soft_targets(ab)
    logits = jnp.asarray(_RNG.normal(size=(2, 3, 5, 313)) * 3, jnp.float32)
    cotangent = jnp.asarray(_RNG.normal(size=(2, 3, 5)), jnp.float32)

    def naive(logits: jax.Array) -> jax.Array:
        return -(dense * jax.nn.log_softmax(logits)).sum(axis=-1)

    expected, pull = jax.vjp(naive, logits)
    found, ours = jax.vjp(lambda logits: losses.cross_entropy(logits, bins, shares), logits)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(ours(cotangent)[0], pull(cotangent)[0], atol=1e-6)


@pytest.mark.parametrize("table", [_PRIOR, _RNG.normal(size=(4, 313)).astype(np.float32)])
def test_weighted_lookup_equals_the_product_with_dense_targets_and_a_tpu_takes_the_product(table: np.ndarray) -> None:
    bins = [jnp.asarray(_RNG.integers(0, 313, 4), jnp.int32) for _ in range(3)]
    shares = [jnp.asarray(_RNG.random(4), jnp.float32) for _ in range(3)]
    dense = np.zeros((4, 313), np.float32)
    for index, share in zip(bins, shares, strict=True):
        np.add.at(dense, (np.arange(4), np.asarray(index)), np.asarray(share))
    np.testing.assert_allclose(color.dense_shares(bins, shares), dense, rtol=1e-6)
    np.testing.assert_allclose(
        losses.weighted_lookup(jnp.asarray(table), bins, shares), (dense * table).sum(-1), rtol=1e-5
    )
    lowered = {
        name: jax.jit(losses.weighted_lookup).trace(table, bins, shares).lower(lowering_platforms=(name,)).as_text()
        for name in ("cpu", "tpu")
    }
    assert {name: "gather" in text for name, text in lowered.items()} == {"cpu": True, "tpu": False}


def test_the_mean_over_pixels_and_the_class_weight() -> None:
    logits = jnp.asarray(_RNG.normal(size=(2, 4, 4, 313)), jnp.float32)
    outputs, targets = Outputs(jnp.zeros((2, 5)), logits), _targets(_ab())
    common = {"labels": jnp.zeros(2, jnp.int32), "mask": jnp.ones(2), "targets": targets, "prior": jnp.asarray(_PRIOR)}
    summed = losses.total_loss(outputs, **common, config=_config(class_weight=0.0))[0]
    mean = losses.total_loss(outputs, **common, config=_config(pixels="mean", class_weight=3.0))[0]
    assert float(mean) == pytest.approx(float(summed) / 16 + 3 * math.log(5), rel=1e-5)
    with pytest.raises(ValueError, match=r"loss.pixels is 'total'"):
        losses.total_loss(outputs, **common, config=_config(pixels="total"))


def test_gray_photos_outside_pixels_and_padding_carry_no_color_loss() -> None:
    ab = _ab(4)
    ab[1] = np.clip(ab[1], -5, 5)  # Zhang's gray photo
    inside = np.ones((4, 8, 8))
    inside[2, 3, 5] = 0  # one pixel outside spoils the 2×2 that it is averaged into
    valid = np.asarray(_targets(ab, inside=inside, mask=np.array([1, 1, 1, 0])).valid)
    expected = np.ones((4, 4, 4))
    expected[1] = expected[3] = 0
    expected[2, 1, 2] = 0
    assert np.array_equal(valid, expected)
    logits = jnp.asarray(_RNG.normal(size=(4, 4, 4, 313)), jnp.float32)
    targets = _targets(ab, inside=inside, mask=np.array([1, 1, 1, 0]))
    total = losses.color_terms(logits, targets, prior=jnp.asarray(_PRIOR))[0]
    # What is not valid may be anything.
    changed = jnp.where(jnp.asarray(expected[..., None]) == 1, logits, 1e3)
    assert float(losses.color_terms(changed, targets, prior=jnp.asarray(_PRIOR))[0]) == float(total)


def test_padding_carries_no_class_loss() -> None:
    logits, labels = jnp.asarray(_RNG.normal(size=(3, 4)), jnp.float32), jnp.array([1, 2, 3])
    total, measured = losses.class_terms(logits, labels, jnp.array([1.0, 0.0, 1.0]))
    kept = losses.class_terms(logits[::2], labels[::2], jnp.ones(2))[0]
    assert float(total) == pytest.approx(float(kept), rel=1e-6)
    assert float(measured["accuracy"][1]) == 2


def test_the_logged_loss_is_the_mean_over_photos_and_leaves_padding_out() -> None:
    ab, labels = _ab(4), jnp.array([1, 2, 3, 0])
    class_logits = jnp.asarray(_RNG.normal(size=(4, 5)), jnp.float32)
    color_logits = jnp.asarray(_RNG.normal(size=(4, 4, 4, 313)), jnp.float32)

    def logged(photos: int, mask: np.ndarray) -> float:
        measured = losses.total_loss(
            Outputs(class_logits[:photos], color_logits[:photos]),
            labels=labels[:photos],
            mask=jnp.asarray(mask),
            targets=_targets(ab[:photos], mask=mask),
            prior=jnp.asarray(_PRIOR),
            config=_config(),
        )[1]
        return float(measured["loss"][0] / measured["loss"][1])

    assert logged(4, np.array([1, 1, 1, 0], np.float32)) == pytest.approx(logged(3, np.ones(3, np.float32)), rel=1e-6)


def test_iizukas_regression() -> None:
    ab, predicted = _ab(), _RNG.uniform(-60, 60, (2, 4, 4, 2)).astype(np.float32)
    targets = _targets(ab)._replace(weight=jnp.ones((2, 4, 4)))
    pooled = ab.reshape(2, 4, 2, 4, 2, 2).mean((2, 4))
    expected = ((((predicted + 128) / 256) - ((pooled + 128) / 256)) ** 2).sum()
    assert float(losses.regression_terms(jnp.asarray(predicted), targets)[0]) == pytest.approx(expected, rel=1e-4)


def test_a_bin_that_training_never_saw_leaves_the_reference_finite() -> None:
    prior = np.zeros(313, np.float32)
    prior[0] = 1
    measured = losses.color_terms(jnp.zeros((2, 4, 4, 313)), _targets(_ab()), prior=jnp.asarray(prior))[1]
    assert np.isfinite(float(measured["prior_color_ce"][0]))
