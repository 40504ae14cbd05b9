"""Films: frame by frame through ffmpeg, with colors that do not flicker."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from colorjax import atomic
from colorjax.photos.keyframes import Guidance, Keyframe, find
from colorjax.photos.predictor import Prediction, Predictor

_log = logging.getLogger(__name__)

_CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}  # ffmpeg's names

SUFFIXES = tuple(_CONTAINERS)
"""Of the files that are taken for films."""

_CUT = 12.0  # of L: a larger mean change between two frames is a cut
_MOVED = 8.0  # of L: a larger change at a place is something that moves
_H264 = ("-c:v", "libx264", "-crf", "18", "-preset", "medium", "-pix_fmt", "yuv420p")
_VP9 = ("-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0", "-pix_fmt", "yuv420p")


class Smoother:
    """The exponential moving average of the color over a film's frames, at each place.

    Where the lightness changes, something moves, and the new color is taken at once; at a cut, everywhere.
    """

    def __init__(self, keep: float = 0.8):
        """Args:
        keep: the weight of the average until now where nothing moves: 0 (no smoothing) or more, below 1.

        Raises:
            ValueError: if it is out of this range.
        """
        if not 0 <= keep < 1:
            raise ValueError(f"smoothing is {keep}; it must be 0 or more, and below 1")
        self._keep = keep
        self._ab = self._guide = None

    def __call__(self, ab: np.ndarray, guide: np.ndarray) -> np.ndarray:
        """The next frame's colors.

        Args:
            ab: float32 [h, w, 2], of the frame alone.
            guide: float32 [h, w], its L.

        Returns:
            float32 [h, w, 2], smoothed.
        """
        if self._ab is not None and self._guide is not None and not is_cut(self._guide, guide):
            keep = self._keep * np.exp(-np.square((guide - self._guide) / _MOVED))[..., None]
            ab = (keep * self._ab + (1 - keep) * ab).astype(np.float32)
        self._ab, self._guide = ab, guide
        return ab

    def restart(self) -> None:
        """Forgets the frames until now."""
        self._ab = self._guide = None


def is_cut(guide: np.ndarray, following: np.ndarray) -> bool:
    """Whether the film is cut between two frames, by their L: float32 [h, w] each."""
    return bool(np.abs(following - guide).mean() >= _CUT)


def color_frames(
    frames: Generator[np.ndarray],
    predictor: Predictor,
    *,
    temperature: float | None = None,
    saturation: float = 1.0,
    style: np.ndarray | None = None,
    hint: str | None = None,
    smoothing: float = 0.8,
    keyframes: Mapping[int, Keyframe] | None = None,
) -> Generator[list[Prediction]]:
    """Colors a film's frames, and yields them in batches.

    Args:
        frames: uint8 [H, W, 3] each; closed at the end.
        predictor: the colorizer.
        temperature, saturation, style, hint: as in `Predictor.colorize`. Saturation does not change what keyframes add.
        smoothing: as in `Smoother`, which starts anew at a keyframe.
        keyframes: by the number of their frame, from 0. Each guides its frame and those that follow, until the next
            keyframe or the next cut.

    Yields:
        Predictions whose `color` is the frames' ab, ready to render.
    """
    smoother = Smoother(smoothing)
    guidance: Guidance | None = None
    before: np.ndarray | None = None
    number = 0
    for batch in _batches(frames, predictor.batch_size):
        colored: list[Prediction] = []
        for prediction in predictor.predict(batch, style=style, hint=hint):
            ab = np.float32(saturation) * prediction.ab(temperature=temperature)
            if keyframes and number in keyframes:
                guidance = Guidance(keyframes[number], prediction, ab)
                smoother.restart()
            elif guidance and before is not None:
                if is_cut(before, prediction.guide):
                    guidance = None
                else:
                    guidance.follow(prediction.photo)
            if guidance:
                ab = ab + guidance(prediction)
            before = prediction.guide
            colored.append(replace(prediction, color=smoother(ab, before), saturation=1.0))
            number += 1
        yield colored


def colorize_video(
    source: Path,
    target: Path,
    predictor: Predictor,
    *,
    temperature: float | None = None,
    saturation: float = 1.0,
    style: np.ndarray | None = None,
    hint: str | None = None,
    smoothing: float = 0.8,
    keyframes: Sequence[Keyframe] = (),
) -> int:
    """Colors a film. Its sound, frame rate and size stay; an odd size is padded to an even one for H.264.

    Args:
        source: any file that ffmpeg reads. It may open this file only: no other file, and no address.
        target: .mp4, .mov or .mkv (H.264) or .webm (VP9), 8 bits; replaced only once it is complete.
        predictor: the colorizer.
        temperature, saturation, style, hint: as in `Predictor.colorize`.
        smoothing: as in `Smoother`.
        keyframes: colored pictures of some frames, in any order. Each guides the frames that follow, until the next
            keyframe or the next cut. The film is then read twice.

    Returns:
        The number of frames.

    Raises:
        FileNotFoundError: if ffmpeg is not installed.
        ValueError: if ffmpeg cannot read or write the film, which quotes ffmpeg; or a keyframe does not belong to it.
    """
    if not shutil.which("ffmpeg") or not shutil.which("ffprobe"):
        raise FileNotFoundError("films need ffmpeg and ffprobe: install ffmpeg")
    rate, sample_aspect = _probe(source)
    shown: dict[int, Keyframe] = {}
    if keyframes:
        per_second = float(Fraction(rate))
        with contextlib.closing(_frames(source, rate)) as all_frames:
            shown = find(keyframes, all_frames, rate=per_second, film=source.name)
        for number, keyframe in sorted(shown.items()):
            _log.info("%s: %s guides it from %.2f s", source, keyframe.name, number / per_second)
    options: dict[str, Any] = {"temperature": temperature, "saturation": saturation, "style": style, "hint": hint}
    options |= {"smoothing": smoothing, "keyframes": shown}
    frames = 0
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic.replacing(target))
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        encoder: _Encoder | None = None
        batches = color_frames(_frames(source, rate), predictor, **options)
        for batch in stack.enter_context(contextlib.closing(batches)):
            if encoder is None:
                height, width = batch[0].photo.shape[:2]
                suffix = target.suffix.lower()
                encoder = stack.enter_context(_Encoder(source, temporary, suffix, height, width, rate, sample_aspect))
            for rgb in pool.map(lambda p: p.render(), batch):
                encoder.write(rgb)
            frames += len(batch)
        if encoder is None:
            raise ValueError(f"{source}: ffmpeg finds no frame in it")
        encoder.finish()
    return frames


def _probe(source: Path) -> tuple[str, str]:
    """Frame rate and the pixels' aspect ratio, as ffmpeg writes them: "30000/1001", "1/1"."""
    command = ["ffprobe", "-v", "error", *_confined(source), "-select_streams", "v:0", "-show_streams", "-of", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    streams = json.loads(done.stdout or "{}").get("streams", [])
    if done.returncode or not streams:
        raise ValueError(f"{source}: not a film that ffmpeg can read ({_last_line(done.stderr) or 'no video stream'})")
    stream: dict[str, Any] = streams[0]
    rate = next((r for r in (stream.get("avg_frame_rate"), stream.get("r_frame_rate")) if r and r[:2] != "0/"), "25/1")
    aspect = stream.get("sample_aspect_ratio", "1:1").replace(":", "/")
    return rate, aspect if aspect[:2] != "0/" else "1/1"


def _frames(source: Path, rate: str) -> Generator[np.ndarray]:
    """The frames, uint8 [H, W, 3], upright, at a constant rate, so that the sound stays with them."""
    command = ["ffmpeg", "-nostdin", "-v", "error", *_confined(source), "-map", "0:v:0", "-r", rate]
    command += ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL) as process,
    ):
        assert process.stdout is not None
        try:
            # Each frame has its own size, since ffmpeg turns a picture upright.
            while process.stdout.readline() == b"P6\n":
                width, height = map(int, process.stdout.readline().split())
                process.stdout.readline()
                data = process.stdout.read(width * height * 3)
                if len(data) == width * height * 3:
                    yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            if process.wait():
                raise ValueError(f"{source}: ffmpeg stopped reading it ({_message(errors)})")
        finally:
            process.kill()


