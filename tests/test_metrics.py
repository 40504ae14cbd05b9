import jax
import numpy as np
import pytest
import skimage.color
import skimage.data
import skimage.metrics

from colorjax import metrics

SIDE = 96


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Four photographs and a constant gray, uint8 [5, SIDE, SIDE, 3]."""
    crops = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = getattr(skimage.data, name)()
        top, left = (photo.shape[0] - SIDE) // 2, (photo.shape[1] - SIDE) // 2
        crops.append(photo[top : top + SIDE, left : left + SIDE])
    return np.stack([*crops, np.full((SIDE, SIDE, 3), 119, np.uint8)])


@pytest.fixture(scope="module")
def changed(photos) -> np.ndarray:
    """The same with noise and a shift of color, uint8."""
    noise = np.random.default_rng(0).normal(0, 12, photos.shape) + np.array([9, -6, -14])
    return np.clip(photos + noise, 0, 255).astype(np.uint8)


def test_psnr_equals_scikit_image(photos, changed):
    expected = [skimage.metrics.peak_signal_noise_ratio(t, p) for t, p in zip(photos, changed, strict=True)]
    np.testing.assert_allclose(metrics.psnr(changed, photos), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.psnr(changed / 255, photos), expected, rtol=1e-5)


def test_psnr_of_identical_photos_is_capped(photos):
    np.testing.assert_array_equal(metrics.psnr(photos, photos), 100)
    almost = np.zeros((1, 224, 224, 3), np.uint8)
    almost[0, 0, 0, 0] = 1
    assert metrics.psnr(almost, np.zeros_like(almost))[0] < 100


def test_ssim_equals_scikit_image(photos, changed):
    def expected(a, b):
        return skimage.metrics.structural_similarity(
            a / 255,
            b / 255,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
        )

    for other in (changed, photos[::-1], photos):
        np.testing.assert_allclose(
            jax.jit(metrics.ssim)(other, photos),
            [expected(a, b) for a, b in zip(other, photos, strict=True)],
            atol=2e-5,
        )
    with pytest.raises(ValueError, match="11×11"):
        metrics.ssim(photos[:, :10], photos[:, :10])


def test_colorfulness_equals_the_formula(photos):
    expected = []
    for r, g, b in np.moveaxis(photos.astype(np.float64), -1, 1):
        rg, yb = r - g, 0.5 * (r + g) - b
        spread = np.sqrt(rg.std() ** 2 + yb.std() ** 2)
        expected.append(spread + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2))
    np.testing.assert_allclose(metrics.colorfulness(photos), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(metrics.colorfulness(photos / 255), expected, rtol=1e-4, atol=1e-3)
    assert metrics.colorfulness(photos)[-1] == 0


def test_auc_equals_a_loop_over_thresholds(photos, changed):
    true, pred = (skimage.color.rgb2lab(x)[..., 1:] for x in (photos, changed))
    pred[0, :8] += 300
    weights = np.random.default_rng(1).exponential(size=true.shape[:3])
    error = np.sqrt(((true - pred) ** 2).sum(axis=-1))
    plain = [np.mean([(e <= t).mean() for t in range(151)]) for e in error]
    weighted = [
        np.mean([np.average(e <= t, weights=w) for t in range(151)]) for e, w in zip(error, weights, strict=True)
    ]
    np.testing.assert_allclose(metrics.auc(pred, true), 100 * np.array(plain), rtol=1e-5)
    np.testing.assert_allclose(metrics.auc(pred, true, weights=weights), 100 * np.array(weighted), rtol=1e-5)
    np.testing.assert_array_equal(metrics.auc(true, true), 100)
    np.testing.assert_array_equal(metrics.auc(true + 400, true), 0)


def test_ciede2000_equals_scikit_image(photos, changed):
    true, pred = skimage.color.rgb2lab(photos), skimage.color.rgb2lab(changed)
    anywhere = np.random.default_rng(2).uniform((0, -100, -100), (100, 100, 100), true.shape)
    for other in (pred, true[::-1], anywhere, true):
        expected = skimage.color.deltaE_ciede2000(other, true).mean(axis=(1, 2))
        np.testing.assert_allclose(metrics.ciede2000(other, true), expected, rtol=2e-4, atol=1e-5)


def test_ciede2000_equals_the_published_pairs():
    # Sharma, Wu and Dalal, table 1: blue, hues across 0° and across half a circle, gray, far, dark.
    table = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -0.0010, 2.4900), (50, 0.0011, -2.4900), 4.7461),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ]
    lab1, lab2, expected = (np.array(column) for column in zip(*table, strict=True))
    a, b = lab1[:, None, None], lab2[:, None, None]
    np.testing.assert_allclose(metrics.ciede2000(a, b), expected, atol=2e-4)
    np.testing.assert_allclose(metrics.ciede2000(b, a), expected, atol=2e-4)


def test_top_k_correct_equals_sorting():
    rng = np.random.default_rng(3)
    logits = rng.integers(0, 6, (200, 20)).astype(np.float32)
    labels = rng.integers(0, 20, 200)
    order = np.argsort(-logits, axis=1, kind="stable")
    for k in (1, 5, 20):
        expected = [label in row[:k] for label, row in zip(labels, order, strict=True)]
        np.testing.assert_array_equal(metrics.top_k_correct(logits, labels, k=k), expected)


def test_any_split_into_masked_batches_gives_the_same_mean():
    rng = np.random.default_rng(4)
    values = {"psnr": rng.normal(20, 5, 10), "ssim": rng.uniform(size=10)}
    step = jax.jit(lambda values, mask: metrics.totals(values, mask=mask))
    total = None
    for rows in (range(4), range(4, 8), range(8, 10)):
        padding = 4 - len(rows)
        batch = {n: np.append(v[list(rows)], [np.nan] * padding) for n, v in values.items()}
        part = step(batch, np.append(np.ones(len(rows)), np.zeros(padding)))
        total = part if total is None else metrics.add(total, part)
    assert total is not None
    means = metrics.mean(total)
    assert means.keys() == values.keys()
    for name, value in values.items():
        assert type(means[name]) is float
        assert means[name] == pytest.approx(value.mean(), rel=1e-6)


def test_a_mean_over_nothing_is_nan_and_other_names_are_refused():
    nothing = metrics.totals({"psnr": np.ones(2)}, mask=np.zeros(2))
    assert np.isnan(metrics.mean(nothing)["psnr"])
    with pytest.raises(ValueError, match="psnr"):
        metrics.add(nothing, metrics.totals({"ssim": np.ones(2)}, mask=np.ones(2)))


def test_every_measure_is_a_pure_function_of_its_photo(photos, changed):
    lab = skimage.color.rgb2lab(photos)
    for measure, a, b in (
        (metrics.psnr, changed, photos),
        (metrics.ssim, changed, photos),
        (metrics.auc, lab[..., 1:], lab[::-1, ..., 1:]),
        (metrics.ciede2000, lab, lab[::-1]),
    ):
        measure = jax.jit(measure)
        together = measure(a, b)
        assert together.shape == (len(photos),)
        assert together.dtype == np.float32
        np.testing.assert_allclose(together[2:3], measure(a[2:3], b[2:3]), rtol=1e-5)
