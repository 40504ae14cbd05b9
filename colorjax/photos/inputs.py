"""Finds the photos and films that a command's inputs name, and where each result goes."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from colorjax.photos import files, films
from colorjax.photos.keyframes import Keyframe
from colorjax.photos.points import Point

_LONGEST_NAME = 255  # bytes, in nearly all file systems


@dataclass(frozen=True)
class Job:
    """One file to color.

    Attributes:
        source: the photo or film.
        target: where the result goes.
        uncertainty: where a map of the uncertainty goes; None for none, and for a film.
        candidates: where the photo's other candidates go, from the second on; none of a film.
        points: color points of the photo.
        keyframes: of the film.
    """

    source: Path
    target: Path
    uncertainty: Path | None = None
    candidates: tuple[Path, ...] = ()
    points: tuple[Point, ...] = ()
    keyframes: tuple[Keyframe, ...] = ()

    @property
    def is_film(self) -> bool:
        """Whether it is a film, by its suffix."""
        return self.source.suffix.lower() in films.SUFFIXES


def find_jobs(
    inputs: Iterable[str],
    out: Path,
    *,
    recursive: bool = False,
    format: str | None = None,
    uncertainty: bool = False,
    candidates: int = 1,
) -> Iterator[Job | OSError | ValueError]:
    """Yields a job for each file, in the order of the inputs and of the names in them.

    In folders, hidden files and the folder `out` are left out. Links to folders are not followed.
    A file that is found twice has one job. Two results never have the same name, on any file system.

    Args:
        inputs: files, folders and patterns.
        out: the folder for the results, which keep the layout of an input folder.
        recursive: whether folders stand for all that is below them.
        format: jpeg, png, tiff or webp, of the results; by default each photo's own, or PNG.
        uncertainty: whether each photo gets a map of the uncertainty, `NAME.uncertainty.png` beside the result.
        candidates: of each photo; the second and further ones are `NAME-candidate2.…`, … beside the result.

    Yields:
        A job; or an error that names an input or file that has none.
    """
    taken: set[str] = set()
    seen: set[str] = set()
    for given in inputs:
        try:
            roots = _matching(given)
        except (OSError, ValueError, NotImplementedError) as error:
            yield ValueError(f"{given}: {error}")
            continue
        if not roots:
            yield FileNotFoundError(f"{given}: no such file, folder or pattern")
        for root in roots:
            is_folder = os.path.isdir(root)  # noqa: PTH112 (Path's raises for a loop of links, or a name too long)
            found = list(_listed(root, out, recursive=recursive)) if is_folder else [root]
            if not found:
                yield ValueError(f"{root}: no photo in this folder{'' if recursive else ' (--recursive?)'}")
            for file in found:
                if isinstance(file, OSError):
                    yield OSError(f"{file.filename}: {file.strerror}")
                elif (real := os.path.realpath(file)) not in seen:
                    seen.add(real)
                    if error := _not_a_file(file):
                        yield error
                    else:
                        relative = file.relative_to(root) if is_folder else Path(file.name)
                        job = Job(file, _unused(out / _renamed(relative, format), taken))
                        if uncertainty and not job.is_film:
                            name = f"{job.target.name}.uncertainty.png"
                            job = replace(job, uncertainty=_unused(job.target.with_name(name), taken))
                        if not job.is_film:
                            names = (f"{job.target.stem}-candidate{i}" for i in range(2, candidates + 1))
                            others = (_unused(job.target.with_stem(name), taken) for name in names)
                            job = replace(job, candidates=tuple(others))
                        yield job


def _matching(given: str) -> list[Path]:
    """The path itself, or the paths that it matches as a pattern."""
    path = Path(given)
    if os.path.lexists(path):
        return [path]
    root = Path(path.anchor)
    matching = root.glob(str(path.relative_to(path.anchor))) if any(c in given for c in "*?[") else ()
    named = path.parts  # a hidden file or folder that is named is meant
    return sorted(m for m in matching if not any(part.startswith(".") and part not in named for part in m.parts))


def _listed(root: Path, out: Path, *, recursive: bool) -> Iterator[Path | OSError]:
    """The photos and films in a folder, and an error for each folder that cannot be read."""
    suffixes = (*files.READABLE_SUFFIXES, *films.SUFFIXES)
    errors: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=errors.append):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        # What an earlier run wrote below its own input is not colored again.
        folders[:] = [name for name in folders if not _is_same(Path(folder, name), out)]
        yield from errors
        errors.clear()
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield Path(folder, name)
    yield from errors


def _is_same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _not_a_file(path: Path) -> OSError | None:
    """Why it cannot be opened as a file; opening a named pipe, for example, would wait forever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:  # a link to nothing or to itself
        return OSError(f"{path}: {error.strerror}")
    return None if stat.S_ISREG(mode) else OSError(f"{path}: not a file; for a photo from a pipe give -")


def _renamed(path: Path, format: str | None) -> Path:
    suffix = path.suffix.lower()
    if suffix in films.SUFFIXES:
        return path
    if format is None:
        return path if suffix in files.SUFFIXES else path.with_suffix(".png")
    if files.SUFFIXES.get(suffix) == format.upper():
        return path
    return path.with_suffix(next(s for s, name in files.SUFFIXES.items() if name == format.upper()))


def _unused(target: Path, taken: set[str]) -> Path:
    """The target, or the first of target-2, target-3… that no other input has taken; shortened if it is too long."""
    number = 1
    while True:
        end = ("" if number == 1 else f"-{number}") + target.suffix
        stem = target.stem
        while len(os.fsencode(stem + end)) > _LONGEST_NAME:
            stem = stem[:-1]
        candidate = target.with_name(stem + end)
        if str(candidate).casefold() not in taken:
            taken.add(str(candidate).casefold())
            return candidate
        number += 1
