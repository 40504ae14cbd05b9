import numpy as np
import pytest
import scipy.linalg

from colorjax.evaluation import frechet


def _features(mean: np.ndarray, covariance: np.ndarray, *, photos: int, seed: int) -> np.ndarray:
    """Features with exactly this mean and covariance."""
    x = np.random.default_rng(seed).normal(size=(photos, len(mean)))
    x = np.linalg.qr(x - x.mean(axis=0))[0] * np.sqrt(photos - 1)
    return mean + x @ np.linalg.cholesky(covariance).T


def test_the_distance_equals_its_closed_form() -> None:
    # Of independent channels: Σ (μ_a − μ_b)² + (σ_a − σ_b)².
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 6))
    deviation_a, deviation_b = rng.uniform(0.1, 3, (2, 6))
    a = _features(mean_a, np.diag(deviation_a**2), photos=50, seed=1)
    b = _features(mean_b, np.diag(deviation_b**2), photos=80, seed=2)
    expected = np.sum((mean_a - mean_b) ** 2 + (deviation_a - deviation_b) ** 2)
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet.distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_the_distance_equals_the_formula_with_the_matrix_square_root() -> None:
    rng = np.random.default_rng(3)
    roots = rng.normal(size=(2, 5, 5))
    covariance_a, covariance_b = (root @ root.T + 0.1 * np.eye(5) for root in roots)
    a, b = (_features(np.zeros(5), c, photos=40, seed=i) for i, c in enumerate((covariance_a, covariance_b)))
    square_root = np.real(np.asarray(scipy.linalg.sqrtm(covariance_a @ covariance_b)))
    expected = np.trace(covariance_a + covariance_b - 2 * square_root)
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_fewer_photos_than_channels() -> None:
    a = np.random.default_rng(4).normal(size=(10, 30)).astype(np.float32)
    assert frechet.distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet.distance(a, a + 2) == pytest.approx(4 * 30, rel=1e-6)


def test_too_few_photos_and_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        frechet.distance(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        frechet.distance(np.ones((4, 3)), np.ones((4, 2)))
