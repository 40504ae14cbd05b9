"""`colorjax predict`: photo files, folders and films in, colored ones out."""

import argparse
import contextlib
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from colorjax.cli.arguments import CHECKPOINT, Parser, folder, number
from colorjax.cli.errors import UsageError, as_usage_error, discard_stdout, one_line, printable

if TYPE_CHECKING:
    from colorjax.photos.inputs import Job
    from colorjax.photos.keyframes import Keyframe
    from colorjax.photos.pipeline import Look, Result
    from colorjax.photos.points import Point
    from colorjax.photos.predictor import Predictor

DESCRIPTION = """Colors photographs and films, each at its own size, with its own lightness and metadata.

A file that cannot be colored is named, the others go on, and the exit status is 1. What is in --out already is left as
it is, unless --overwrite is given. Films need ffmpeg."""

EXAMPLES = """
colorjax predict old.jpg --out colored
colorjax predict scans/ --recursive --out colored --format png
colorjax predict old.jpg --out colored --point '120,80,#3060a0' --candidates 3
colorjax predict film.mp4 --out colored --checkpoint runs/paper
colorjax predict film.mp4 --out colored --keyframe first.png --keyframe second.png@12.5
colorjax predict - < old.jpg > colored.jpg
"""

_log = logging.getLogger(__name__)
_NAMED = 10  # files that could not be colored, in the last line


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="photo or film, folder, pattern, or - for a photo from a pipe")
    add("--checkpoint", metavar="PATH", help=f"the colorizer: {CHECKPOINT}; by default food101")
    add("--out", type=folder, metavar="DIR", help="folder for the results, which keep the layout of an input folder")
    add("--recursive", action="store_true", help="folders with all that is below them")
    add("--overwrite", action="store_true", help="color again what is in --out already")
    add("--format", choices=("jpeg", "png", "tiff", "webp"), help="of the results; by default each photo's own, or PNG")
    add("--quality", type=number(int, 1, 100), default=95, metavar="1…100", help="of JPEG and WebP")
    add(
        "--uncertainty",
        action="store_true",
        help="beside each photo write NAME.uncertainty.png: black where the network is sure of the color, white where "
        "it has no idea",
    )
    add("--no-provenance", action="store_true", help="do not record in a photo's XMP that a network made the colors")
    add = parser.add_argument_group("the colors").add_argument
    add(
        "--temperature",
        type=number(float, 0, 1),
        metavar="0…1",
        help="0 is vivid and patchy, 1 safe and pale; by default as trained",
    )
    add("--saturation", type=number(float, 0), default=1.0, metavar="S", help="factor of the colorfulness; 0 is gray")
    add("--style", type=Path, metavar="PHOTO", help="color as if the photos were like this one")
    add("--hint", metavar="CLASS", help="color as if the photos showed this class, one that the colorizer knows")
    add(
        "--point",
        type=_point,
        action="append",
        metavar="X,Y,#RRGGBB",
        help="a color at a place of the one photo, in pixels from its left and top; it spreads to what belongs to it; "
        "may be given several times",
    )
    add(
        "--points",
        type=Path,
        metavar="FILE",
        help='the same from a file, [[x, y, "#rrggbb"], …], or of several photos: {"old.jpg": [[x, y, "#rrggbb"], …]}',
    )
    add(
        "--candidates",
        type=number(int, 1, 9),
        default=1,
        metavar="K",
        help="write up to K plausible colorings of each photo, the likeliest as usual and NAME-candidate2, … beside it",
    )
    add(
        "--smoothing",
        type=number(float, 0, 0.99),
        default=0.8,
        metavar="0…0.99",
        help="of a film's colors over time; 0 is none",
    )
    add(
        "--keyframe",
        action="append",
        metavar="FILE[@SECONDS]",
        help="a colored picture of one frame of the one film; it guides the frames that follow, until the next "
        "keyframe or cut; without a time its frame is found by the lightness; may be given several times",
    )
    add = parser.add_argument_group("the work").add_argument
    add(
        "--size",
        type=number(int, 32, 4096, multiple=8),
        metavar="PIXELS",
        help="what the network sees, a multiple of 8; by default as trained",
    )
    add("--batch-size", type=number(int, 1, 1024), default=8, metavar="N", help="photos the network sees at once")


