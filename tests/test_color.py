import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.color
import skimage.data
import skimage.transform

from colorjax import color
from colorjax.color.bins import _grid_rows, _window
from colorjax.data.batches import Share
from colorjax.data.sample import open_sample


def cube(levels: int) -> np.ndarray:
    axis = np.linspace(0, 255, levels).round().astype(np.uint8)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def exact_colors() -> np.ndarray:
    """sRGB colors whose ab is a multiple of 1/8: float32 then ranks their distances exactly."""
    ab = skimage.color.rgb2lab(cube(12))[:, 1:]
    midpoints = np.stack(np.meshgrid(np.arange(-40, 41, 5), np.arange(-40, 41, 5)), axis=-1)
    return np.concatenate([np.round(ab * 8) / 8, midpoints.reshape(-1, 2)])


def naive_neighbors(ab: np.ndarray, count: int) -> list[np.ndarray]:
    bins = color.ab_bins()
    return [np.argsort(((bins - p) ** 2).sum(axis=1), kind="stable")[:count] for p in ab]


def some_prior() -> np.ndarray:
    prior = np.random.default_rng(0).exponential(size=color.NUM_BINS) ** 3
    prior[[0, 7, 300]] = 0
    return prior / prior.sum()


def test_rgb_to_lab_equals_scikit_image():
    rgb = cube(17)
    expected = skimage.color.rgb2lab(rgb)
    for given in (rgb, rgb / 255, jnp.asarray(rgb / 255)):
        lab = color.rgb_to_lab(given)
        assert lab.dtype == jnp.float32
        np.testing.assert_allclose(lab, expected, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_lab_to_rgb_equals_scikit_image_even_out_of_gamut():
    axes = np.linspace(0, 100, 11), np.linspace(-128, 128, 17), np.linspace(-128, 128, 17)
    lab = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    rgb = color.lab_to_rgb(lab)
    assert rgb.dtype == jnp.float32
    np.testing.assert_allclose(rgb, skimage.color.lab2rgb(lab), rtol=0, atol=1e-5)


def test_every_8_bit_color_survives_the_round_trip():
    @jax.jit
    def changed(rgb):
        lab = color.rgb_to_lab(rgb)
        return (color.to_uint8(color.lab_to_rgb(lab)) != rgb).sum()

    level = np.arange(256, dtype=np.uint8)
    for reds in np.split(level, 16):
        rgb = np.stack(np.meshgrid(reds, level, level, indexing="ij"), axis=-1)
        assert changed(rgb) == 0


def test_the_unused_branches_leave_gradients_finite():
    to_lab, to_rgb = (jax.jit(jax.jacobian(f)) for f in (color.rgb_to_lab, color.lab_to_rgb))
    for rgb in (0.0, 0.01, 1.0):
        assert np.isfinite(to_lab(np.full(3, rgb))).all()
    for lab in ([0.0, 0.0, 0.0], [50.0, 120.0, -120.0], [100.0, 0.0, 0.0]):
        assert np.isfinite(to_rgb(np.array(lab))).all()


def test_to_uint8_rounds_and_clips():
    rgb = np.array([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 0.5, 254.6 / 255, 1.0, 2.0])
    np.testing.assert_array_equal(color.to_uint8(rgb), [0, 0, 0, 1, 128, 255, 255, 255])


def test_rgb_of_another_type_is_refused():
    with pytest.raises(TypeError, match="int32"):
        color.rgb_to_lab(np.full((2, 3), 200, np.int32))


def test_bins_are_the_published_ones():
    bins = color.ab_bins()
    assert bins.shape == (color.NUM_BINS, 2)
    assert bins.dtype == np.int64
    # The published .npy has the header of NumPy 1.0, padded to 16 bytes where today's is to 64.
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (313, 2), }"
    header += b" " * (69 - len(header)) + b"\n"
    file = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bins.tobytes()
    assert hashlib.md5(file).hexdigest() == "05c2729d850b5e4143b6fe53326066b5"


def test_bins_can_be_made_first_inside_jit():
    color.ab_bins.cache_clear()
    for cached in (_grid_rows, _window):
        cached.cache_clear()
    jax.jit(color.soft_targets)(jnp.zeros((1, 2)))
    jax.jit(lambda ab: color.nearest_bins(ab, count=5, in_gamut=True))(jnp.zeros((1, 2)))
    assert color.nearest_bin(np.array([0.0, 0.0])).shape == ()


def test_nearest_bin_equals_a_search_and_breaks_ties_downwards():
    ab = exact_colors()
    nearest = color.nearest_bin(ab)
    assert nearest.dtype == jnp.int32
    np.testing.assert_array_equal(nearest, np.concatenate(naive_neighbors(ab, 1)))


