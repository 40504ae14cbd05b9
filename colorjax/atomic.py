"""Files and folders that appear whole or not at all, whatever happens while they are written."""

import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = ".partial-"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name `path` when the block ends without an error.

    The temporary name does not depend on `path`, so that the longest name that a file system allows can be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file in place of what is there."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Writes a UTF-8 text file in place of what is there."""
    write_bytes(path, content.encode())


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; it takes the name `path` when the block ends without an error.

    What a killed run left of the same folder is removed first.

    Raises:
        FileExistsError: if `path` is a file, or a folder that holds something.
    """
    path = Path(path).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} holds something already: choose another folder, or delete it")
    # The same name for the same folder, so that the next run finds it; short, since file systems limit names.
    temporary = path.with_name(f"{_PREFIX}{zlib.crc32(os.fsencode(path.name)):08x}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Refuses a folder in which nothing can be written, before the work that would be lost; it may not exist yet.

    Raises:
        PermissionError: if its disk is read-only, or permissions forbid it.
    """
    folder = Path(folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if existing.is_dir() and not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{existing} cannot be written to, since its disk is read-only or permissions forbid it; choose another "
            "folder"
        )


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files and folders that killed runs left in a folder that nothing else writes to."""
    for path in folder.glob(f"{_PREFIX}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
