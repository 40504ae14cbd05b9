"""The photos in a folder, by split and class."""

import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Photo:
    """A file with a photo's name.

    Attributes:
        name: its path, as the file system spells it.
        file: the path to read; empty, which does not read, if it is no file: a dangling link, a folder, a pipe.
    """

    name: bytes
    file: bytes


Classes = dict[str, list[Photo]]
"""Photos by class name."""


def list_folder(directory: str, *, train_fraction: float) -> tuple[str, dict[str, Classes]]:
    """The name of a folder, and its JPEG and PNG files by split and class.

    Two layouts are read: `directory/split/class/photo.jpg`, where `train` is required and `test`, `validation` or
    `val` may stand beside it; and `directory/class/photo.jpg`. What a layout lacks is cut from its training photos
    class by class, in the order of their names' checksums, which neither the machine nor a moved folder changes: the
    test split takes the last 20 %, then the validation split the last 1 - `train_fraction` of what remains. A single
    official `validation` or `val` is the test split, as Food-101's is.

    Args:
        directory: the folder.
        train_fraction: share of the training photos that trains; the rest validates.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no photo in either layout, or too few for three splits; if a folder in it cannot be
            listed, or a class is not named in UTF-8.
    """
    root = Path(directory).expanduser().resolve()
    if not directory or not root.is_dir():
        raise FileNotFoundError(
            f"config.data.dir={directory!r} is no folder: give one that holds class/photo.jpg or split/class/photo.jpg"
        )
    try:
        splits = _splits(root, train_fraction=train_fraction)
    except OSError as error:
        raise ValueError(
            f"config.data.dir={directory!r}: {error.filename} cannot be listed: {error.strerror}"
        ) from error
    for split, classes in splits.items():
        if not any(classes.values()):
            raise ValueError(
                f"config.data.dir={directory!r}: no photo for the {split!r} split. The folder "
                f"must hold class/photo or train/class/photo and test/class/photo with files "
                f"named {', '.join(_SUFFIXES)}, several to a class"
            )
    return root.name, splits


def _splits(root: Path, *, train_fraction: float) -> dict[str, Classes]:
    official = {
        name: _photos_by_class(root / name) for name in ("train", "test", "validation", "val") if (root / name).is_dir()
    }
    if not any(official.get("train", {}).values()):
        official = {"train": _photos_by_class(root)}
    train = official["train"]
    held_out = [official[name] for name in ("test", "validation", "val") if name in official]
    if held_out:
        test = held_out[0]
    else:
        train, test = _cut(train, 0.8)
    if len(held_out) > 1:
        validation = held_out[1]
    else:
        train, validation = _cut(train, train_fraction)
    return {"train": train, "validation": validation, "test": test}


def _photos_by_class(root: Path) -> Classes:
    classes: Classes = {}
    for folder in sorted(root.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            photos = {
                entry.name: Photo(os.fsencode(entry.path), os.fsencode(entry.path) if _is_file(entry) else b"")
                for entry in entries
                if entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".")
            }
        if not photos:
            continue
        if os.fsencode(folder.name) != folder.name.encode(errors="replace"):
            raise ValueError(f"the class folder {os.fsencode(folder)!r} is not named in UTF-8: rename it")
        classes[folder.name] = [photos[name] for name in sorted(photos, key=_checksum_order)]
    return classes


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISREG(entry.stat().st_mode) if entry.is_symlink() else entry.is_file()
    except OSError:  # a link that leads nowhere
        return False


def _checksum_order(name: str) -> tuple[int, str]:
    return zlib.crc32(os.fsencode(name)), name


def _cut(classes: Classes, fraction: float) -> tuple[Classes, Classes]:
    """The first `fraction` of every class, and the rest."""
    first, rest = {}, {}
    for name, photos in classes.items():
        cut = round(fraction * len(photos))
        first[name], rest[name] = photos[:cut], photos[cut:]
    return first, rest