@pytest.mark.parametrize("count", [1, 5, pytest.param(10, marks=pytest.mark.slow)])
def test_srgb_colors_need_only_the_bins_around_their_cell(count):
    lab = skimage.color.rgb2lab(cube(18))[:, 1:]
    rng = np.random.default_rng(0)
    ab = np.concatenate([lab, (lab + rng.permutation(lab)) / 2, lab[[0, -1]]])
    ab = np.round(ab * 8) / 8  # ranked exactly in float32, and many of them on a tie
    bins, distances = jax.jit(lambda x: color.nearest_bins(x, count=count, in_gamut=True))(ab)
    expected = np.array(naive_neighbors(ab, count))
    np.testing.assert_array_equal(np.stack(bins, axis=-1), expected)
    np.testing.assert_array_equal(
        np.stack(distances, axis=-1), ((color.ab_bins()[expected] - ab[:, None]) ** 2).sum(axis=-1)
    )


def test_no_color_is_near_a_bin_outside_the_window():
    # The corners, edges and inner points of every bin's cell.
    steps = np.array([-5, -2.5, -0.01, 0, 1.3, 4.99, 5])
    offsets = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 1, 2)
    for count in (1, 3, 5, 10):
        near = np.array(naive_neighbors((color.ab_bins() + offsets).reshape(-1, 2), count))
        found = (color.ab_bins()[near] - np.tile(color.ab_bins(), (len(offsets), 1))[:, None]) // 10
        assert set(map(tuple, found.reshape(-1, 2).tolist())) <= set(_window(count))


def test_colors_outside_the_bins_box_are_clamped_to_it():
    far = np.array([[500.0, 3], [-500, 73], [4, 900], [41, -900], [101, 2], [-128, -128]])
    clamped = np.clip(far, [-90, -110], [100, 100])
    expected = np.concatenate(naive_neighbors(clamped, 1))
    np.testing.assert_array_equal(color.nearest_bin(far), expected)
    soft_targets = jax.jit(color.soft_targets)
    np.testing.assert_array_equal(soft_targets(far), soft_targets(clamped))


@pytest.mark.parametrize(("neighbors", "sigma"), [(1, 5.0), (5, 5.0), (10, 5.0), (5, 8.0)])
def test_soft_targets_equal_a_naive_loop(neighbors, sigma):
    ab = exact_colors()
    expected = np.zeros((len(ab), color.NUM_BINS))
    for row, p, near in zip(expected, ab, naive_neighbors(ab, neighbors), strict=True):
        weight = np.exp(-((color.ab_bins()[near] - p) ** 2).sum(axis=1) / (2 * sigma**2))
        row[near] = weight / weight.sum()
    targets = color.soft_targets(ab, neighbors=neighbors, sigma=sigma)
    assert targets.dtype == jnp.float32
    np.testing.assert_array_equal((targets > 0).sum(axis=-1), neighbors)
    np.testing.assert_allclose(targets, expected, rtol=0, atol=1e-6)


def test_soft_targets_keep_the_leading_axes():
    ab = exact_colors()[:12].reshape(2, 3, 2, 2)
    soft_targets = jax.jit(color.soft_targets)
    targets = soft_targets(ab)
    assert targets.shape == (2, 3, 2, color.NUM_BINS)
    np.testing.assert_array_equal(targets[1, 2, 0], soft_targets(ab[1, 2, 0]))


