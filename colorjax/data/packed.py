"""A pack: photos decoded once, in files that processes map into memory.

    meta.json            format, version, name, class names, resolution, train_fraction; split sizes, skipped photos
    SPLIT.images.npy     uint8 [N, S, S, 3]
    SPLIT.labels.npy     int32 [N]
    SPLIT.crc32.npy      uint32 [N], of each row's image and label

Every row is checked as it is read: a disk that flips a bit stops the run instead of training on.
"""

import json
import logging
import shutil
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from colorjax import atomic
from colorjax.data.batches import SPLITS, DatasetInfo, RowSource, Share, Source
from colorjax.data.errors import one_line

_log = logging.getLogger(__name__)

_FORMAT = "colorjax-pack"
_VERSION = 1
_WRITE_BATCH = 64
_AGAIN = "delete the pack and write it again with `colorjax data`"


def open_pack(directory: str, *, resolution: int, train_fraction: float) -> RowSource:
    """Opens a pack that `write_pack` wrote.

    Args:
        directory: the pack's folder.
        resolution: S in pixels, which must be the pack's.
        train_fraction: must be the pack's, if that has the training or the validation split and says.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is no pack, of another version, resolution or train_fraction, damaged or incomplete. Reading
            a row that fails its checksum raises ValueError, too.
    """
    root = Path(directory).expanduser()
    if not directory or not root.is_dir():
        raise FileNotFoundError(
            f"config.data.dir={directory!r} is no folder: give a pack's, or write one with "
            f"`colorjax data --out={directory or 'DIR'}`"
        )
    meta = _read_meta(root)
    if meta is None:
        raise ValueError(
            f"config.data.dir={directory!r} is no pack of colorjax (no meta.json that says so): "
            "write one with `colorjax data`, or choose another config.data.source"
        )
    if meta.get("version") != _VERSION:
        raise ValueError(
            f"{root} is a pack of version {one_line(meta.get('version'), limit=20)}, and this program reads version "
            f"{_VERSION}: write it again with `colorjax data`"
        )
    if damaged := _damaged_field(meta):
        raise ValueError(f"{root / 'meta.json'} is damaged, its field {damaged!r}: {_AGAIN}")
    if meta["resolution"] != resolution:
        raise ValueError(
            f"config.data.resolution={resolution}, but the pack {root} holds photos of "
            f"{meta['resolution']} pixels: set config.data.resolution={meta['resolution']}, or "
            "write another pack"
        )
    if {"train", "validation"} & meta["splits"].keys() and meta.get("train_fraction", train_fraction) != train_fraction:
        raise ValueError(
            f"config.data.train_fraction={train_fraction}, but the pack {root} was written with "
            f"{meta['train_fraction']}: set config.data.train_fraction={meta['train_fraction']}, or write another pack"
        )
    rows = {
        split: _PackRows(root, split, size=entry["size"], resolution=resolution, classes=len(meta["class_names"]))
        for split, entry in meta["splits"].items()
    }
    sizes = {split: len(split_rows) for split, split_rows in rows.items()}
    return RowSource(DatasetInfo(meta["name"], tuple(meta["class_names"]), sizes), dict(rows))


class _PackRows:
    def __init__(self, root: Path, split: str, *, size: int, resolution: int, classes: int):
        shape = (size, resolution, resolution, 3)
        self._path = root / f"{split}.images.npy"
        self._image = _load(self._path, shape=shape, dtype=np.uint8)
        self._label = _load(root / f"{split}.labels.npy", shape=(size,), dtype=np.int32)
        self._crc32 = _load(root / f"{split}.crc32.npy", shape=(size,), dtype=np.uint32)
        if size and not 0 <= self._label.min() <= self._label.max() < classes:
            raise ValueError(
                f"{root / f'{split}.labels.npy'} holds labels from {self._label.min()} to {self._label.max()}, and "
                f"meta.json beside it names {classes} classes: {_AGAIN}"
            )

    def __len__(self) -> int:
        return len(self._label)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # The copies are checked, not the map: what has been checked is what is used.
        image, label = self._image[indices], self._label[indices]
        crc32 = _row_crc32(image, label)
        wrong = np.flatnonzero(crc32 != self._crc32[indices])
        if wrong.size:
            raise ValueError(
                f"{self._path}: row {indices[wrong[0]]} fails its checksum, so the pack is damaged: {_AGAIN}"
            )
        return image, label


def _row_crc32(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """uint32 [n] of uint8 [n, S, S, 3] and int32 [n]."""
    label = label.astype("<i4")
    rows = zip(image, label, strict=True)
    return np.array([zlib.crc32(one.tobytes(), zlib.crc32(row)) for row, one in rows], np.uint32)


def _load(path: Path, *, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # for damaged headers NumPy raises errors of many types
        raise ValueError(f"{path} is missing or damaged ({one_line(error)}): {_AGAIN}") from error
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}, and meta.json beside it says {np.dtype(dtype)} {shape}: "
            f"{_AGAIN}"
        )
    return array


