"""Colors many files: decoding, the network and writing run at the same time."""

import math
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from colorjax.photos import films, resample
from colorjax.photos.files import Photo, read_photo, read_size, write_photo
from colorjax.photos.inputs import Job
from colorjax.photos.predictor import Prediction, Predictor
from colorjax.photos.provenance import Provenance

_IN_FLIGHT = 50_000_000
"""Pixels of the photos that are in memory at once, between decoding and writing; a larger photo comes alone."""


@dataclass(frozen=True)
class Look:
    """How to color and to write.

    Attributes:
        temperature, saturation, style, hint: as in `Predictor.colorize`.
        smoothing: of a film's colors, as in `films.Smoother`.
        quality: 1…100, of JPEG and WebP.
        provenance: whether a photo's XMP records that the colorizer made its colors.
    """

    temperature: float | None = None
    saturation: float = 1.0
    style: np.ndarray | None = None
    hint: str | None = None
    smoothing: float = 0.8
    quality: int = 95
    provenance: bool = True

    def render(self, prediction: Prediction) -> np.ndarray:
        """The color photo: [H, W, 3] of the photo's dtype."""
        return prediction.render(temperature=self.temperature, saturation=self.saturation)


@dataclass(frozen=True)
class Result:
    """The outcome for one file.

    Attributes:
        job: the file.
        error: why it was not colored; None if it was.
        notes: sentences about what was not kept, and about a film.
    """

    job: Job
    error: BaseException | None = None
    notes: tuple[str, ...] = ()


def color_files(jobs: Sequence[Job], predictor: Predictor, look: Look) -> Generator[Result]:
    """Colors photos, then films, and yields a result for each. An error with one file does not stop the others.

    Closing the generator completes the files that are being written, and starts no others.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from _color_photos(deque(job for job in jobs if not job.is_film), predictor, look, pool)
    finally:
        pool.shutdown(cancel_futures=True)
    for job in jobs:
        if job.is_film:
            yield _color_film(job, predictor, look)


def _color_photos(waiting: deque[Job], predictor: Predictor, look: Look, pool: ThreadPoolExecutor) -> Iterator[Result]:
    decoding: deque[tuple[Job, int, Future[Photo]]] = deque()
    writing: deque[tuple[Job, int, tuple[str, ...], Future[None]]] = deque()
    in_flight = 0
    provenance = predictor.provenance if look.provenance and waiting else None
    while waiting or decoding or writing:
        while waiting and len(decoding) < 2 * predictor.batch_size:
            try:
                pixels = math.prod(read_size(waiting[0].source))
            except (OSError, ValueError) as error:
                yield Result(waiting.popleft(), error)
                continue
            if in_flight and in_flight + pixels > _IN_FLIGHT:
                break
            job = waiting.popleft()
            decoding.append((job, pixels, pool.submit(read_photo, job.source)))
            in_flight += pixels
        batch: list[tuple[Job, int, Photo]] = []
        while decoding and len(batch) < predictor.batch_size:
            job, pixels, decoded = decoding.popleft()
            try:
                batch.append((job, pixels, decoded.result()))
            except (OSError, ValueError) as error:
                in_flight -= pixels
                yield Result(job, error)
            del decoded  # and with it the photo
        if batch:
            try:
                arrays = [photo.array for _, _, photo in batch]
                predictions = predictor.predict(arrays, style=look.style, hint=look.hint)
            except ValueError as error:
                in_flight -= sum(pixels for _, pixels, _ in batch)
                yield from (Result(job, error) for job, _, _ in batch)
            else:
                for (job, pixels, photo), prediction in zip(batch, predictions, strict=True):
                    writing.append(
                        (job, pixels, photo.notes, pool.submit(_write, job, photo, prediction, look, provenance))
                    )
                del predictions, photo, prediction
            del arrays
        del batch
        # At least one, if there is no room for the next photo or nothing else to do.
        while writing and (writing[0][3].done() or not decoding):
            job, pixels, notes, written = writing.popleft()
            in_flight -= pixels
            yield Result(job, written.exception(), notes)


def _write(job: Job, photo: Photo, prediction: Prediction, look: Look, provenance: Provenance | None) -> None:
    if job.points:
        prediction = prediction.with_points(job.points)
    rgb = look.render(prediction)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    write_photo(rgb, photo, job.target, quality=look.quality, provenance=provenance)
    if job.candidates:
        others = prediction.candidates(1 + len(job.candidates))[1:]
        for target, other in zip(job.candidates, others, strict=False):  # fewer if the network is sure
            write_photo(look.render(other), photo, target, quality=look.quality, provenance=provenance)
    if job.uncertainty is not None:
        values = resample.enlarged(prediction.uncertainty(), *rgb.shape[:2])
        gray = np.round(255 * values).astype(np.uint8)
        write_photo(np.dstack([gray] * 3), Photo(gray), job.uncertainty)


def _color_film(job: Job, predictor: Predictor, look: Look) -> Result:
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        frames = films.colorize_video(
            job.source,
            job.target,
            predictor,
            temperature=look.temperature,
            saturation=look.saturation,
            style=look.style,
            hint=look.hint,
            smoothing=look.smoothing,
            keyframes=job.keyframes,
        )
    except (OSError, ValueError) as error:
        return Result(job, error)
    return Result(job, notes=(f"{frames} frames",))
