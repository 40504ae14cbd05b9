"""Color points: exact where they are, spread to what belongs to them, and nowhere else."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import skimage.data

from colorjax.photos import points
from colorjax.photos.points import MAX_POINTS, Places, Point
from colorjax.photos.predictor import Prediction, Predictor


def places(rng: np.random.Generator, n: int) -> Places:
    return Places(rng.uniform(0, 1, (n, 2)), rng.uniform(0, 100, n), rng.normal(0, 30, (n, 2)))


def made(photo: np.ndarray, rng: np.random.Generator, *, size: int = 16) -> Prediction:
    """A prediction for a photo, without a network: smooth colors of a regression."""
    l = skimage.color.rgb2lab(photo)[..., 0]
    rows, columns = (np.array_split(np.arange(n), size) for n in l.shape)
    guide = np.array([[l[np.ix_(r, c)].mean() for c in columns] for r in rows], np.float32)
    ab = np.stack([guide * 0.2, guide * 0.1], axis=-1) + rng.normal(0, 2, (size, size, 2))
    return Prediction(photo, ab.astype(np.float32), guide, np.ones(1, np.float32), ("x",), 0.38)


def test_correlations_and_shift_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    at, everywhere, wanted = places(rng, 5), places(rng, 40), rng.normal(0, 20, (5, 2)).astype(np.float32)

    def correlation(one: Places, i: int, other: Places, j: int) -> float:
        distance = math.hypot(*(one.position[i] - other.position[j]))
        in_l = ((one.l[i] - other.l[j]) / 30) ** 2 / 2
        in_color = (math.hypot(*(one.mean[i] - other.mean[j])) / 16) ** 2 / 2
        return 0.9 * math.exp(-distance / 0.5 - in_l - in_color) + 0.1 * math.exp(-distance / 0.03)

    matrix = np.array([[correlation(at, i, at, j) for j in range(5)] for i in range(5)])
    weights = np.array([[correlation(everywhere, i, at, j) for j in range(5)] for i in range(40)])
    np.testing.assert_allclose(points.correlations(everywhere, at, np), weights, rtol=1e-12)
    assert (np.linalg.eigvalsh(matrix) > 0).all()
    shift = points.fit(at, wanted)
    as_float32 = Places(*(np.asarray(x, np.float32) for x in everywhere))
    expected = weights @ np.linalg.inv(matrix) @ wanted
    np.testing.assert_allclose(points.shift_at(shift, as_float32), expected, atol=1e-3)
    own = Places(*(np.asarray(x, np.float32) for x in at))
    np.testing.assert_allclose(points.shift_at(shift, own), wanted, atol=1e-3)


@pytest.mark.parametrize("photo", ["rgb", "gray", "sixteen bits", "alpha"])
def test_a_point_has_exactly_its_color_and_the_photos_lightness(photo: str) -> None:
    rgb = skimage.data.coffee()[100:380, 100:400]  # more than one tile
    shown = {
        "rgb": rgb,
        "gray": rgb[..., 0],
        "sixteen bits": rgb.astype(np.uint16) * 257,
        "alpha": np.dstack([rgb, rgb[..., :1]]),
    }[photo]
    prediction = replace(made(rgb, np.random.default_rng(0)), photo=shown)
    given = [(20, 30, "#506070"), (270, 260, "#706050"), (21, 30, "#607050"), (150, 140, "#605868")]
    result = prediction.with_points(given).render(saturation=0.7)
    plain = prediction.render(saturation=0.7)
    most = np.iinfo(shown.dtype).max
    lab, before = (skimage.color.rgb2lab(x / most) for x in (result, plain))
    for x, y, color in given:
        wanted = skimage.color.rgb2lab(np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255)
        np.testing.assert_allclose(lab[y, x, 1:], wanted[1:], atol=1.5 if most == 255 else 0.02)
    assert np.abs(lab[..., 0] - before[..., 0]).max() < 0.3


def test_a_point_spreads_to_its_own_thing_and_not_far() -> None:
    gray = np.full((200, 400), 60, np.uint8)
    gray[:, 150:250] = 200  # another thing
    prediction = made(np.stack([gray] * 3, axis=-1), np.random.default_rng(0))
    prediction = replace(prediction, color=np.zeros_like(prediction.color))
    ab = skimage.color.rgb2lab(prediction.with_points([(75, 100, "#203f60")]).render())[..., 1:]
    moved = np.linalg.norm(ab, axis=-1)
    at, near, beyond, far = moved[100, 75], moved[60, 100], moved[100, 160], moved[20, 395]
    assert at > near > 2 * beyond
    assert near > 0.6 * at
    assert far < 0.3 * at
    # Along the thing it fades with the distance.
    assert (np.diff(moved[100, 75:150:10]) < 0.5).all()
    assert np.abs(np.diff(moved[100], axis=0)[[148, 149, 150]]).max() > 0.3 * near  # it stops at the edge


def test_with_true_colors_the_photo_comes_closer_to_itself() -> None:
    photo = skimage.data.chelsea()[::3, ::3]
    true = skimage.color.rgb2lab(photo)[..., 1:]
    prediction = made(photo, np.random.default_rng(0))
    width = photo.shape[1]
    errors = np.zeros((4, 4))
    for seed, row in enumerate(errors):
        chosen = np.random.default_rng(seed).choice(true[..., 0].size, 50, replace=False)
        given = [(int(i % width), int(i // width), f"#{photo[i // width, i % width].tobytes().hex()}") for i in chosen]
        for column, count in enumerate((0, 1, 5, 50)):
            ab = skimage.color.rgb2lab(prediction.with_points(given[:count]).render())[..., 1:]
            row[column] = np.linalg.norm(ab - true, axis=-1).mean()
    mean = errors.mean(axis=0)
    assert (np.diff(mean) < 0).all(), mean
    assert mean[-1] < 0.5 * mean[0]


def test_of_two_points_at_a_place_the_last_one_counts() -> None:
    assert points.checked([(1, 2, "#000000"), (3, 4, "#ffffff"), (1, 2, "#0000FF")]) == [
        Point(3, 4, "#ffffff"),
        Point(1, 2, "#0000FF"),
    ]


def test_points_of_a_copy_are_at_the_same_places() -> None:
    assert points.moved([(0, 0, "#000000"), (99, 49, "#000000")], (50, 100), (500, 1000, 3)) == [  # pyright: ignore
        (5, 5, "#000000"),
        (995, 495, "#000000"),
    ]


@pytest.mark.parametrize(
    "text",
    ["", "1,2", "1,2,red", "1,2,#12345", "1,2,#1234567", "-1,2,#123456", "1.5,2,#123456", "\0" * 60],
)
def test_text_that_is_no_point_is_refused(text: str) -> None:
    assert points.parse("120, 80,#3060A0") == Point(120, 80, "#3060A0")
    with pytest.raises(ValueError, match=r"is not a point; write x,y,#rrggbb") as error:
        points.parse(text)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2]", "{", '"x"', '[[1, 2, "blue"]]', '{"a.jpg": 3}', "[[1, 2]]", '[[1.5, 2, "#000000"]]', "[" * 10**5],
)
def test_a_file_that_holds_no_points_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "points.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"points\.json must hold"):
        points.read(file)


def test_a_file_holds_one_photos_points_or_those_of_several(tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    file.write_text(json.dumps([[1, 2, "#102030"]]))
    assert points.read(file) == [Point(1, 2, "#102030")]
    file.write_text(json.dumps({"a.jpg": [[1, 2, "#102030"]], "b.jpg": []}))
    assert points.read(file) == {"a.jpg": [Point(1, 2, "#102030")], "b.jpg": []}
    with pytest.raises(FileNotFoundError):
        points.read(tmp_path / "absent.json")


def test_wrong_points_are_refused(untrained: Path) -> None:
    predictor, photo = Predictor(untrained), np.zeros((30, 40, 3), np.uint8)
    for outside in ((40, 0), (0, 30)):
        with pytest.raises(ValueError, match="is outside of the photo, which is 40 pixels wide and 30 high"):
            predictor.predict([photo], points=[[(*outside, "#000000")]])
    with pytest.raises(ValueError, match=r"\(1, 2\) is not a point"):
        predictor.predict([photo], points=[[(1, 2)]])  # pyright: ignore
    with pytest.raises(ValueError, match=r"there are 1 lists of points for 2 photos"):
        predictor.predict([photo, photo], points=[[]])
    many = [(i % 40, i // 40, "#000000") for i in range(MAX_POINTS + 1)]
    with pytest.raises(ValueError, match=f"there are {MAX_POINTS + 1} points; a photo takes at most {MAX_POINTS}"):
        predictor.predict([photo], points=[many])