def _damaged_field(meta: dict[str, Any]) -> str | None:
    """The first field of meta.json that is not as `write_pack` writes it."""
    names, splits = meta.get("class_names"), meta.get("splits")
    good = {
        "name": isinstance(meta.get("name"), str),
        "class_names": isinstance(names, list) and all(isinstance(name, str) for name in names),
        "resolution": type(meta.get("resolution")) is int,
        "train_fraction": type(meta.get("train_fraction", 0.5)) is float,
        "splits": isinstance(splits, dict)
        and splits.keys() <= set(SPLITS)
        and all(isinstance(x, dict) and type(x.get("size")) is int and x["size"] >= 0 for x in splits.values()),
    }
    return next((field for field, is_good in good.items() if not is_good), None)


def _read_meta(root: Path) -> dict[str, Any] | None:
    """The pack's meta.json, or None if the folder is none of ours."""
    try:
        meta = json.loads((root / "meta.json").read_text())
    except (OSError, RecursionError, ValueError):
        return None
    return meta if isinstance(meta, dict) and meta.get("format") == _FORMAT else None


def write_pack(
    source: Source, out: str | Path, *, splits: Sequence[str], resolution: int, train_fraction: float
) -> None:
    """Decodes splits of a source into a new pack, which appears when it is complete.

    A killed run is started again, from the beginning. Photos that do not decode are left out, and listed in meta.json.

    Args:
        source: open, of photos at `resolution`.
        out: the pack's folder, which must not exist yet, or be empty.
        splits: which splits to write.
        resolution: S, in pixels.
        train_fraction: that the source was opened with.

    Raises:
        FileExistsError: if `out` holds something.
        ValueError: if the source lacks a split, or the disk has no room.
    """
    root = Path(out).expanduser().absolute()
    missing = [split for split in splits if not source.info.sizes.get(split)]
    if missing or not splits:
        raise ValueError(
            f"--splits={','.join(splits)}: the source has "
            f"{', '.join(split for split, size in source.info.sizes.items() if size)}"
        )
    total = sum(source.info.sizes[split] for split in splits)
    with atomic.new_folder(root) as partial:
        needed, free = total * resolution**2 * 3, shutil.disk_usage(partial).free
        if needed > free:
            raise ValueError(
                f"--out={out}: {total:,} photos at {resolution} pixels take {needed / 1e9:.1f} GB, "
                f"and {free / 1e9:.1f} GB are free there"
            )
        progress = _Progress(total)
        meta = {
            "format": _FORMAT,
            "version": _VERSION,
            "name": source.info.name,
            "class_names": source.info.class_names,
            "resolution": resolution,
            "train_fraction": train_fraction,
            "splits": {split: _write_split(source, partial, split, progress) for split in splits},
        }
        (partial / "meta.json").write_text(json.dumps(meta, indent=1))
    _log.info("%s is complete: %s", root, {s: e["size"] for s, e in meta["splits"].items()})


def _write_split(source: Source, root: Path, split: str, progress: "_Progress") -> dict[str, Any]:
    labels, crc32 = [], []
    skipped = len(source.undecodable)
    with (root / f"{split}.images.npy").open("wb") as file:
        shape: tuple[int, ...] = (0,)
        for batch in source.evaluate(split, Share(_WRITE_BATCH)):
            decoded = batch["mask"] > 0
            image, label = batch["image"][decoded], batch["label"][decoded]
            if not labels:
                shape = image.shape[1:]
                _write_header(file, (0, *shape))
            file.write(image.tobytes())
            labels.append(label)
            crc32.append(_row_crc32(image, label))
            progress.report(split, len(label))
        label = np.concatenate(labels)
        # NumPy pads the header so that the first axis can grow in place.
        file.seek(0)
        _write_header(file, (len(label), *shape))
    np.save(root / f"{split}.labels.npy", label)
    np.save(root / f"{split}.crc32.npy", np.concatenate(crc32))
    return {"size": len(label), "skipped": source.undecodable[skipped:]}


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


class _Progress:
    """Logs photos per second and the time that is left, every few seconds."""

    def __init__(self, total: int):
        self._total = total
        self._done = 0
        self._start = self._reported = time.monotonic()

    def report(self, split: str, photos: int) -> None:
        self._done += photos
        now = time.monotonic()
        if now - self._reported < 5 and self._done < self._total:
            return
        self._reported = now
        speed = self._done / max(now - self._start, 1e-9)
        left = round((self._total - self._done) / speed) if self._done else 0
        _log.info(
            "%s: %s of %s photos, %.0f photos/s, %d:%02d minutes left",
            split,
            f"{self._done:,}",
            f"{self._total:,}",
            speed,
            *divmod(left, 60),
        )