def run(args: argparse.Namespace) -> int:
    """Colors the inputs; the status is 0 if all were colored, 1 if one was not, 130 after Ctrl-C."""
    if "-" in args.inputs and len(args.inputs) > 1:
        raise UsageError("- (a photo from a pipe) does not go with other inputs")
    if args.inputs != ["-"] and args.out is None:
        raise UsageError("--out is missing; give the folder for the results")
    if args.inputs == ["-"] and args.out is not None:
        raise UsageError("--out does not go with -; the result goes to standard output")
    if args.uncertainty and args.out is None:
        raise UsageError("--uncertainty does not go with -; give a file and --out")
    if args.candidates > 1 and args.out is None:
        raise UsageError("--candidates does not go with -; give a file and --out")
    if args.point and args.points:
        raise UsageError("--point does not go with --points; put all points into the file")
    if args.keyframe and args.out is None:
        raise UsageError("--keyframe does not go with -; give a film and --out")
    # Here, so that --help is quick.
    from PIL import Image

    from colorjax import atomic
    from colorjax.photos import keyframes, points
    from colorjax.photos.files import read_photo
    from colorjax.photos.inputs import find_jobs
    from colorjax.photos.pipeline import Look
    from colorjax.photos.predictor import Predictor
    from colorjax.run import compilation
    from colorjax.run.locate import locate

    if args.out is not None:
        atomic.require_writable(args.out)
    with as_usage_error(OSError, ValueError, flag="--style"):
        style = read_photo(args.style).array if args.style else None
    with as_usage_error(ValueError, flag="--point"):
        given = points.checked(args.point or [])
    with as_usage_error(OSError, ValueError, flag="--points"):
        given = points.read(args.points) if args.points else given
    with as_usage_error(OSError, ValueError, flag="--keyframe"):
        accepted = [keyframes.read(text) for text in args.keyframe or []]
    with as_usage_error(FileNotFoundError, ValueError, flag="--checkpoint"):
        checkpoint = locate(args.checkpoint)
    compilation.keep_compiled_programs()
    predictor = Predictor(checkpoint, size=args.size, batch_size=args.batch_size)
    with as_usage_error(ValueError):
        predictor.predict([], style=style, hint=args.hint)  # refuses a style or hint that does not fit
    if args.uncertainty and predictor.config.model.head == "ab":
        raise UsageError("--uncertainty needs probabilities of colors, and this colorizer has none (model.head 'ab')")
    if args.candidates > 1 and predictor.config.model.head == "ab":
        raise UsageError("--candidates needs probabilities of colors, and this colorizer has none (model.head 'ab')")
    look = Look(
        args.temperature,
        args.saturation,
        style,
        args.hint,
        args.smoothing,
        args.quality,
        provenance=not args.no_provenance,
    )
    with _messages_on_stderr(), _signals(), warnings.catch_warnings():
        # Pillow warns at half of read_photo's limit, and at broken metadata, which is left out.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            if args.out is None:
                if isinstance(given, dict):
                    raise UsageError("--points: a photo from a pipe has no name; the file must hold one list of points")
                return _color_pipe(predictor, look, args.format, given)
            options = {"recursive": args.recursive, "format": args.format, "uncertainty": args.uncertainty}
            jobs = list(find_jobs(args.inputs, args.out, **options, candidates=args.candidates))
            jobs = _with_points(jobs, given) if given else jobs
            jobs = _with_keyframes(jobs, accepted) if accepted else jobs
            return _color_files(jobs, predictor, look, args)
        except KeyboardInterrupt:
            _log.warning("interrupted: the files that are written are complete")
            return 130


def _point(text: str) -> "Point":
    from colorjax.photos.points import parse

    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _with_points(
    jobs: "list[Job | OSError | ValueError]", given: "list[Point] | dict[str, list[Point]]"
) -> "list[Job | OSError | ValueError]":
    """The jobs with their points: those of one photo, or those of photos by the end of their paths.

    Raises:
        UsageError: if it is not clear which photo the points belong to, or it is a film.
    """
    jobs = list(jobs)
    found = {i: job.source.absolute().parts for i, job in enumerate(jobs) if not isinstance(job, Exception)}
    if isinstance(given, list):
        if len(found) > 1:
            raise UsageError(
                f"points are for one photo, and there are {len(found)}; give one, or --points with a file that names "
                "the photos"
            )
        of_job = dict.fromkeys(found, given)
    else:
        of_job = {}
        for name, its_points in given.items():
            end = Path(name).parts
            matching = [i for i, parts in found.items() if end and parts[-len(end) :] == end]
            if len(matching) != 1:
                how_many = f"{len(matching)} inputs are" if matching else "no input is"
                raise UsageError(f"--points: {how_many} named {name!r}{'; give more of the path' if matching else ''}")
            of_job[matching[0]] = its_points
    for i, its_points in of_job.items():
        job = jobs[i]
        assert not isinstance(job, Exception)
        if job.is_film:
            raise UsageError(f"{job.source} is a film; points are for photos")
        jobs[i] = replace(job, points=tuple(its_points))
    return jobs


def _with_keyframes(
    jobs: "list[Job | OSError | ValueError]", given: "list[Keyframe]"
) -> "list[Job | OSError | ValueError]":
    """The jobs, of which the one film has the keyframes.

    Raises:
        UsageError: if there are several inputs, or it is a photo.
    """
    found = [job for job in jobs if not isinstance(job, Exception)]
    if len(found) > 1:
        raise UsageError(f"keyframes are for one film, and there are {len(found)} inputs; give the film alone")
    for job in found:
        if not job.is_film:
            raise UsageError(f"{job.source} is a photo; --keyframe is for films, and --point colors a part of a photo")
    return [job if isinstance(job, Exception) else replace(job, keyframes=tuple(given)) for job in jobs]