def test_annealed_mean_lies_between_mean_and_mode():
    logits = np.random.default_rng(0).normal(size=(4, 6, color.NUM_BINS)).astype(np.float32) * 3
    probability = np.exp(logits.astype(np.float64))
    probability /= probability.sum(axis=-1, keepdims=True)
    bins = color.ab_bins()
    np.testing.assert_allclose(color.annealed_mean(logits, temperature=1), probability @ bins, atol=1e-4)
    np.testing.assert_array_equal(color.annealed_mean(logits, temperature=0), bins[logits.argmax(axis=-1)])
    # Zhang et al., equation 5, on the probabilities.
    sharp = np.exp(np.log(probability) / 0.38)
    sharp /= sharp.sum(axis=-1, keepdims=True)
    annealed = color.annealed_mean(logits)
    assert annealed.dtype == jnp.float32
    np.testing.assert_allclose(annealed, sharp @ bins, atol=1e-4)
    assert color.annealed_mean(jnp.asarray(logits, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"-0\.1"):
        color.annealed_mean(logits, temperature=-0.1)


def test_smoothing_divides_each_bin_by_the_gaussian():
    prior, bins = some_prior(), color.ab_bins()
    expected = np.zeros(color.NUM_BINS)
    for share, center in zip(prior, bins, strict=True):
        kernel = np.exp(-((bins - center) ** 2).sum(axis=1) / (2 * 5.0**2))
        expected += share * kernel / kernel.sum()
    np.testing.assert_allclose(color.smooth(prior), expected, rtol=1e-12)
    assert color.smooth(prior).sum() == pytest.approx(1)


def test_rarity_weights_average_one_over_soft_targets_and_less_over_nearest_bins():
    sample = open_sample(resolution=32)
    (batch,) = sample.evaluate("train", Share(sample.info.sizes["train"]))
    ab = skimage.color.rgb2lab(batch["image"])[..., 1:].reshape(-1, 16, 2, 16, 2, 2).mean((2, 4)).reshape(-1, 2)[::11]
    distance = ((ab[:, None] - color.ab_bins()) ** 2).sum(axis=-1)
    near = np.argsort(distance, axis=1)[:, :5]
    share = np.exp(-np.take_along_axis(distance, near, axis=1) / (2 * 5.0**2))
    share /= share.sum(axis=1, keepdims=True)
    prior = np.bincount(near.ravel(), share.ravel(), color.NUM_BINS) / len(ab)
    weights = color.rarity_weights(prior)
    assert (share * weights[near]).sum(axis=1).mean() == pytest.approx(1)
    assert weights[near[:, 0]].mean() == pytest.approx(0.87, abs=0.01)


def test_rarity_weights_equal_the_formula():
    prior = some_prior()
    seen = prior > 0
    for mix in (0.0, 0.5, 0.9):
        weights = color.rarity_weights(prior, mix=mix)
        assert weights.dtype == np.float32
        assert np.isfinite(weights).all()
        assert (prior * weights).sum() == pytest.approx(1)
        mixed = (1 - mix) * color.smooth(prior) + mix * seen / seen.sum()
        product = (weights * mixed)[seen]
        np.testing.assert_allclose(product, product[0], rtol=1e-5)
        np.testing.assert_array_equal(weights[~seen], weights[seen].max())
    np.testing.assert_allclose(color.rarity_weights(prior, mix=1), 1, rtol=1e-6)


@pytest.mark.parametrize("prior", [np.ones(3) / 3, np.ones(313), np.full(313, np.nan)])
def test_rarity_weights_refuse_what_is_no_distribution(prior):
    with pytest.raises(ValueError, match="313"):
        color.rarity_weights(prior)


def test_is_gray():
    ab = np.zeros((3, 4, 5, 2))
    ab[1] = 5
    ab[2, 3, 1, 0] = -5.01
    np.testing.assert_array_equal(color.is_gray(ab), [True, True, False])
    np.testing.assert_array_equal(color.is_gray(ab, threshold=4), [True, False, False])
    gray = np.repeat(skimage.data.camera()[:64, :64, None], 3, axis=-1)
    assert color.is_gray(color.rgb_to_lab(gray)[..., 1:])
    assert not color.is_gray(color.rgb_to_lab(skimage.data.chelsea())[..., 1:])


def test_downsample_equals_scikit_image():
    photo = skimage.data.astronaut()[:24, :36]
    small = color.downsample(photo[None], factor=4)
    assert small.dtype == jnp.float32
    expected = skimage.transform.downscale_local_mean(photo, (4, 4, 1))
    np.testing.assert_allclose(small[0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"5×5.*\(1, 24, 36, 3\)"):
        color.downsample(photo[None], factor=5)


def test_lightness_equals_scikit_image():
    rgb = cube(9)
    expected = skimage.color.rgb2lab(rgb)[:, :1]
    for given in (rgb, rgb.astype(np.uint16) * 257, rgb / 255):
        np.testing.assert_allclose(color.lightness(given, gray=False), expected, rtol=0, atol=1e-3)
    gray = np.arange(256, dtype=np.uint8)
    expected = skimage.color.rgb2lab(np.stack([gray] * 3, axis=-1))[:, :1]
    np.testing.assert_allclose(color.lightness(gray, gray=True), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("levels", [255, 65535])
def test_pixels_keep_their_lightness_whatever_the_color(levels):
    rng = np.random.default_rng(0)
    gray = np.repeat(np.arange(256), 300)
    ab = rng.uniform(-110, 110, (gray.size, 2)) * rng.uniform(0, 1, (gray.size, 1))
    l = skimage.color.rgb2lab(np.stack([gray] * 3, axis=-1) / 255)[:, :1]
    pixels = np.asarray(jax.jit(lambda l, ab: color.to_pixels(l, ab, levels=levels))(l, ab))
    assert pixels.min() >= 0
    assert pixels.max() <= levels
    lab = skimage.color.rgb2lab(pixels / levels)
    assert np.abs(lab[:, 0] - l[:, 0]).max() < {255: 0.2, 65535: 0.002}[levels]
    # So near that the gray level is the same, of every pixel.
    white = np.linspace(0, 100, 10_001)
    level = skimage.color.lab2rgb(np.stack([white, 0 * white, 0 * white], axis=-1))[:, 1] * 255
    np.testing.assert_array_equal(np.round(np.interp(lab[:, 0], white, level)), gray)
    # Chroma only falls, and the hue stays, but for rounding.
    chroma, wanted = np.hypot(lab[:, 1], lab[:, 2]), np.hypot(ab[:, 0], ab[:, 1])
    assert (chroma - wanted).max() < {255: 1.5, 65535: 0.01}[levels]
    turned = np.arctan2(lab[:, 2], lab[:, 1]) - np.arctan2(ab[:, 1], ab[:, 0])
    turned = np.abs(np.angle(np.exp(1j * turned)))[(chroma > 20) & (wanted > 20)]
    assert turned.max() < {255: 0.1, 65535: 0.001}[levels]


def test_pixels_of_colors_that_srgb_has_are_those_colors():
    rgb = cube(12)
    lab = skimage.color.rgb2lab(rgb)
    pixels = color.to_pixels(lab[:, :1], lab[:, 1:], levels=255)
    np.testing.assert_allclose(pixels, rgb, rtol=0, atol=1)
