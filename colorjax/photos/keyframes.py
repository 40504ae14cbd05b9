"""Keyframes: colored pictures of a film's frames, and how their colors are carried to the frames that follow.

The difference between a keyframe's colors and the network's is spread as color points are (photos/points.py), with a
point at each place of the keyframe. A place of a later frame counts at the position that it had in the keyframe. That
position comes from the motion between each two frames: the displacement with the smallest sum of absolute differences
of the lightness, refined below a pixel by one step of Lucas and Kanade (*An Iterative Image Registration Technique with
an Application to Stereo Vision*, 1981).
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike
from PIL import Image

from colorjax import color
from colorjax.photos import resample
from colorjax.photos.files import read_photo
from colorjax.photos.points import Places, fit, shift_at
from colorjax.photos.predictor import Prediction

_SIDE = 64  # places in a row and in a column of the copies that are compared
_REACH = 4  # of these: how far a thing may move between two frames
_WINDOW = 2.0  # of these: the standard deviation of the Gaussian window in which differences are summed
_OTHER = 20.0  # of L: differences above are those of other things, and count no more
_STILL = 0.02  # of L: what each place of a displacement costs, so that flat areas do not move
_FLAT = 0.1  # L²: gradients whose mean square is smaller do not move a place
_POINTS = 32  # in a row and in a column of the keyframe
_SAME = 5.0  # of L: a keyframe that differs more from a frame on average does not show it
_GRAY = 2.0  # of a and b: a keyframe that has no more has no color


class Keyframe(NamedTuple):
    """A colored picture of one frame of a film.

    Attributes:
        name: for messages, such as its path.
        picture: uint8 or uint16 [H, W, 3…4], sRGB, of the film's aspect ratio.
        seconds: from the film's start; None for the frame whose lightness is nearest to the picture's.
    """

    name: str
    picture: np.ndarray
    seconds: float | None = None


def read(text: str) -> Keyframe:
    """The keyframe that "FILE" or "FILE@SECONDS" names. If there is a file with all of that name, it is meant.

    Raises:
        OSError, ValueError: if the picture cannot be read, is gray, or the seconds are no number.
    """
    name, seconds = text, None
    if not Path(text).exists() and "@" in text:
        name, _, end = text.rpartition("@")
        if not re.fullmatch(r"\d{1,6}(\.\d{1,9})?", end, flags=re.ASCII):
            raise ValueError(f"{text}: {end!r} is not a time; write FILE@SECONDS, for example frame.png@12.5")
        seconds = float(end)
    keyframe = Keyframe(name, read_photo(Path(name)).array, seconds)
    _check_color(keyframe)
    return keyframe


def find(keyframes: Sequence[Keyframe], frames: Iterable[np.ndarray], *, rate: float, film: str) -> dict[int, Keyframe]:
    """Which frame each keyframe shows.

    Args:
        keyframes: in any order.
        frames: all of the film's, uint8 [H, W, 3].
        rate: frames a second.
        film: its name, for messages.

    Returns:
        Keyframes by the number of their frame, from 0.

    Raises:
        ValueError: if a keyframe is gray, has another aspect ratio than the film, shows none of its frames or not the
            one at its time, or two show the same; or a time is after the film's end.
    """
    for keyframe in keyframes:
        _check_color(keyframe)
    wanted = [_l(keyframe.picture) for keyframe in keyframes]
    number = [None if k.seconds is None else round(k.seconds * rate) for k in keyframes]
    best = [(np.inf, 0)] * len(keyframes)
    count = 0
    for count, frame in enumerate(frames, 1):
        if count == 1:
            for keyframe in keyframes:
                _check_shape(keyframe, frame.shape)
        l = _l(frame)
        for i, at in enumerate(number):
            if at in (None, count - 1):
                best[i] = min(best[i], (float(np.abs(l - wanted[i]).mean()), count - 1))
    result: dict[int, Keyframe] = {}
    for keyframe, (difference, at), given in zip(keyframes, best, number, strict=True):
        if given is not None and given >= count:
            raise ValueError(
                f"the keyframe {keyframe.name} is at {keyframe.seconds:g} s, and {film} lasts {count / rate:.2f} s; "
                "without @SECONDS its frame is looked for"
            )
        if difference > _SAME:
            raise ValueError(
                f"the keyframe {keyframe.name} shows "
                + (f"no frame of {film}; the nearest is" if given is None else f"another frame of {film} than that")
                + f" at {at / rate:.2f} s, whose lightness differs by {difference:.0f} of 100; give a colored picture "
                + ("of one whole frame" if given is None else "of that frame, or leave out @SECONDS")
            )
        if at in result:
            raise ValueError(
                f"the keyframes {result[at].name} and {keyframe.name} show the same frame, at {at / rate:.2f} s; "
                "give one, or another time as FILE@SECONDS"
            )
        result[at] = keyframe
    return result


class Guidance:
    """What a keyframe adds to the colors of its frame, and of the frames that follow."""

    def __init__(self, keyframe: Keyframe, prediction: Prediction, ab: np.ndarray):
        """Args:
        keyframe: the colored frame.
        prediction: the network's, of the frame.
        ab: float32 [h, w, 2], the colors that the frame has without the keyframe.
        """
        self._l = _l(prediction.photo)
        self._origin = _grid(_SIDE, _SIDE)
        height, width = ab.shape[:2]
        # The mean over squares of pixels, as the network's targets are.
        wanted = _lab(keyframe.picture, 2 * height, 2 * width)[..., 1:]
        wanted = wanted.reshape(height, 2, width, 2, 2).mean(axis=(1, 3))
        size = (min(height, _POINTS), min(width, _POINTS))
        places = _places(prediction, self._origin, *size)
        self._shift = fit(places, _resized(wanted - ab, *size).reshape(-1, 2))

    def follow(self, frame: np.ndarray) -> None:
        """Goes on to the next frame, uint8 [H, W, 3]."""
        l = _l(frame)
        self._origin = np.asarray(_carried(self._origin, self._l, l))
        self._l = l

    def __call__(self, prediction: Prediction) -> np.ndarray:
        """What to add to the colors of the frame that it is at: float32 [h, w, 2]."""
        height, width = prediction.guide.shape
        places = _places(prediction, self._origin, height, width)
        return np.asarray(_shift_at(self._shift, places)).reshape(height, width, 2)


def _check_color(keyframe: Keyframe) -> None:
    picture = keyframe.picture
    if picture.ndim < 3 or picture.shape[-1] < 3 or np.abs(_lab(picture, _SIDE, _SIDE)[..., 1:]).max() <= _GRAY:
        raise ValueError(f"the keyframe {keyframe.name} is gray; give a colored picture of a frame")


def _check_shape(keyframe: Keyframe, shape: tuple[int, ...]) -> None:
    (height, width), (rows, columns) = keyframe.picture.shape[:2], shape[:2]
    # As far as the sides of a scaled picture are rounded.
    if abs(height * columns - width * rows) > columns + rows:
        raise ValueError(
            f"the keyframe {keyframe.name} is {width} by {height} pixels, and the film {columns} by {rows}, which is "
            "another shape; give a picture of the whole frame"
        )


def _lab(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(color.rgb_to_lab(resample.thumbnail(picture, height=height, width=width)))


def _l(picture: np.ndarray) -> np.ndarray:
    small = resample.thumbnail(picture, height=_SIDE, width=_SIDE)
    return np.asarray(color.lightness(small, gray=False))[..., 0]


def _places(prediction: Prediction, origin: np.ndarray, height: int, width: int) -> Places:
    """The frame's places at a resolution, at the positions that they had in the keyframe."""
    rows, columns = prediction.photo.shape[:2]
    position = _resized(origin, height, width) * np.array([columns, rows], np.float32) / max(rows, columns)
    mean = _resized(prediction.ab(temperature=1.0), height, width)
    l = _resized(prediction.guide[..., None], height, width)
    return Places(position.reshape(-1, 2), l.reshape(-1), mean.reshape(-1, 2))


