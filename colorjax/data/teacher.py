"""The teacher's features of the training photos, read from the file that `colorjax teacher` wrote."""

from pathlib import Path

import numpy as np

from colorjax.data.errors import one_line


class Teacher:
    """The features in a file, standardized: each has mean 0 and variance 1 over the training photos.

    Attributes:
        features: number of features of a photo.
    """

    def __init__(self, path: Path, *, photos: int):
        """Opens a file.

        Args:
            path: a .npy file, floating [photos, features], in the order of the training split.
            photos: number of training photos.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, of another number of photos, or holds values that are not finite.
        """
        if not path.exists():
            raise FileNotFoundError(f"data.teacher is {path}, which does not exist: write it by `colorjax teacher`")
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # for damaged headers NumPy raises errors of many types
            raise ValueError(f"data.teacher: {path} is damaged or no .npy file ({one_line(error)})") from error
        if values.ndim != 2 or len(values) != photos or not values.size:
            raise ValueError(
                f"data.teacher: {path} holds an array of shape {values.shape}, not the features of {photos} training "
                "photos: write it for these photos by `colorjax teacher`"
            )
        if values.dtype.kind != "f":
            raise ValueError(f"data.teacher: {path} holds {values.dtype}, not floating-point numbers")
        self.features = values.shape[1]
        self._values = values
        with np.errstate(over="ignore", invalid="ignore"):
            self._mean = values.mean(axis=0, dtype=np.float64)
            # In parts, since the float64 differences of all photos would take a gigabyte.
            parts = np.array_split(np.arange(photos), -(-photos // 4096))
            squares = sum(np.square(values[part] - self._mean).sum(axis=0) for part in parts)
        self._deviation = np.sqrt(squares / photos) + 1e-6
        if not np.isfinite(self._deviation).all():
            raise ValueError(
                f"data.teacher: {path} holds values that are not finite or too large: write it again by `colorjax "
                "teacher`"
            )

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The features of the photos at these places of the training split: float32 [n, features]."""
        return ((self._values[indices] - self._mean) / self._deviation).astype(np.float32)
