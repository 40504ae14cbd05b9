"""Keyframes of films: motion and kriging compared with loops in numpy, and which frames a keyframe guides."""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import skimage.color
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from colorjax.photos import films, keyframes
from colorjax.photos.keyframes import Guidance, Keyframe
from colorjax.photos.predictor import Prediction, Predictor


def textured(seed: int, side: int = 64) -> np.ndarray:
    """A gray picture without a direction or a period: uint8 [side, side, 3]."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 2)
    return np.dstack([np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)] * 3)


def predicted(frame: np.ndarray, ab: np.ndarray) -> Prediction:
    """What a regression predicts: the colors ab, [h, w, 2], for a frame."""
    l = skimage.color.rgb2lab(frame)[..., 0]
    factor = len(l) // len(ab)
    guide = l.reshape(len(ab), factor, len(ab), factor).mean(axis=(1, 3)).astype(np.float32)
    return Prediction(frame, ab.astype(np.float32), guide, np.ones(1, np.float32), ("a",), 0.4)


def tinted(frame: np.ndarray, ab: np.ndarray) -> np.ndarray:
    """The frame in other colors, [h, w, 2], of its lightness."""
    lab = skimage.color.rgb2lab(frame)
    lab[..., 1:] = zoom(ab, (len(lab) / len(ab), len(lab) / len(ab), 1), order=0)
    return np.round(255 * skimage.color.lab2rgb(lab)).astype(np.uint8)


def kriged(positions: list, ls: list, means: list, wanted: np.ndarray) -> np.ndarray:
    """The formula of docs/points.md: what is wanted at the places of the first frame, at those of the second."""

    def correlation(one: int, other: int) -> np.ndarray:
        d = np.linalg.norm(positions[one][:, None] - positions[other][None], axis=-1)
        unlike = (ls[one][:, None] - ls[other][None]) ** 2 / (2 * 30**2)
        unlike = unlike + np.square(means[one][:, None] - means[other][None]).sum(axis=-1) / (2 * 16**2)
        return 0.9 * np.exp(-d / 0.5 - unlike) + 0.1 * np.exp(-d / 0.03)

    return correlation(1, 0) @ np.linalg.solve(correlation(0, 0), wanted)


def test_the_motion_of_a_picture_that_moves_is_found_below_a_pixel() -> None:
    large = gaussian_filter(np.random.default_rng(0).normal(size=(256, 256)), 8) * 600 + 50

    def seen(y: int, x: int) -> np.ndarray:
        return large[y : y + 128, x : x + 128].reshape(64, 2, 64, 2).mean(axis=(1, 3)).astype(np.float32)

    before = seen(60, 60)
    np.testing.assert_array_equal(keyframes.motion(before, before), np.zeros((2, 64, 64)))
    for dy, dx in ((2, -4), (1, 0), (-5, 3)):  # halves of pixels of the small copies
        found = np.asarray(keyframes.motion(before, seen(60 + dy, 60 + dx)))[:, 6:-6, 6:-6]
        np.testing.assert_allclose(np.median(found, axis=(1, 2)), [dy / 2, dx / 2], atol=0.05)
        assert np.abs(found - np.array([dy / 2, dx / 2])[:, None, None]).mean() < 0.1


def test_a_keyframe_has_its_colors_and_the_next_frame_takes_them_by_lightness_mean_and_position() -> None:
    rng = np.random.default_rng(1)
    frame = textured(0)
    before, after = rng.normal(0, 10, (2, 8, 8, 2))
    accepted = rng.normal([10, -10], 4, (8, 8, 2))
    picture = tinted(frame, accepted)
    wanted = skimage.color.rgb2lab(picture)[..., 1:].reshape(8, 8, 8, 8, 2).mean(axis=(1, 3))

    first, second = predicted(frame, before), predicted(frame, after)
    guidance = Guidance(Keyframe("a", picture), first, first.ab())
    at_first = first.ab() + guidance(first)
    # The picture is scaled down in sRGB, as photos are for the network.
    np.testing.assert_allclose(at_first, wanted, atol=1)

    guidance.follow(frame)  # nothing moves
    y, x = (np.mgrid[:8, :8].reshape(2, -1) + 0.5) / 8
    positions, l = np.stack([x, y], axis=-1), first.guide.reshape(-1)
    difference = (at_first - before).reshape(-1, 2)
    expected = kriged([positions] * 2, [l] * 2, [before.reshape(-1, 2), after.reshape(-1, 2)], difference)
    np.testing.assert_allclose(guidance(second).reshape(-1, 2), expected, atol=0.05)


def test_a_color_follows_what_moves() -> None:
    background, thing = textured(0, 128), textured(1, 128)

    def frame(at: int) -> np.ndarray:
        result = background.copy()
        result[48:80, at : at + 32] = thing[48:80, 48:80]
        return result

    colors = np.full((16, 16, 2), [0.0, 20.0])
    colors[6:10, 2:6] = [40, 10]
    nothing = np.zeros((16, 16, 2))
    first = predicted(frame(16), nothing)
    guidance = Guidance(Keyframe("a", tinted(frame(16), colors)), first, nothing)
    for at in range(20, 81, 4):
        guidance.follow(frame(at))
    a = guidance(predicted(frame(80), nothing))[..., 0]
    assert a[7:9, 11:13].mean() > 25
    assert np.abs(a[[0, 1, 14, 15]]).mean() < 8  # what stays behind


class Known:
    """Predicts colors that are known."""

    batch_size = 3

    def __init__(self, ab: list[np.ndarray]):
        self._ab = iter(ab)

    def predict(self, frames: list[np.ndarray], **_: Any) -> list[Prediction]:
        """The next colors."""
        return [predicted(frame, next(self._ab)) for frame in frames]


def test_a_keyframe_guides_until_the_next_one_or_the_next_cut() -> None:
    rng = np.random.default_rng(2)
    shots = [textured(0)] * 7 + [255 - textured(0)] * 3
    ab = [rng.normal(0, 10, (8, 8, 2)) for _ in shots]
    pictures = [tinted(shots[0], np.full((8, 8, 2), color)) for color in ([20, 0], [0, -20])]
    given = {1: Keyframe("a", pictures[0]), 4: Keyframe("b", pictures[1])}

    def colored(**options: Any) -> list[Prediction]:
        def each() -> Generator[np.ndarray]:
            yield from shots

        batches = films.color_frames(each(), cast("Predictor", Known(ab)), **options)
        return [prediction for batch in batches for prediction in batch]

    plain, guided = colored(), colored(keyframes=given)
    for number in (0, 7, 8, 9):
        np.testing.assert_array_equal(guided[number].color, plain[number].color)
    for keyframe, numbers in (([20, 0], (1, 2, 3)), ([0, -20], (4, 5, 6))):
        # The colors of the keyframe itself start anew; those of the others waver with the network's.
        assert np.abs(guided[numbers[0]].color - keyframe).max() < 1.5
        for number in numbers:
            distance = np.linalg.norm(guided[number].color - keyframe, axis=-1).mean()
            assert distance < 0.8 * np.linalg.norm(plain[number].color - keyframe, axis=-1).mean()
    # Saturation is of the network's colors.
    gray = colored(keyframes=given, saturation=0.0, smoothing=0.0)
    np.testing.assert_allclose(gray[0].color, 0, atol=1e-6)
    assert np.abs(gray[1].color - [20, 0]).max() < 1.5
    faint = colored(saturation=0.5, smoothing=0.0)
    np.testing.assert_allclose(faint[5].color, 0.5 * ab[5], rtol=1e-5)


def test_the_frame_of_a_keyframe_is_found_by_its_lightness() -> None:
    shots = [textured(seed) for seed in range(6)]
    pink = np.full((8, 8, 2), [15, 5])
    pictures = [tinted(shot, pink) for shot in shots]
    half = np.asarray(Image.fromarray(pictures[2]).resize((32, 32), Image.Resampling.BOX))

    def find(*given: Keyframe) -> dict[int, str]:
        return {i: k.name for i, k in keyframes.find(given, iter(shots), rate=2.5, film="f.mp4").items()}

    assert find(Keyframe("a", pictures[4]), Keyframe("b", half)) == {4: "a", 2: "b"}
    assert find(Keyframe("a", pictures[4].astype(np.uint16) * 257, 1.6)) == {4: "a"}
    wide = np.concatenate([pictures[0]] * 2, axis=1)
    for given, message in (
        (
            [Keyframe("a", tinted(textured(9), pink))],
            r"a shows no frame of f\.mp4; the nearest is at .* give a colored",
        ),
        ([Keyframe("a", pictures[4], 0.4)], r"a shows another frame of f\.mp4 than that at 0\.40 s, whose lightness"),
        ([Keyframe("a", pictures[4], 9)], r"a is at 9 s, and f\.mp4 lasts 2\.40 s; without @SECONDS"),
        ([Keyframe("a", wide)], r"a is 128 by 64 pixels, and the film 64 by 64, which is another shape"),
        ([Keyframe("a", shots[4])], r"a is gray; give a colored picture of a frame"),
        ([Keyframe("a", shots[4][..., 0])], r"a is gray"),
        (
            [Keyframe("a", pictures[4]), Keyframe("b", pictures[4])],
            r"a and b show the same frame, at 1\.60 s; give one",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            find(*given)
        assert len(str(error.value)) <= 300


def test_a_keyframe_is_a_file_with_or_without_a_time(tmp_path: Path) -> None:
    picture = tinted(textured(0), np.full((8, 8, 2), [15, 5]))
    file = tmp_path / "a@1.png"
    Image.fromarray(picture).save(file)
    for text, seconds in ((f"{file}", None), (f"{file}@12.5", 12.5), (f"{file}@0", 0.0)):
        keyframe = keyframes.read(text)
        assert (keyframe.name, keyframe.seconds) == (str(file), seconds)
        np.testing.assert_array_equal(keyframe.picture, picture)
    for end in ("@", "@-1", "@1:30", "@nan", "@1e3"):
        with pytest.raises(ValueError, match=r"is not a time; write FILE@SECONDS, for example frame\.png@12\.5"):
            keyframes.read(f"{file}{end}")
    with pytest.raises(FileNotFoundError):
        keyframes.read(str(tmp_path / "none.png"))
    gray = replace(predicted(textured(0), np.zeros((8, 8, 2)))).photo
    Image.fromarray(gray).save(tmp_path / "gray.png")
    with pytest.raises(ValueError, match=r"gray\.png is gray"):
        keyframes.read(str(tmp_path / "gray.png"))
