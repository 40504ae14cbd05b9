"""The prior: how often each color class occurs in a training split, counted once, in a file."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from colorjax import atomic, color
from colorjax.data.errors import one_line


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """The distribution of colors over a set of photos.

    Attributes:
        p: float64 [313], the mean soft target over the pixels (color.soft_targets); sums to 1.
        mean_ab: float64 [2], the mean color of the same pixels.
        photos: how many photos were counted.
        source: where they came from.

    Raises:
        ValueError: one of these is not so.
    """

    p: np.ndarray
    mean_ab: np.ndarray
    photos: int
    source: str

    def __post_init__(self) -> None:
        if self.p.shape != (color.NUM_BINS,) or self.mean_ab.shape != (2,):
            raise ValueError(
                f"p is of shape {self.p.shape} and mean_ab of shape {self.mean_ab.shape}, "
                f"not ({color.NUM_BINS},) and (2,)"
            )
        # Written so that a NaN fails each of them.
        if not (self.p >= 0).all():
            raise ValueError("p has entries that are negative or NaN")
        if not abs(self.p.sum() - 1) < 1e-6:
            raise ValueError(f"p sums to {self.p.sum()}, not to 1")
        if not np.isfinite(self.mean_ab).all():
            raise ValueError(f"mean_ab is {self.mean_ab}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, all of it or nothing; makes the folder if there is none."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as temporary, temporary.open("wb") as f:
            np.savez(f, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Prior":
        """Reads what `save` wrote.

        Raises:
            ValueError: the file is missing, is something else or is damaged; the message says which
                and how to make a new one.
        """
        try:
            # NumPy leaves a file that it cannot read open.
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as f:
                return cls(
                    p=np.asarray(f["p"], np.float64),
                    mean_ab=np.asarray(f["mean_ab"], np.float64),
                    photos=int(f["photos"]),
                    source=str(f["source"]),
                )
        except FileNotFoundError:
            reason = "there is no such file"
        except Exception as error:  # for damaged bytes NumPy and zipfile raise errors of many types
            reason = one_line(error)
        raise ValueError(
            f"{Path(path)} is no readable prior ({reason}); make one with `colorjax prior --config=CONFIG --out=PATH`"
        )


def count(
    batches: Iterable[Mapping[str, Any]],
    *,
    factor: int = 2,
    neighbors: int = 5,
    sigma: float = 5.0,
    limit: int | None = None,
    source: str,
) -> Prior:
    """Counts the prior of a set of photos.

    Pixels are averaged and soft-encoded as training targets are. Gray photos are left out, for they
    carry no color loss.

    Args:
        batches: "image", uint8 [B, S, S, 3], and "mask", [B], 0 for padding and for photos that
            could not be decoded.
        factor: the photos' side over the targets' side.
        neighbors, sigma: of the soft targets (color.soft_targets).
        limit: how many photos to look at, gray ones included; None is all.
        source: what to call these photos in the file.

    Raises:
        ValueError: none of the photos has color, or there is none.
    """
    shares, mean_ab, photos = np.zeros(color.NUM_BINS), np.zeros(2), 0
    seen = 0
    for batch in batches:
        real = np.asarray(batch["mask"]) > 0
        if limit is not None:
            real &= np.cumsum(real) <= limit - seen
        seen += real.sum()
        p, ab, gray = jax.device_get(_means(batch["image"], factor=factor, neighbors=neighbors, sigma=sigma))
        # The device's float32 ends with a photo: over 10⁹ pixels it would round rare bins away.
        counted = real & ~gray
        shares += p[counted].sum(axis=0, dtype=np.float64)
        mean_ab += ab[counted].sum(axis=0, dtype=np.float64)
        photos += int(counted.sum())
        if seen == limit:
            break
    if not photos:
        raise ValueError(f"no color photo among the {seen} photos of {source}: nothing to count")
    return Prior(p=shares / shares.sum(), mean_ab=mean_ab / photos, photos=photos, source=source)


def require_color(batches: Iterable[Mapping[str, Any]], *, source: str) -> None:
    """Looks for the first color photo, without which `count` has nothing to count.

    Args:
        batches: as for `count`.
        source: what to call these photos.

    Raises:
        ValueError: if none of the photos has color, or there is none.
    """
    seen = 0
    for batch in batches:
        real = np.asarray(batch["mask"]) > 0
        if (real & ~jax.device_get(_gray(batch["image"]))).any():
            return
        seen += int(real.sum())
    raise ValueError(f"no color photo among the {seen} photos of {source}: nothing to learn colors from")


@jax.jit
def _gray(image: jax.Array) -> jax.Array:
    return jax.lax.map(lambda rgb: color.is_gray(color.rgb_to_lab(rgb)[..., 1:]), image)


@functools.partial(jax.jit, static_argnames=("factor", "neighbors", "sigma"))
def _means(image: jax.Array, *, factor: int, neighbors: int, sigma: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """By photo: the mean soft target [B, 313], the mean ab [B, 2], whether it is gray [B]."""

    def of_photo(rgb: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        ab = color.rgb_to_lab(rgb)[..., 1:]
        small = color.downsample(ab[None], factor=factor)[0]
        p = color.dense_shares(*color.bin_shares(small, neighbors=neighbors, sigma=sigma, in_gamut=True))
        return p.mean(axis=(0, 1)), small.mean(axis=(0, 1)), color.is_gray(ab)

    # One after the other: the targets of 64 photos of 224² take 1 GB.
    return jax.lax.map(of_photo, image)
