"""Candidates: unlike each other, the likeliest first, and consistent over the photo."""

from dataclasses import replace
from pathlib import Path

import mixed_photos
import numpy as np
import pytest
import scipy.special

from colorjax import color
from colorjax.photos.candidates import DISTANCE, MAX_CANDIDATES
from colorjax.photos.predictor import Prediction, Predictor

BINS = color.ab_bins()


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    """Without a network: at one half of the places it wavers, at the other it is sure."""
    rng = np.random.default_rng(0)
    center = rng.uniform(-20, 40, (12, 10, 1, 2))
    spread = np.where(np.arange(10) < 5, 12.0, 3.0)[None, :, None]
    logits = -np.square(BINS - center).sum(axis=-1) / (2 * spread**2)
    logits += rng.normal(0, 0.3, logits.shape)
    photo = rng.integers(0, 256, (24, 20, 3), np.uint8)
    return Prediction(
        photo, logits.astype(np.float32), np.zeros((12, 10), np.float32), np.ones(1, np.float32), ("x",), 0.38
    )


def mean_ab(prediction: Prediction) -> np.ndarray:
    """The annealed mean, by scipy."""
    return scipy.special.softmax(prediction.color / 0.38, axis=-1) @ BINS


def divergence(one: Prediction, other: Prediction) -> float:
    p, q = (scipy.special.log_softmax(x.color.astype(np.float64), axis=-1) for x in (one, other))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.mark.parametrize("k", [1, 3, MAX_CANDIDATES])
def test_candidates_differ_by_the_stated_distance_and_are_ranked(prediction: Prediction, k: int) -> None:
    found = prediction.candidates(k)
    assert len(found) == k
    np.testing.assert_array_equal(found[0].color, prediction.color)
    colors = [mean_ab(p) for p in found]
    for i, one in enumerate(colors):
        for other in colors[:i]:
            assert np.linalg.norm(one - other, axis=-1).mean() >= DISTANCE - 0.01
    divergences = [divergence(p, prediction) for p in found]
    np.testing.assert_allclose([p.divergence for p in found], divergences, atol=1e-3)
    assert divergences == sorted(divergences)
    # One tilt for the whole photo: the logits differ by the same plane over ab everywhere.
    for p in found[1:]:
        change = p.color - prediction.color
        plane = np.linalg.lstsq(BINS.astype(float), change[0, 0], rcond=None)[0]
        np.testing.assert_allclose(change, np.broadcast_to(BINS @ plane, change.shape), atol=1e-3)


def test_where_the_network_is_sure_the_color_moves_less(prediction: Prediction) -> None:
    for other in prediction.candidates(3)[1:]:
        moved = np.linalg.norm(mean_ab(other) - mean_ab(prediction), axis=-1)
        assert moved[:, :5].mean() > 2 * moved[:, 5:].mean()


def test_candidates_are_the_same_each_time_and_keep_the_points(prediction: Prediction) -> None:
    pointed = prediction.with_points([(3, 4, "#607080")])
    for one, other in zip(prediction.candidates(3), pointed.candidates(3), strict=True):
        np.testing.assert_array_equal(one.color, other.color)
        assert other.points == pointed.points


def test_a_network_without_doubt_has_fewer(prediction: Prediction) -> None:
    sure = replace(prediction, color=np.full_like(prediction.color, -1e4))
    sure.color[..., 100] = 0
    assert len(sure.candidates(3)) == 1


def test_a_wrong_number_or_a_regression_is_refused(prediction: Prediction) -> None:
    for k in (0, -1, MAX_CANDIDATES + 1):
        with pytest.raises(ValueError, match=f"candidates is {k}; it must be between 1 and {MAX_CANDIDATES}"):
            prediction.candidates(k)
    with pytest.raises(ValueError, match="colors without probabilities"):
        replace(prediction, color=prediction.color[..., :2]).candidates(3)


def test_a_predictor_gives_candidates_of_a_photo(untrained: Path) -> None:
    photo = mixed_photos.small_pixels("coffee.png")
    found = Predictor(untrained).candidates(photo, 2)
    pictures = [p.render() for p in found]
    assert [x.shape for x in pictures] == [photo.shape] * 2
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 3
