"""`python -m colorjax predict`: photo files, folders and films in, colored ones out."""

import argparse
import contextlib
import glob
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from colorjax.photos import files, films
from colorjax.photos.files import Photo, read_photo, read_size, write_photo
from colorjax.photos.predictor import Prediction, Predictor
from colorjax.run import compilation

_log = logging.getLogger(__name__)

_IN_FLIGHT = 50_000_000
"""Pixels of the photos that are in memory at once, between decoding and writing; a larger photo comes alone."""

_EPILOG = """examples:
  python -m colorjax predict old.jpg --out colored --checkpoint runs/paper
  python -m colorjax predict scans/ --recursive --out colored --checkpoint runs/paper --format png
  python -m colorjax predict - --checkpoint runs/paper < old.jpg > colored.jpg

A file that cannot be colored is named, the others go on, and the exit status is 1. What is in --out already is left
as it is and skipped, unless --overwrite is given."""


@dataclass(frozen=True)
class Job:
    """One file to color.

    Attributes:
        source: the file.
        target: where the result goes.
    """

    source: Path
    target: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line, and exits: 0 if all was colored, 1 if a file was not, 2 for wrong arguments."""
    compilation.keep_compiled_programs()
    parser = _parser()
    args = parser.parse_args(argv)
    piped = args.inputs == ["-"]
    if "-" in args.inputs and not piped:
        parser.error("- (a photo from the standard input) goes without other inputs")
    if not piped and args.out is None:
        parser.error("--out is missing: the folder for the colored files")
    try:
        predictor = Predictor(args.checkpoint, size=args.size, batch_size=args.batch_size)
        wanted: dict[str, Any] = {"hint": args.hint, "style": None}
        if args.hint is not None:
            predictor.class_number(args.hint)
        if args.style is not None:
            wanted["style"] = read_photo(args.style).array
    except (OSError, ValueError) as error:
        parser.error(str(error))
    with _to_stderr(), warnings.catch_warnings():
        # read_photo has its limit; Pillow warns at half of it.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        run = _Run(predictor, args, wanted)
        try:
            failed = run.pipe() if piped else run.files(list(_jobs(args)))
        except KeyboardInterrupt:
            _log.warning("interrupted: what is written is complete")
            sys.exit(130)
    sys.exit(1 if failed else 0)


def _interrupted(*_: object) -> None:
    # Once is enough: the next would only disturb what completes the files.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _terminated(*_: object) -> None:
    sys.exit(143)


@contextlib.contextmanager
def _to_stderr() -> Iterator[None]:
    """What colorjax says on the standard error alone; and Ctrl-C and SIGTERM as an orderly end."""
    logger, handler = logging.getLogger("colorjax"), _Lines()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers = {signal.SIGTERM: _terminated, signal.SIGINT: _interrupted}
    # A shell's background job ignores SIGINT, and goes on to.
    wanted = {number: new for number, new in handlers.items() if signal.getsignal(number) != signal.SIG_IGN}
    replaced = {number: signal.signal(number, new) for number, new in wanted.items()}
    try:
        yield
    finally:
        for number, old in replaced.items():
            signal.signal(number, old)
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _Lines(logging.Handler):
    """Writes messages above the line of the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{clear}{self.format(record)}", file=sys.stderr)


