"""Reads photo files as sRGB of 8 or 16 bits, and writes JPEG, PNG, TIFF and WebP with their metadata.

No file is trusted: every error of a decoder becomes a ValueError that names the file, sizes are checked before
anything is decoded, only the formats in `READABLE` are tried, and nothing is unpickled or fetched.
"""

import contextlib
import io
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from colorjax import atomic
from colorjax.photos import readers, writers
from colorjax.photos.provenance import Provenance, with_provenance

Image.init()  # registers Pillow's formats
# Not Pillow's other formats: EPS runs Ghostscript, and the rest is not used for photos. Old Pillow has no AVIF.
READABLE = tuple(
    name for name in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF") if name in Image.OPEN
)
"""Pillow's names of the formats that are read; MPO, of cameras with two lenses, is JPEG."""

SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".png": "PNG",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".webp": "WEBP",
}
"""File suffix -> format, of the formats that are written."""

READABLE_SUFFIXES = (*SUFFIXES, ".mpo", ".apng", ".gif", ".bmp", ".pbm", ".pgm", ".ppm", ".jp2", ".avif")

MAX_PIXELS = 178_956_970
"""Pixels of the largest photo that is read, 2^29 / 3: where Pillow itself suspects a decompression bomb."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo file's content, upright and in sRGB.

    Attributes:
        pixels: uint8 or uint16 [H, W] if it is gray, or [H, W, 3].
        alpha: [H, W] of the same dtype, 0 is transparent; None without transparency.
        format: Pillow's name of the file's format.
        metadata: what `write_photo` writes again, if the format has a place for it: `exif` (bytes, with orientation 1
            and without thumbnail), `xmp` (bytes), `dpi` (x, y), `icc_profile` (of sRGB, if the file had a profile),
            `text` (of a PNG), `comment` and `photoshop` (IPTC captions, of a JPEG).
        notes: sentences about what was not kept.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def array(self) -> np.ndarray:
        """The pixels, with the alpha channel last if there is one, as `Predictor` takes them."""
        return self.pixels if self.alpha is None else np.dstack([self.pixels, self.alpha])


def read_photo(source: Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Reads a photo file, turned upright by its EXIF data and converted to sRGB by its ICC profile.

    Of several frames it reads the first.

    Args:
        source: a path, a file's bytes, or an open binary file.
        max_pixels: a photo of more is refused before it is decoded. More than `MAX_PIXELS` also needs Pillow's own
            limit raised (PIL.Image.MAX_IMAGE_PIXELS).

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is not a photo, empty, truncated, too large, or of an unsupported format; names the file.
    """
    with _opened(source, max_pixels) as (image, stream):
        decoded = readers.decode(image, stream)
        return Photo(decoded.pixels, decoded.alpha, image.format or "PNG", decoded.metadata, decoded.notes)


def read_size(source: Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width in pixels from the file's header, before it is turned upright.

    Raises:
        OSError, ValueError: as `read_photo`, for what the header shows.
    """
    with _opened(source, max_pixels) as (image, _):
        return image.height, image.width


def write_photo(
    rgb: np.ndarray,
    like: Photo,
    target: Path | BinaryIO,
    *,
    format: str | None = None,
    quality: int = 95,
    provenance: Provenance | None = None,
) -> None:
    """Writes a photo with the transparency and the metadata of another, completely or not at all.

    JPEG and WebP have 8 bits. JPEG has no transparency: transparent parts are blended with white.

    Args:
        rgb: uint8 or uint16 [H, W, 3], sRGB, upright.
        like: the photo whose alpha and metadata it takes.
        target: a path, which is replaced only once the file is complete, or an open binary file.
        format: JPEG, PNG, TIFF or WEBP; by default by the path's suffix, or that of `like`, or PNG.
        quality: 1…100, of JPEG and WebP.
        provenance: where the colors come from, recorded in the file's XMP; None leaves the metadata as they are.

    Raises:
        OSError: if the file cannot be written.
        ValueError: for another format or quality, or a photo too large for the format.
    """
    chosen = format.upper() if format else output_format(like, target if isinstance(target, Path) else None)
    chosen = "JPEG" if chosen == "JPG" else "TIFF" if chosen == "TIF" else chosen
    if chosen not in SUFFIXES.values():
        raise ValueError(f"format is {format!r}; it must be JPEG, PNG, TIFF or WEBP")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; it must be between 1 and 100")
    limit = {"JPEG": 65_535, "WEBP": 16_383}.get(chosen)
    if limit and max(rgb.shape[:2]) > limit:
        raise ValueError(
            f"{rgb.shape[1]}×{rgb.shape[0]} pixels are too many for {chosen}, whose longest side is {limit}; "
            "use PNG or TIFF"
        )
    encode = writers.WRITERS[chosen]
    metadata = like.metadata
    if provenance is not None:
        xmp = with_provenance(metadata.get("xmp"), provenance)
        if chosen == "JPEG" and len(xmp) > writers.JPEG_SEGMENT:  # the photo's own would not be written either
            xmp = with_provenance(None, provenance)
        metadata = metadata | {"xmp": xmp}
    if not isinstance(target, Path):
        buffer = io.BytesIO()  # encoders seek, a pipe does not
        encode(rgb, like.alpha, metadata, buffer, quality)
        target.write(buffer.getbuffer())
        return
    with atomic.replacing(target) as temporary, temporary.open("xb") as file:
        encode(rgb, like.alpha, metadata, file, quality)


def output_format(like: Photo, target: Path | None = None) -> str:
    """The format in which `write_photo` writes by default."""
    if target is not None and target.suffix.lower() in SUFFIXES:
        return SUFFIXES[target.suffix.lower()]
    if like.format == "MPO":
        return "JPEG"
    return like.format if like.format in SUFFIXES.values() else "PNG"


@contextlib.contextmanager
def _opened(source: Path | bytes | BinaryIO, max_pixels: int) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Opens a file, reads its header and checks its size. An error in the block becomes a ValueError."""
    name = str(source) if isinstance(source, Path) else "the photo"
    with contextlib.ExitStack() as stack:
        if isinstance(source, Path):
            if not stat.S_ISREG(source.stat().st_mode):  # opening a named pipe would wait forever
                raise ValueError(f"{name}: not a file")
            stream: BinaryIO = stack.enter_context(source.open("rb"))
        elif isinstance(source, bytes):
            stream = io.BytesIO(source)
        else:
            stream = source if source.seekable() else io.BytesIO(source.read())
        if not stream.read(1):
            raise ValueError(f"{name}: the file is empty")
        stream.seek(0)
        try:
            image = stack.enter_context(Image.open(stream, formats=READABLE))
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise ValueError(
                    f"{image.width}×{image.height} = {pixels / 1e6:.1f} megapixels are more than the limit of "
                    f"{max_pixels / 1e6:.1f}"
                )
            yield image, stream
        except UnidentifiedImageError as error:
            raise ValueError(f"{name}: not a photo in a format that is read: {', '.join(READABLE)}") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: too many pixels, a decompression bomb? ({error})") from error
        # Given hostile bytes, decoders fail with anything from SyntaxError to ZeroDivisionError.
        except Exception as error:
            raise ValueError(f"{name}: {error or type(error).__name__}") from error
