"""A teacher's features of the training photos, in a file that `python -m colorjax teacher` wrote."""

from pathlib import Path

import numpy as np


class Teacher:
    """The features in a file, standardized over all photos: mean 0 and variance 1 each."""

    def __init__(self, path: str | Path, *, photos: int):
        """Opens a file.

        Args:
            path: what `write` wrote.
            photos: of the training split.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not of that many photos.
        """
        self._features = np.load(path, mmap_mode="r", allow_pickle=False)
        if self._features.ndim != 2 or len(self._features) != photos:
            raise ValueError(
                f"{path} holds {self._features.shape}, not the features of {photos} training photos: "
                "make it for these photos with `python -m colorjax teacher`"
            )
        self._mean = self._features.mean(axis=0, dtype=np.float64)
        parts = np.array_split(np.arange(photos), -(-photos // 4096))
        squares = sum(np.square(self._features[part] - self._mean).sum(axis=0) for part in parts)
        self._std = np.sqrt(squares / photos) + 1e-6

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """float32 [n, features], of the photos at these places of the training split."""
        return ((self._features[indices] - self._mean) / self._std).astype(np.float32)


def count_features(path: str | Path) -> int:
    """How many features the file has of each photo; raises as Teacher."""
    return np.load(path, mmap_mode="r", allow_pickle=False).shape[-1]
