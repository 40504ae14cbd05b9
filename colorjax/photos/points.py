"""Color points: colors that a person gives at some places of a photo, and how they spread.

Each place's ab is taken for a Gaussian variable whose mean is the network's color. Two places' colors are correlated as
much as the places are near each other, equally light, and of a color that the network takes for similar. The colors
that the points give are conditions, and the photo's colors the conditional mean (simple kriging; Rasmussen and
Williams, *Gaussian Processes for Machine Learning*, equation 2.19, without noise). So a point has exactly its color, a
place that belongs to it takes most of it, and a place far away or of another thing keeps its own.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colorjax import color

MAX_POINTS = 100
"""Of one photo."""

_FAR = 0.5  # of the photo's longer side: the distance at which a correlation has fallen to 1/e
_NEAR = 0.03  # of the same, of the share below: what the other pixels of a place do not have in common with it
_NEAR_SHARE = 0.1
_LIGHTNESS = 30.0  # of L: the standard deviation of the Gaussian in it
_COLOR = 16.0  # the same, of the network's mean ab


class Point(NamedTuple):
    """A color at a place.

    Attributes:
        x: column in pixels of the upright photo, from 0 at the left.
        y: row, from 0 at the top.
        color: "#rrggbb", sRGB. Its a and b count; the photo's lightness stays.
    """

    x: int
    y: int
    color: str


class Places(NamedTuple):
    """Places of a photo, as far as correlations depend on them.

    Attributes:
        position: floating [N, 2], x and y in units of the photo's longer side.
        l: floating [N], 0…100.
        mean: floating [N, 2], the mean ab that the network predicts.
    """

    position: Any
    l: Any
    mean: Any


class Shift(NamedTuple):
    """What points add to a photo's colors: the sum of each point's correlation times its coefficient.

    Attributes:
        places: of N points.
        coefficients: float32 [N, 2], of ab.
    """

    places: Places
    coefficients: np.ndarray


def parse(text: str) -> Point:
    """The point that "x,y,#rrggbb" describes.

    Raises:
        ValueError: if it is not of this form.
    """
    found = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(#[0-9a-fA-F]{6})\s*", text, flags=re.ASCII)
    if not found:
        raise ValueError(f"{text!r:.60} is not a point; write x,y,#rrggbb, for example 120,80,#3060a0")
    return Point(int(found[1]), int(found[2]), found[3])


def read(file: Path) -> list[Point] | dict[str, list[Point]]:
    """The points of a JSON file: one photo's, [[x, y, "#rrggbb"], …], or those of photos by their names.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it holds anything else; names the file.
    """
    try:
        content = json.loads(file.read_text())
        return {name: _listed(x) for name, x in content.items()} if isinstance(content, dict) else _listed(content)
    except (ValueError, RecursionError) as error:
        form = '[[x, y, "#rrggbb"], …], or an object of such lists by the photos\' names'
        raise ValueError(f"{file} must hold {form}, as JSON ({error})") from error


def _listed(content: Any) -> list[Point]:
    if not isinstance(content, list):
        raise ValueError(f"{content!r:.40} is not a list")
    return checked(content)


def checked(points: Iterable[Any], *, shape: tuple[int, ...] | None = None) -> list[Point]:
    """The points, of which the last one at a place counts.

    Args:
        points: of x, y and color each.
        shape: of the photo, height and width first.

    Raises:
        ValueError: if one is not a point or lies outside the photo, or there are more than MAX_POINTS.
    """
    result: dict[tuple[int, int], Point] = {}
    for point in points:
        try:
            x, y, rgb = point
            # As text, so that 1.5, true and "1" are refused alike.
            here = parse(f"{x},{y},{rgb}")
        except (TypeError, ValueError) as error:
            raise ValueError(f'{point!r:.60} is not a point; give x, y and "#rrggbb"') from error
        if shape is not None and not (here.x < shape[1] and here.y < shape[0]):
            raise ValueError(
                f"the point {here.x},{here.y} is outside of the photo, which is {shape[1]} pixels wide and {shape[0]} "
                "high; x is 0 at the left, y at the top"
            )
        result.pop((here.x, here.y), None)
        result[here.x, here.y] = here
    if len(result) > MAX_POINTS:
        raise ValueError(f"there are {len(result)} points; a photo takes at most {MAX_POINTS}")
    return list(result.values())


def moved(points: Iterable[Point], source: tuple[int, ...], target: tuple[int, ...]) -> list[Point]:
    """Points of a photo of one shape (height and width first) as those of a copy of another."""

    def scaled(at: int, side: int, new: int) -> int:
        return math.floor((at + 0.5) * new / side)

    return [Point(scaled(x, source[1], target[1]), scaled(y, source[0], target[0]), rgb) for x, y, rgb in points]


def ab_of(points: Iterable[Point]) -> np.ndarray:
    """The points' colors: float32 [N, 2], ab."""
    rgb = [[int(point.color[i : i + 2], 16) for i in (1, 3, 5)] for point in points]
    return np.asarray(color.rgb_to_lab(np.array(rgb, np.uint8)))[..., 1:]


def fit(places: Places, wanted: np.ndarray) -> Shift:
    """The shift that is exactly as wanted at some places.

    Args:
        places: of N different pixels.
        wanted: float32 [N, 2], what to add to the ab there.
    """
    exact = Places(*(np.asarray(x, np.float64) for x in places))
    coefficients = np.linalg.solve(correlations(exact, exact, np), np.asarray(wanted, np.float64))
    # As many as a power of two, so that there are few programs: the others are at the first place, and add 0.
    more = 2 ** max(3, math.ceil(math.log2(len(wanted)))) - len(wanted)

    def padded(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.repeat(x[:1], more, axis=0)]).astype(np.float32)

    return Shift(Places(*map(padded, exact)), np.pad(coefficients, ((0, more), (0, 0))).astype(np.float32))


def shift_at(shift: Shift, places: Places) -> jax.Array:
    """The shift at M places: float32 [M, 2]."""
    return jnp.matmul(correlations(places, shift.places, jnp), shift.coefficients, precision=jax.lax.Precision.HIGHEST)


def correlations(one: Places, other: Places, xp: Any) -> Any:
    """The correlations of the colors of M places with those of N: [M, N], 0…1, and 1 only of a place with itself.

    A product and sum of kernels, so that the matrix of different places is positive definite. It is exponential in the
    distance: so near points of unlike colors do not make colors beyond theirs between them.

    Args:
        one, other: M and N places.
        xp: numpy or jax.numpy.
    """

    def squares(x: Any, y: Any) -> Any:
        return sum((x[:, i, None] - y[None, :, i]) ** 2 for i in range(2))

    distance = xp.sqrt(squares(one.position, other.position))
    unlike = (one.l[:, None] - other.l[None]) ** 2 / (2 * _LIGHTNESS**2)
    unlike += squares(one.mean, other.mean) / (2 * _COLOR**2)
    wide = (1 - _NEAR_SHARE) * xp.exp(-distance / _FAR - unlike)
    return wide + _NEAR_SHARE * xp.exp(-distance / _NEAR)