def _color_pipe(predictor: "Predictor", look: "Look", format: str | None, points: "list[Point]") -> int:
    """Colors the photo on standard input to standard output."""
    from colorjax.photos.files import read_photo, write_photo

    try:
        if sys.stdin is None or sys.stdout is None:
            raise OSError("standard input or standard output is closed")
        photo = read_photo(sys.stdin.buffer.read())
        for note in photo.notes:
            _log.info("the photo: %s", note)
        (prediction,) = predictor.predict([photo.array], style=look.style, hint=look.hint, points=[points])
        provenance = predictor.provenance if look.provenance else None
        options = {"format": format, "quality": look.quality, "provenance": provenance}
        write_photo(look.render(prediction), photo, sys.stdout.buffer, **options)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        discard_stdout()
        _log.error("not colored: standard output was closed")
        return 1
    except (OSError, ValueError) as error:
        _log.error("not colored: %s", one_line(error))
        return 1
    return 0


def _color_files(
    jobs: "list[Job | OSError | ValueError]", predictor: "Predictor", look: "Look", args: argparse.Namespace
) -> int:
    from colorjax.photos.pipeline import color_files

    failed: list[str] = []  # the inputs' names
    todo: list[Job] = []
    skipped: list[Path] = []  # the results that exist
    for job in jobs:
        if isinstance(job, Exception):
            failed.append(str(job).partition(": ")[0])
            _log.error("not colored: %s", one_line(job))
            continue
        results = (job.target, *job.candidates, *filter(None, [job.uncertainty]))
        existing = next(filter(os.path.lexists, results), None)
        if args.overwrite or existing is None:
            todo.append(job)
        elif os.path.realpath(job.target) == os.path.realpath(job.source):
            failed.append(str(job.source))
            _log.error("not colored: %s: --out would write over it; give another folder, or --overwrite", job.source)
        else:
            skipped.append(existing)
    if todo:
        _log.info("coloring %d; the first takes longer, because the network is compiled", len(todo))
    progress = _Progress(len(todo))
    with contextlib.closing(color_files(todo, predictor, look)) as results:
        for result in results:
            if result.error is not None:
                failed.append(str(result.job.source))
            _report(result, debug=args.debug)
            progress.step()
    progress.close()
    colored = sum(str(job.source) not in failed for job in todo)
    _log.info("colored %d of %d in %.1f s", colored, len(jobs), progress.seconds)
    if skipped:
        _log.info("skipped %d that exist, such as %s; --overwrite colors them again", len(skipped), skipped[0])
    if failed:
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        _log.info("not colored, %d: %s%s", len(failed), ", ".join(failed[:_NAMED]), more)
    if colored or skipped:
        _log.info("the results are in %s", args.out)
    return 1 if failed else 0


def _report(result: "Result", *, debug: bool) -> None:
    source = str(result.job.source)
    for note in result.notes:
        _log.info("%s: %s", source, note)
    if result.error is not None:
        message = one_line(result.error)
        if not isinstance(result.error, (OSError, ValueError)):
            message = f"{type(result.error).__name__}: {message}"
        message = message if source in str(result.error) else f"{source}: {message}"
        _log.error("not colored: %s", message, exc_info=result.error if debug else None)


class _Progress:
    """Shows how many are done, how fast, and the time left: one line on a terminal, else a line every five seconds."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr is not None and sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self._start

    def step(self) -> None:
        """Counts one more, colored or not."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown < (0.1 if self._terminal else 5) and self._done < self._total:
            return
        self._shown = now
        speed = self._done / max(now - self._start, 1e-9)
        left = math.ceil((self._total - self._done) / speed)
        line = f"{self._done}/{self._total}, {speed:.2g} photos/s, {left // 60}m{left % 60:02}s left"
        if self._terminal:
            _write_stderr(f"\r\x1b[K{line}")
        elif self._done < self._total:
            _log.info("%s", line)

    def close(self) -> None:
        """Ends the line."""
        if self._terminal and self._done:
            _write_stderr("\n")


class _Lines(logging.Handler):
    """Writes messages above the line of the progress; a standard error that is closed does not stop the work."""

    def emit(self, record: logging.LogRecord) -> None:
        clear = "\r\x1b[K" if sys.stderr is not None and sys.stderr.isatty() else ""
        text = "\n".join(printable(line) for line in self.format(record).splitlines())
        _write_stderr(f"{clear}{text}\n")


def _write_stderr(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


@contextlib.contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Shows colorjax's messages on standard error while the block runs."""
    logger, handler = logging.getLogger("colorjax"), _Lines()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Makes SIGINT and SIGTERM end the block in order, so that the files being written are completed."""

    def interrupted(*_: object) -> None:
        # Only once: a second one would disturb what completes the files.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    def terminated(*_: object) -> None:
        sys.exit(143)

    handlers = {signal.SIGTERM: terminated, signal.SIGINT: interrupted}
    # A shell's background job ignores SIGINT, and continues to.
    replaced = {
        signum: signal.signal(signum, handler)
        for signum, handler in handlers.items()
        if signal.getsignal(signum) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for signum, handler in replaced.items():
            signal.signal(signum, handler)
