"""The photo down to the network's size, and the color up again."""

import importlib.resources

import numpy as np
import pytest
import skimage.color
from PIL import Image

from colorjax.photos import resample


def photo(name: str, *, width: int) -> np.ndarray:
    with (importlib.resources.files("skimage.data") / name).open("rb") as stream:
        image = Image.open(stream).convert("RGB")
        height = round(image.height * width / image.width)
        return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def block_means(x: np.ndarray, size: int) -> np.ndarray:
    h, w = x.shape[0] // size, x.shape[1] // size
    return x[: h * size, : w * size].reshape(h, size, w, size, -1).mean(axis=(1, 3))


@pytest.mark.parametrize("band", [1 << 22, 1 << 10])
def test_a_thumbnail_is_the_mean_of_the_area(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "_BAND", band)
    rgb = photo("coffee.png", width=192)
    got = resample.thumbnail(rgb, height=16, width=24)
    np.testing.assert_allclose(got, block_means(rgb, 8), atol=1)  # Pillow rounds after either axis
    np.testing.assert_array_equal(resample.thumbnail(rgb.astype(np.uint16) * 257, height=16, width=24), got)
    gray = resample.thumbnail(rgb[..., 0], height=16, width=24)
    np.testing.assert_array_equal(gray, np.repeat(got[..., :1], 3, axis=-1))


def test_a_thumbnail_is_laid_over_white() -> None:
    rgba = np.full((16, 16, 4), 100, np.uint8)
    rgba[..., 3] = 0
    rgba[:8, :, 3] = 255
    expected = np.repeat([100, 255], 2)
    np.testing.assert_array_equal(resample.thumbnail(rgba, height=4, width=4)[:, 0, 0], expected)
    np.testing.assert_array_equal(resample.thumbnail(rgba[..., 2:], height=4, width=4)[:, 0, 0], expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (7, 5), (100, 10)])
def test_photos_of_any_shape_have_a_thumbnail_and_a_picture(shape: tuple[int, int]) -> None:
    gray = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert resample.thumbnail(gray, height=32, width=32).shape == (32, 32, 3)
    colored = resample.render(gray, np.full((16, 16, 2), 20.0), np.full((16, 16), 50.0))
    assert colored.shape == (*shape, 3)


def test_a_rendered_photo_has_its_own_lightness_and_the_given_colors() -> None:
    rgb = photo("astronaut.png", width=300)  # more than a tile
    guide = skimage.color.rgb2lab(resample.thumbnail(rgb, height=16, width=16))[..., 0]
    ab = np.broadcast_to((12.0, 30.0), (16, 16, 2))
    lab = skimage.color.rgb2lab(rgb)
    for given in (rgb, rgb.astype(np.uint16) * 257):
        colored = resample.render(given, ab, guide)
        assert colored.dtype == given.dtype
        got = skimage.color.rgb2lab(colored / np.iinfo(given.dtype).max)
        assert np.abs(got[..., 0] - lab[..., 0]).max() < (0.2 if given.dtype == np.uint8 else 0.002)
        # Constant color stays constant, where the lightness has room for it.
        middle = (lab[..., 0] > 30) & (lab[..., 0] < 80)
        assert middle.mean() > 0.2
        np.testing.assert_allclose(got[middle][:, 1:].mean(axis=0), (12, 30), atol=0.1)
    gray = resample.render(rgb, ab, guide, saturation=0.0)
    assert (gray.max(axis=-1).astype(int) - gray.min(axis=-1)).max() <= 1


def test_tiles_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = photo("coffee.png", width=300)
    rng = np.random.default_rng(0)
    ab, guide = rng.normal(0, 30, (12, 12, 2)), rng.uniform(0, 100, (12, 12))
    whole = resample.render(rgb, ab, guide)
    monkeypatch.setattr(resample, "_TILE", 64)
    difference = np.abs(resample.render(rgb, ab, guide).astype(int) - whole)
    # Rounding decides otherwise at single pixels.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("side", [32, 112])
def test_guided_colors_are_nearer_to_the_true_ones_than_bilinear_ones(side: int) -> None:
    """True ab at the color's resolution, taken up both ways: the mean distance to the true ab at the photo's own."""
    gains = []
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"):
        rgb = photo(name, width=384)
        lab = skimage.color.rgb2lab(rgb).astype(np.float32)
        small = np.stack(
            [np.asarray(Image.fromarray(lab[..., i]).resize((side, side), Image.Resampling.BOX)) for i in range(3)]
        )
        guided = skimage.color.rgb2lab(resample.render(rgb, np.moveaxis(small[1:], 0, -1), small[0]))
        up = [Image.fromarray(x).resize(lab.shape[1::-1], Image.Resampling.BILINEAR) for x in small[1:]]
        error = [np.hypot(*np.moveaxis(ab - lab[..., 1:], -1, 0)).mean() for ab in (guided[..., 1:], np.stack(up, -1))]
        gains.append(error[1] / error[0])
    assert min(gains) > 1
    assert np.mean(gains) > 1.1
