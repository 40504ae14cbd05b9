"""Augmentation against scipy's interpolation and against known transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from scipy import ndimage

from colorjax.training.augment import _resample, augment

_OFF = {"rotation": 0.0, "scale": (1.0, 1.0), "shift": 0.0, "flip": False}


def _photos(side: int = 96) -> np.ndarray:
    photo = skimage.data.astronaut()
    return np.stack([photo[20 : 20 + side, 100 : 100 + side], photo[200 : 200 + side, 50 : 50 + side]])


def _augment(image: np.ndarray, seed: int = 0, size: int = 64, **options) -> tuple[np.ndarray, np.ndarray]:
    rgb, inside = augment(jnp.asarray(image), jax.random.key(seed), size=size, **(_OFF | options))
    return np.asarray(rgb), np.asarray(inside)


def _uint8(rgb: np.ndarray) -> np.ndarray:
    return np.round(rgb * 255).astype(np.uint8)


def test_without_augmentation_the_view_is_the_center_crop() -> None:
    rgb, inside = _augment(_photos())
    assert np.array_equal(_uint8(rgb), _photos()[:, 16:80, 16:80])
    assert inside.min() == 1


@pytest.mark.parametrize(("angle", "magnify", "offset"), [(15, 1.0, (0, 0)), (-7, 1.25, (3, -2)), (10, 0.8, (0, 5))])
def test_resampling_is_scipys_bilinear_interpolation(angle: float, magnify: float, offset: tuple[int, int]) -> None:
    image, size = _photos()[0], 64
    rgb, inside = _resample(
        jnp.asarray(image), jnp.deg2rad(angle), jnp.asarray(magnify), jnp.asarray(offset, jnp.float32), size
    )
    cos, sin = np.cos(np.deg2rad(angle)) / magnify, np.sin(np.deg2rad(angle)) / magnify
    grid = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 2, indexing="ij")).reshape(2, -1)
    source = np.array([[cos, -sin], [sin, cos]]) @ (grid + np.array(offset)[:, None]) + (image.shape[0] - 1) / 2
    expected = np.stack(
        [ndimage.map_coordinates(image[..., c].astype(float), source, order=1, mode="nearest") for c in range(3)], -1
    )
    np.testing.assert_allclose(np.asarray(rgb).reshape(-1, 3), expected / 255, atol=2e-4)
    outside = ((source < 0) | (source > image.shape[0] - 1)).any(0)
    assert np.mean(np.asarray(inside).reshape(-1) != ~outside) < 1e-3  # but for rounding on the very edge


def test_positive_angles_and_scales_do_what_they_say() -> None:
    image = np.zeros((65, 65, 3), np.uint8)
    image[32, 52] = 255  # 20 pixels to the right of the center
    for angle, magnify, where in ((90.0, 1.0, (12, 32)), (0.0, 1.5, (32, 62))):
        rgb, _ = _resample(jnp.asarray(image), jnp.deg2rad(angle), jnp.asarray(magnify), jnp.zeros(2), 65)
        brightest = np.unravel_index(np.asarray(rgb)[..., 0].argmax(), (65, 65))
        assert brightest == where or brightest == (64 - where[0], where[1])


def test_zooming_out_marks_what_is_outside_the_photo() -> None:
    _, inside = _augment(_photos(), scale=(0.5, 0.5))
    # 64 pixels at half scale reach over 128 of the photo's 96.
    assert inside.mean() == pytest.approx((96 / 128) ** 2, abs=0.03)
    assert inside[:, 32, 32].min() == 1
    assert inside[:, 0, 0].max() == 0


def test_flip_mirrors_about_half_of_the_photos() -> None:
    image = np.repeat(_photos()[:1], 64, axis=0)
    rgb, _ = _augment(image, flip=True)
    plain = image[0, 16:80, 16:80]
    mirrored = np.array([np.array_equal(photo, plain[:, ::-1]) for photo in _uint8(rgb)])
    assert all(np.array_equal(photo, plain) for photo in _uint8(rgb)[~mirrored])
    assert 16 < mirrored.sum() < 48


def test_the_view_is_a_function_of_the_key_and_differs_between_photos() -> None:
    options = {"rotation": 15.0, "scale": (0.8, 1.25)}
    image = np.repeat(_photos()[:1], 2, axis=0)
    first, again, other = _augment(image, **options)[0], _augment(image, **options)[0], _augment(image, 1, **options)[0]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_angles_and_scales_stay_in_their_ranges() -> None:
    # A ramp tells where each pixel came from.
    side, size = 129, 65
    ramp = np.zeros((256, side, side, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(side)[None, :, None], np.arange(side)[None, None, :]
    rgb, _ = _augment(ramp, size=size, rotation=15.0, scale=(0.8, 1.25))
    step = (rgb[:, 32, 52, :2] - rgb[:, 32, 32, :2]) * 255 / 20  # source pixels for one pixel to the right
    angle, magnify = np.rad2deg(np.arctan2(step[:, 0], step[:, 1])), 1 / np.hypot(*step.T)
    assert np.abs(angle).max() <= 15.1
    assert np.abs(angle).max() > 13
    assert magnify.min() >= 0.79
    assert magnify.max() <= 1.26
    assert np.log(magnify).mean() == pytest.approx(0, abs=0.03)


def test_a_crop_larger_than_the_photo_and_a_reversed_scale_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.image_size is 128, but data.resolution gives 96×96"):
        _augment(_photos(), size=128)
    with pytest.raises(ValueError, match=r"augment.scale is"):
        _augment(_photos(), scale=(1.2, 0.8))