class _Run:
    """What the command does with files, given a colorizer."""

    def __init__(self, predictor: Predictor, args: argparse.Namespace, wanted: dict[str, Any]):
        self._predictor, self._args, self._wanted = predictor, args, wanted
        self._failed = 0

    def pipe(self) -> int:
        """The standard input's photo to the standard output; the number that failed."""
        try:
            photo = read_photo(sys.stdin.buffer.read())
            self._note("the photo", photo)
            (prediction,) = self._predictor.predict([photo.array], **self._wanted)
            write_photo(
                self._rendered(prediction),
                photo,
                sys.stdout.buffer,
                format=self._args.format,
                quality=self._args.quality,
            )
        except ValueError as error:
            self._fail(error)
        return self._failed

    def files(self, jobs: Sequence[Job | ValueError]) -> int:
        """All files; the number that failed."""
        todo = []
        for job in jobs:
            if isinstance(job, ValueError):
                self._fail(job)
            elif job.target.exists() and not self._args.overwrite:
                if job.target.samefile(job.source):
                    self._fail(f"{job.source}: --out would write over it; give another folder, or --overwrite")
                else:
                    _log.info("%s: skipped, since %s is there (--overwrite colors it again)", job.source, job.target)
            else:
                todo.append(job)
        progress = _Progress(len(todo))
        photos = [job for job in todo if job.source.suffix.lower() not in films.SUFFIXES]
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            self._photos(photos, pool, progress)
        finally:
            # After Ctrl-C: what is being written is completed, what waits is not begun.
            pool.shutdown(cancel_futures=True)
        for job in todo:
            if job.source.suffix.lower() in films.SUFFIXES:
                self._film(job)
                progress.done()
        progress.close(self._failed)
        return self._failed

    def _photos(self, jobs: list[Job], pool: ThreadPoolExecutor, progress: "_Progress") -> None:
        """Decodes ahead, runs the network on what is decoded, and writes, all at once, within `_IN_FLIGHT` pixels."""
        waiting = deque(jobs)
        decoding: deque[tuple[Job, int, Future[Photo]]] = deque()
        writing: deque[tuple[Job, int, Future[None]]] = deque()
        in_flight = 0
        batch_size = self._predictor.batch_size
        while waiting or decoding or writing:
            while waiting and len(decoding) < 2 * batch_size:
                try:
                    pixels = math.prod(read_size(waiting[0].source))
                except (OSError, ValueError) as error:
                    waiting.popleft()
                    self._fail(error)
                    progress.done()
                    continue
                if in_flight and in_flight + pixels > _IN_FLIGHT:
                    break
                job = waiting.popleft()
                decoding.append((job, pixels, pool.submit(read_photo, job.source)))
                in_flight += pixels
            batch: list[tuple[Job, int, Photo]] = []
            while decoding and len(batch) < batch_size:
                job, pixels, decoded = decoding.popleft()
                try:
                    batch.append((job, pixels, decoded.result()))
                    self._note(str(job.source), batch[-1][2])
                except (OSError, ValueError) as error:
                    in_flight -= pixels
                    self._fail(error)
                    progress.done()
                del decoded
            if batch:
                predictions = self._predictor.predict([photo.array for _, _, photo in batch], **self._wanted)
                for (job, pixels, photo), prediction in zip(batch, predictions, strict=True):
                    writing.append((job, pixels, pool.submit(self._write, job, photo, prediction)))
                del batch, predictions, photo, prediction
            # One at least, if there is no room for the next photo or nothing else to do.
            while writing and (writing[0][2].done() or not decoding):
                job, pixels, written = writing.popleft()
                in_flight -= pixels
                try:
                    written.result()
                except (OSError, ValueError) as error:
                    self._fail(f"{job.source}: {error}")
                progress.done()

    def _write(self, job: Job, photo: Photo, prediction: Prediction) -> None:
        rgb = self._rendered(prediction)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_photo(rgb, photo, job.target, quality=self._args.quality)

    def _film(self, job: Job) -> None:
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            frames = films.colorize_video(
                job.source,
                job.target,
                self._predictor,
                temperature=self._args.temperature,
                saturation=self._args.saturation,
                smoothing=self._args.smoothing,
                **self._wanted,
            )
            _log.info("%s: %d frames", job.source, frames)
        except (OSError, ValueError) as error:
            self._fail(f"{job.source}: {error}" if str(job.source) not in str(error) else error)

    def _rendered(self, prediction: Prediction) -> np.ndarray:
        return prediction.render(temperature=self._args.temperature, saturation=self._args.saturation)

    def _note(self, name: str, photo: Photo) -> None:
        for note in photo.notes:
            _log.info("%s: %s", name, note)

    def _fail(self, message: object) -> None:
        self._failed += 1
        _log.error("not colored: %s", message)


class _Progress:
    """How many are done, how fast, how long the rest will take: one line on a terminal, else a line in five seconds."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def done(self) -> None:
        """One more, colored or not."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown < (0.1 if self._terminal else 5) and self._done < self._total:
            return
        self._shown = now
        speed = self._done / max(now - self._start, 1e-9)
        left = round((self._total - self._done) / speed)
        line = f"{self._done}/{self._total}, {speed:.2g} photos/s, {left // 60}m{left % 60:02}s left"
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        else:
            _log.info("%s", line)

    def close(self, failed: int) -> None:
        """Says how it ended."""
        if self._terminal and self._done:
            sys.stderr.write("\n")
        _log.info("done in %.1f s, %d not colored", time.monotonic() - self._start, failed)


