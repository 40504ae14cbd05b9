"""Carries a data set to a machine that takes small files only, has no network and no TensorFlow: docs/pilots.md.

    python -m benchmarks pieces --config=configs/food101_small.py --config.data.source=food101 \\
        --config.data.dir=DIR --out=PIECES        # here: the photos' files, in pieces
    python -m benchmarks pieces --join=PIECES --out=PACK    # there, once all pieces have come: a pack

The photos stay the files that they are, a sixth of the pack's size, and must have the pack's resolution already. The
pack is byte for byte what `colorjax data` writes, if all photos decode.
"""

import argparse
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from colorjax import atomic, data
from colorjax.cli import configuration
from colorjax.cli.arguments import Parser, number
from colorjax.cli.errors import UsageError, as_usage_error
from colorjax.data.batches import SPLITS, DatasetInfo, RowSource
from colorjax.data.packed import write_pack

_DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    configuration.add_arguments(parser, required=False)
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder to write: the pieces or, with --join, the pack")
    add("--join", type=Path, metavar="DIR", help="folder of the pieces to make a pack of")
    add("--megabytes", type=number(float, 0.001), default=48.0, metavar="N", help="of photos in a piece")


def run(args: argparse.Namespace) -> None:
    """Splits or joins."""
    if args.join:
        join(args.join, args.out)
    elif args.config is None:
        raise UsageError("--config is missing: give it to make pieces, or --join=PIECES to make a pack of them")
    else:
        split(configuration.load(args.config, args.overrides), args.out, limit=args.megabytes * 1e6)


def split(config: Any, out: str, *, limit: float) -> None:
    """Writes the photos' files of all splits into pieces of at most `limit` bytes and one photo."""
    if config.data.source != "food101":
        raise UsageError(f"config.data.source is {config.data.source!r}; pieces are made of food101's files")
    source: Any = data.open_source(config.data)
    meta = {
        "name": source.info.name,
        "class_names": source.info.class_names,
        "resolution": config.data.resolution,
        "train_fraction": config.data.train_fraction,
        "sizes": source.info.sizes,
    }
    with atomic.new_folder(out) as folder:
        count = 0
        for name in SPLITS:
            for photos in _groups(source.files(name).as_numpy_iterator(), limit):
                np.savez(
                    folder / f"{count:04d}.npz",
                    meta=json.dumps(meta),
                    split=name,
                    lengths=np.array([len(photo["file"]) for photo in photos]),
                    labels=np.array([photo["label"] for photo in photos], np.int32),
                    files=np.frombuffer(b"".join(photo["file"] for photo in photos), np.uint8),
                )
                count += 1
    print(f"{out}: {count} pieces")


def join(pieces: Path, out: str) -> None:
    """Writes a pack of the pieces in a folder.

    Raises:
        UsageError: if a piece is missing or damaged, or a photo has another size.
    """
    files: dict[str, list[bytes]] = {name: [] for name in SPLITS}
    labels: dict[str, list[int]] = {name: [] for name in SPLITS}
    meta: dict[str, Any] = {}
    for path in sorted(pieces.glob("*.npz")):
        with as_usage_error(*_DAMAGED, flag=str(path)), path.open("rb") as stream, np.load(stream) as piece:
            meta, name = json.loads(str(piece["meta"])), str(piece["split"])
            ends = np.cumsum(piece["lengths"])
            joined = piece["files"].tobytes()
            files[name] += [joined[end - length : end] for end, length in zip(ends, piece["lengths"], strict=True)]
            labels[name] += piece["labels"].tolist()
    found = {name: len(photos) for name, photos in files.items()}
    if not meta or found != meta["sizes"]:
        raise UsageError(f"--join={pieces} holds {found} photos, and the data set has {meta.get('sizes')}: add a piece")
    resolution = meta["resolution"]
    rows: dict[str, Any] = {
        name: _Rows(files[name], np.array(labels[name], np.int32), resolution) for name in SPLITS if files[name]
    }
    source = RowSource(DatasetInfo(meta["name"], tuple(meta["class_names"]), found), rows)
    write_pack(source, out, splits=tuple(rows), resolution=resolution, train_fraction=meta["train_fraction"])


class _Rows:
    def __init__(self, files: list[bytes], labels: np.ndarray, resolution: int):
        self._files, self._labels, self._shape = files, labels, (resolution, resolution, 3)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = [np.asarray(Image.open(io.BytesIO(self._files[i])).convert("RGB")) for i in indices]
        if wrong := next((image.shape for image in images if image.shape != self._shape), None):
            raise UsageError(f"a photo has the shape {wrong}, and the pack {self._shape}: prepare the data set smaller")
        return np.stack(images), self._labels[indices]


def _groups(photos: Iterator[dict[str, Any]], limit: float) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for photo in photos:
        group.append(photo)
        size += len(photo["file"])
        if size >= limit:
            yield group
            group, size = [], 0
    if group:
        yield group
