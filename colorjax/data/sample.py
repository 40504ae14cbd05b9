"""A small offline data set: crops of the photographs that scikit-image installs."""

import functools
import importlib.resources
import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

from colorjax.data.batches import DatasetInfo, RowSource

# The two views of one motorcycle are one class.
_PHOTOS = {
    "astronaut": ("astronaut.png",),
    "chelsea": ("chelsea.png",),
    "coffee": ("coffee.png",),
    "hubble_deep_field": ("hubble_deep_field.jpg",),
    "ihc": ("ihc.png",),
    "motorcycle": ("motorcycle_left.png", "motorcycle_right.png"),
    "retina": ("retina.jpg",),
    "rocket": ("rocket.jpg",),
}
# Crop sides, as shares of the shorter side of the region they are cut from.
_TRAIN_SIDES = (1.0, 0.7, 0.5)
_HELD_OUT_SIDES = (1.0,)


def open_sample(*, resolution: int) -> RowSource:
    """Opens the offline sample, for tests and for a first run, not for results.

    Nine photographs of eight subjects, one class a subject. Training crops overlap one another
    and come from the upper two thirds of each photo; validation crops from the left half and
    test crops from the right half of the lower third. So a test crop shows *the same
    photographs, other regions*: no pixel is in two splits, but the subject is known. The cut is
    horizontal because the two views of the motorcycle differ by a shift along the rows.

    Args:
        resolution: S, the side in pixels that every crop is resized to.

    Raises:
        FileNotFoundError: if the installed scikit-image lacks one of the photographs.
    """
    rows = {split: _SampleRows(split, resolution) for split in ("train", "validation", "test")}
    sizes = {split: len(split_rows) for split, split_rows in rows.items()}
    return RowSource(DatasetInfo("sample", tuple(_PHOTOS), sizes), dict(rows))


class _SampleRows:
    def __init__(self, split: str, resolution: int):
        self._image, self._label = _crops(split, resolution)

    def __len__(self) -> int:
        return len(self._label)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._image[indices], self._label[indices]


@functools.lru_cache(maxsize=3)
def _crops(split: str, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for label, files in enumerate(_PHOTOS.values()):
        for file in files:
            photo = _read(file)
            for box in crop_boxes(split, width=photo.width, height=photo.height):
                side = (resolution, resolution)
                images.append(np.asarray(photo.resize(side, Image.Resampling.BILINEAR, box=box)))
                labels.append(label)
    return np.stack(images), np.array(labels, np.int32)


def crop_boxes(split: str, *, width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """The (left, upper, right, lower) pixel boxes of a photo's crops in one split."""
    cut, middle = height * 2 // 3, width // 2
    left, upper, right, lower = {
        "train": (0, 0, width, cut),
        "validation": (0, cut, middle, height),
        "test": (middle, cut, width, height),
    }[split]
    for share in _TRAIN_SIDES if split == "train" else _HELD_OUT_SIDES:
        side = round(share * min(right - left, lower - upper))
        for y, x in itertools.product(_starts(upper, lower, side), _starts(left, right, side)):
            yield x, y, x + side, y + side


def _starts(first: int, end: int, side: int) -> list[int]:
    """Evenly spread starts of windows that cover [first, end) and overlap by half or more."""
    count = 1 + -(-2 * (end - first - side) // side)
    return np.linspace(first, end - side, count).astype(int).tolist()


def _read(file: str) -> Image.Image:
    # Read from the wheel: skimage.data's functions would download a file that is missing.
    path = importlib.resources.files("skimage.data") / file
    if not path.is_file():
        raise FileNotFoundError(
            f"scikit-image's {file} is not in this installation: reinstall it "
            "(pip install --force-reinstall scikit-image), or choose another config.data.source"
        )
    with path.open("rb") as stream:
        return Image.open(stream).convert("RGB")
