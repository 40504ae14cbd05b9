"""Batches of photos, where they come from, and how processes share them."""

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np

from colorjax.data.teacher import Teacher

# Threads that each read a batch ahead; Python's lock is free while they copy and compute checksums.
_READERS = 3

# Photos: enough to keep a device busy, few enough for an evaluation at 224 pixels in a few gigabytes.
EVAL_BATCH_SIZE = 32

SPLITS = ("train", "validation", "test")

MAX_UNDECODABLE = 0.1
"""Default of config.data.max_undecodable, for configurations that lack it."""


class Batch(TypedDict):
    """One process's share of a batch.

    Attributes:
        image: uint8 [B, S, S, 3], sRGB, 0…255; zeros where `mask` is 0.
        label: int32 [B], index into `DatasetInfo.class_names`; 0 where the row is padding.
        mask: float32 [B], 1 for a photo, 0 for padding or a photo that did not decode.
        teacher: float32 [B, features], the teacher's features; only in training batches, if there is a teacher.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    teacher: NotRequired[np.ndarray]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Name, classes and sizes of a data set.

    Attributes:
        name: the data set's name, such as "food101".
        class_names: names by label number.
        sizes: number of photos by split name, the undecodable ones included.
    """

    name: str
    class_names: tuple[str, ...]
    sizes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of every global batch that one process reads.

    Raises:
        ValueError: if the batch does not divide evenly among the processes.
    """

    batch_size: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"process_index={self.process_index} must lie in 0…{self.process_count - 1} "
                f"for process_count={self.process_count}"
            )
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size={self.batch_size} must be a positive multiple of the number of "
                f"processes, {self.process_count}: it is the global batch, of which every "
                "process reads an equal share"
            )

    @property
    def local_size(self) -> int:
        """Rows of this process."""
        return self.batch_size // self.process_count

    @property
    def rows(self) -> slice:
        """This process's rows of a global batch."""
        start = self.process_index * self.local_size
        return slice(start, start + self.local_size)

    def positions(self, step: int) -> np.ndarray:
        """int64 [local_size]: places in the global stream of this process's rows of a batch."""
        return step * self.batch_size + np.arange(self.rows.start, self.rows.stop)

    def steps(self, size: int) -> int:
        """Batches that hold `size` examples, the last one padded; the same for every process."""
        return -(-size // self.batch_size)


class Source(Protocol):
    """A data set that is open for reading.

    Attributes:
        info: its name, classes and sizes.
        undecodable: names of the photos that were met so far and did not decode.
    """

    info: DatasetInfo
    undecodable: list[str]

    def train(self, share: Share, *, seed: int, start_step: int) -> Iterator[Batch]: ...

    def evaluate(self, split: str, share: Share) -> Iterator[Batch]: ...


class Rows(Protocol):
    """One split with random access: `read` gives uint8 [n, S, S, 3] and int32 [n]."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class RowSource:
    """A `Source` over splits with random access.

    Attributes:
        teacher: if set, the training batches have its features.
    """

    teacher: Teacher | None = None

    def __init__(self, info: DatasetInfo, rows: dict[str, Rows]):
        self.info = info
        self.undecodable: list[str] = []
        self._rows = rows

    def train(self, share: Share, *, seed: int, start_step: int) -> Iterator[Batch]:
        rows = self._rows["train"]

        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng([seed, epoch]).permutation(len(rows))

        def read(step: int) -> Batch:
            epochs, places = np.divmod(share.positions(step), len(rows))
            indices = np.empty_like(places)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                indices[here] = order(int(epoch))[places[here]]
            image, label = rows.read(indices)
            batch = Batch(image=image, label=label, mask=np.ones(len(label), np.float32))
            if self.teacher is not None:
                batch["teacher"] = self.teacher[indices]
            return batch

        return _prefetch(read, itertools.count(start_step))

    def evaluate(self, split: str, share: Share) -> Iterator[Batch]:
        rows = self._rows[split]

        def read(step: int) -> Batch:
            positions = share.positions(step)
            image, label = rows.read(positions[positions < len(rows)])
            padding = share.local_size - len(label)
            return Batch(
                image=np.pad(image, ((0, padding), (0, 0), (0, 0), (0, 0))),
                label=np.pad(label, (0, padding)),
                mask=np.pad(np.ones(len(label), np.float32), (0, padding)),
            )

        return _prefetch(read, range(share.steps(len(rows))))


def _prefetch(read: Callable[[int], Batch], steps: Iterable[int]) -> Iterator[Batch]:
    """Reads ahead in several threads: the next batch is ready when the device asks for it."""
    with ThreadPoolExecutor(max_workers=_READERS) as threads:
        ahead = deque()
        for step in steps:
            ahead.append(threads.submit(read, step))
            if len(ahead) > _READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def center_crop(image: Any, size: int) -> Any:
    """The square of `size` pixels at the center of NumPy's or JAX's [B, S, S, C]: [B, size, size, C].

    Raises:
        ValueError: if the image is smaller.
    """
    height, width = image.shape[1:3]
    if min(height, width) < size:
        raise ValueError(
            f"data.image_size is {size}, but data.resolution gives {height}×{width} pixels; "
            "make data.resolution at least data.image_size"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]


def eval_batch_size(devices: int) -> int:
    """Photos in a batch of an evaluation, which the devices divide; every photo counts once, whatever it is."""
    return -(-EVAL_BATCH_SIZE // devices) * devices
