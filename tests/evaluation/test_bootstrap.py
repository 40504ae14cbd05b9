import numpy as np
import pytest

from colorjax.evaluation import bootstrap


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    # Five hundred data sets of 100 photos, one a column, whose mean is known.
    values = np.random.default_rng(0).normal(3.0, 2.0, (100, 500))
    low, high = bootstrap.interval(values)
    assert np.mean((low <= 3) & (high >= 3)) == pytest.approx(0.945, abs=0.025)
    assert np.mean(high - low) == pytest.approx(2 * 1.96 * 2 / np.sqrt(100), rel=0.05)
    narrow_low, narrow_high = bootstrap.interval(values, level=0.5)
    assert np.mean((narrow_low <= 3) & (narrow_high >= 3)) == pytest.approx(0.5, abs=0.06)


def test_the_interval_equals_drawing_photos_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).exponential(size=(7, 2))
    values[[2, 5], 1] = np.nan
    rng = np.random.default_rng(4)
    drawn = np.array([[values[i] for i in rng.integers(7, size=7)] for _ in range(300)])
    expected = np.nanquantile(np.nanmean(drawn, axis=1), [0.025, 0.975], axis=0)
    np.testing.assert_allclose(bootstrap.interval(values, resamples=300, seed=4), expected, rtol=1e-12)
    # And in chunks.
    monkeypatch.setattr(bootstrap, "_CHUNK", 50)
    np.testing.assert_allclose(bootstrap.interval(values, resamples=300, seed=4), expected, rtol=1e-12)
    assert np.shape(bootstrap.interval(values[:, 0])[0]) == ()


def test_differences_are_of_paired_photos() -> None:
    rng = np.random.default_rng(2)
    photo = rng.normal(20, 10, 200)
    better = photo + rng.normal(0.5, 0.5, 200)
    low, high = bootstrap.interval(better - photo)
    assert 0.3 < low < high < 0.7
    (low_a, low_b), (high_a, high_b) = bootstrap.interval(np.stack([photo, better], axis=1))
    assert high_a > low_b > low_a  # taken alone, the two cannot be told apart
    assert high_b > high_a


def test_no_values_have_no_interval() -> None:
    low, high = bootstrap.interval(np.stack([np.full(5, np.nan), np.ones(5)], axis=1))
    assert np.isnan([low[0], high[0]]).all()
    assert low[1] == high[1] == 1
    with pytest.raises(ValueError, match="no photo"):
        bootstrap.interval(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"level=95"):
        bootstrap.interval(np.ones(3), level=95)