def _jobs(args: argparse.Namespace) -> Iterator[Job | ValueError]:
    """A job a file, in the order of the inputs and of the names in them; an error for an input that has none."""
    out = args.out.resolve()
    taken: set[str] = set()
    seen: set[Path] = set()
    for given in args.inputs:
        path = Path(given)
        # pathlib's glob takes no absolute pattern.
        paths = [path] if path.exists() else sorted(map(Path, glob.glob(given, recursive=True)))  # noqa: PTH207
        if not paths:
            yield ValueError(f"{given}: no such file, folder or pattern")
        for root in paths:
            files = list(_listed(root, out, args.recursive)) if root.is_dir() else [root]
            if not files:
                yield ValueError(f"{root}: no photo in this folder{'' if args.recursive else ' (--recursive?)'}")
            for file in files:
                if file.resolve() in seen:
                    continue
                seen.add(file.resolve())
                relative = file.relative_to(root) if root.is_dir() else Path(file.name)
                yield Job(file, _free(out / _renamed(relative, args.format), taken))


def _listed(root: Path, out: Path, recursive: bool) -> Iterable[Path]:
    suffixes = (*files.READABLE_SUFFIXES, *films.SUFFIXES)
    for path in sorted(root.rglob("*") if recursive else root.iterdir()):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        # What an earlier run wrote below its own input is not colored again.
        inside_out = root.resolve() != out and path.resolve().is_relative_to(out)
        if path.suffix.lower() in suffixes and path.is_file() and not hidden and not inside_out:
            yield path


def _renamed(path: Path, format: str | None) -> Path:
    suffix = path.suffix.lower()
    if suffix in films.SUFFIXES:
        return path
    if format is None:
        return path if suffix in files.SUFFIXES else path.with_suffix(".png")
    wanted = format.upper()
    if files.SUFFIXES.get(suffix) == wanted:
        return path
    return path.with_suffix(next(s for s, name in files.SUFFIXES.items() if name == wanted))


def _free(target: Path, taken: set[str]) -> Path:
    """The target, or the first of target-2, target-3… that no other input has taken."""
    candidate, number = target, 2
    while str(candidate).casefold() in taken:
        candidate, number = target.with_stem(f"{target.stem}-{number}"), number + 1
    taken.add(str(candidate).casefold())
    return candidate


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m colorjax predict",
        description="Colors photographs and films: each at its own size, with its own lightness, and its metadata.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="photo or film, folder, pattern, or - for a photo from a pipe")
    add("--checkpoint", required=True, metavar="PATH", help="the colorizer: the --workdir of train.py")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the results, made if missing; below it the folders' own layout",
    )
    add("--recursive", action="store_true", help="folders with all that is below them")
    add("--overwrite", action="store_true", help="color again what is in --out already")
    add(
        "--format",
        choices=("jpeg", "png", "tiff", "webp"),
        help="of the results; by default each photo's own, else PNG",
    )
    add("--quality", type=_number(int, 1, 100), default=95, metavar="1…100", help="of JPEG and WebP (%(default)s)")
    look = parser.add_argument_group("the colors")
    add = look.add_argument
    number = _number(float, 0, math.inf)
    add("--temperature", type=number, metavar="T", help="0 vivid and patchy, 1 safe and pale; by default as trained")
    add("--saturation", type=number, default=1.0, metavar="S", help="factor of the colorfulness (%(default)s)")
    add("--style", type=Path, metavar="PHOTO", help="color as if the photos were like this one")
    add("--hint", metavar="CLASS", help="color as if the photos showed this class, of those it was trained on")
    add(
        "--smoothing",
        type=_number(float, 0, 0.99),
        default=0.8,
        metavar="0…0.99",
        help="of a film's colors (%(default)s)",
    )
    work = parser.add_argument_group("the work")
    add = work.add_argument
    add("--size", type=int, metavar="PIXELS", help="what the network sees, a multiple of 8; by default as trained")
    add("--batch-size", type=int, default=8, metavar="N", help="photos the network sees at once (%(default)s)")
    return parser


def _number(kind: type, least: float, most: float) -> Any:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text!r} is no number of {least}…{most}")
        return value

    return parse