def _grid(height: int, width: int) -> np.ndarray:
    """The centers of places in a unit square, x and y: float32 [height, width, 2]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=-1)


def _resized(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    shrinks = height <= maps.shape[0] and width <= maps.shape[1]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    channels = [Image.fromarray(np.ascontiguousarray(maps[..., i], np.float32)) for i in range(maps.shape[-1])]
    return np.stack([np.asarray(channel.resize((width, height), method)) for channel in channels], axis=-1)


_shift_at = jax.jit(shift_at)


@jax.jit
def _carried(origin: jax.Array, previous: jax.Array, l: jax.Array) -> jax.Array:
    """Where each place of a frame was in the keyframe.

    Args:
        origin: float32 [_SIDE, _SIDE, 2], the same for the previous frame.
        previous: float32 [_SIDE, _SIDE], its L.
        l: float32 [_SIDE, _SIDE], the frame's.
    """
    at = jnp.stack(jnp.mgrid[:_SIDE, :_SIDE]) + motion(previous, l)
    return jnp.stack([map_coordinates(origin[..., i], list(at), order=1, mode="nearest") for i in range(2)], axis=-1)


def motion(previous: ArrayLike, l: ArrayLike) -> jax.Array:
    """How far away each place of a frame was in the previous frame.

    Args:
        previous, l: float32 [n, n], L of both.

    Returns:
        float32 [2, n, n], rows and columns, up to 5 of each.
    """
    previous, l = jnp.asarray(previous), jnp.asarray(l)
    n = len(l)
    i = np.arange(n)
    window = np.exp(-np.square(i[:, None] - i) / (2 * _WINDOW**2))
    window = (window / window.sum(axis=1, keepdims=True)).astype(np.float32)

    def summed(x: jax.Array) -> jax.Array:
        return jnp.einsum("yh,...hw,xw->...yx", window, x, window, precision=jax.lax.Precision.HIGHEST)

    steps = np.mgrid[-_REACH : _REACH + 1, -_REACH : _REACH + 1].reshape(2, -1)
    padded = jnp.pad(previous, _REACH, mode="edge")
    displaced = jnp.stack([padded[_REACH + y : _REACH + y + n, _REACH + x : _REACH + x + n] for y, x in steps.T])
    error = displaced - l[None]
    cost = summed(jnp.minimum(jnp.abs(error), _OTHER))
    best = (cost + _STILL * np.hypot(*steps)[:, None, None].astype(np.float32)).argmin(axis=0)

    def at_best(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(summed(x), best[None], axis=0)[0]

    # The gradients' mean over both frames is right to the second order.
    by_y, by_x = (
        (jnp.asarray(jnp.gradient(displaced, axis=axis + 1)) + jnp.asarray(jnp.gradient(l, axis=axis))[None]) / 2
        for axis in (0, 1)
    )
    yy, xx, xy = at_best(by_y**2) + _FLAT, at_best(by_x**2) + _FLAT, at_best(by_y * by_x)
    y, x = at_best(by_y * error), at_best(by_x * error)
    fraction = jnp.stack([xy * x - xx * y, xy * y - yy * x]) / (yy * xx - xy**2)[None]
    return jnp.asarray(steps, jnp.float32)[:, best] + jnp.clip(fraction, -1, 1)