class _Encoder:
    """Runs ffmpeg to write a film from frames, with the sound of another file."""

    def __init__(self, source: Path, target: Path, suffix: str, height: int, width: int, rate: str, sample_aspect: str):
        codec = _VP9 if suffix == ".webm" else _H264
        filters = f"pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709:out_range=tv,setsar={sample_aspect}"
        command = ["ffmpeg", "-nostdin", "-v", "error", "-y"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "pipe:0"]
        command += [*_confined(source), "-map", "0:v", "-map", "1:a?", "-map_metadata", "1", "-c:a", "copy"]
        command += ["-vf", filters, *codec, "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
        command += ["-f", _CONTAINERS[suffix], f"file:{target}"]
        self._shape = (height, width, 3)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._stderr)

    def __enter__(self) -> "_Encoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._stderr.close()

    def write(self, rgb: np.ndarray) -> None:
        """Adds a frame, uint8 [H, W, 3].

        Raises:
            ValueError: if its size is not the first frame's, or ffmpeg has failed.
        """
        if rgb.shape != self._shape:
            raise ValueError(f"the film changes its size, from {self._shape[:2]} to {rgb.shape[:2]}")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(rgb.tobytes())
        except BrokenPipeError:
            self.finish()

    def finish(self) -> None:
        """Waits until the file is complete.

        Raises:
            ValueError: if ffmpeg failed.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait():
            raise ValueError(f"ffmpeg cannot write the film ({_message(self._stderr)})")


def _confined(source: Path) -> list[str]:
    # A film may be a play list of other files and addresses.
    return ["-protocol_whitelist", "file,pipe", "-i", f"file:{source}"]


def _batches(frames: Generator[np.ndarray], size: int) -> Generator[list[np.ndarray]]:
    with contextlib.closing(frames):
        batch = []
        for frame in frames:
            batch.append(frame)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch


def _message(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    return _last_line(stderr.read().decode(errors="replace")) or "without a message"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""
