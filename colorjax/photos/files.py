"""Photo files: any of them in, as sRGB of 8 or 16 bits; JPEG, PNG, TIFF and WebP out, with their metadata.

Files are foreign: a decoder's every complaint becomes a ValueError that names the file, sizes are checked before
anything is decoded, only the formats in `READABLE` are tried, and nothing is unpickled or fetched.
"""

import contextlib
import io
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from colorjax.photos import metadata, writers

Image.init()  # registers Pillow's formats
# Not Pillow's others: EPS runs Ghostscript, and the rest is no place for photos. Old Pillow has no AVIF.
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
        metadata: what is written again, as far as the format written has a place for it: `exif` (bytes, orientation 1
            and no thumbnail), `xmp` (bytes), `dpi` (x, y), `icc_profile` (sRGB's, if there was any), `text` (of a PNG),
            `comment` and `photoshop` (IPTC captions, of a JPEG).
        notes: what was not taken over, in words.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def array(self) -> np.ndarray:
        """What Predictor takes: the pixels, with the alpha, if there is any, as the last channel."""
        return self.pixels if self.alpha is None else np.dstack([self.pixels, self.alpha])


def read_photo(source: Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Reads a photo file: of several frames the first, upright by its EXIF, in sRGB by its ICC profile.

    Args:
        source: a path, a file's bytes, or an open binary file.
        max_pixels: a photo of more is refused before it is decoded. More than `MAX_PIXELS` also needs Pillow's own
            limit raised (PIL.Image.MAX_IMAGE_PIXELS).

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is no photo, empty, truncated, too large, or of a kind that is not read; names the file.
    """
    with _opened(source, max_pixels) as (image, stream):
        return _decoded(image, stream)


def read_size(source: Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width in pixels as they lie in the file, from its header alone.

    Raises:
        OSError, ValueError: as `read_photo`, for what the header shows.
    """
    with _opened(source, max_pixels) as (image, _):
        return image.height, image.width


def write_photo(
    rgb: np.ndarray, like: Photo, target: Path | BinaryIO, *, format: str | None = None, quality: int = 95
) -> None:
    """Writes a photo with the transparency and the metadata of another, whole or not at all.

    JPEG and WebP have 8 bits; JPEG has no transparency, so what is transparent is laid over white.

    Args:
        rgb: uint8 or uint16 [H, W, 3], sRGB, upright.
        like: the photo whose alpha and metadata it takes.
        target: a path, which is replaced only once the file is complete, or an open binary file.
        format: JPEG, PNG, TIFF or WEBP; else what the path's suffix says, else that of `like`, else PNG.
        quality: 1…100, of JPEG and WebP.

    Raises:
        OSError: if the file cannot be written.
        ValueError: for another format or quality, or a photo too large for the format.
    """
    chosen = format.upper() if format else output_format(like, target if isinstance(target, Path) else None)
    chosen = "JPEG" if chosen == "JPG" else "TIFF" if chosen == "TIF" else chosen
    if chosen not in SUFFIXES.values():
        raise ValueError(f"format is {format!r}; it must be JPEG, PNG, TIFF or WEBP")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; it must lie in 1…100")
    limit = {"JPEG": 65_535, "WEBP": 16_383}.get(chosen)
    if limit and max(rgb.shape[:2]) > limit:
        raise ValueError(
            f"{rgb.shape[1]}×{rgb.shape[0]} pixels are too many for {chosen}, whose sides end at {limit}; "
            "take PNG or TIFF"
        )
    encode = writers.WRITERS[chosen]
    if not isinstance(target, Path):
        buffer = io.BytesIO()  # encoders seek, a pipe does not
        encode(rgb, like.alpha, like.metadata, buffer, quality)
        target.write(buffer.getbuffer())
        return
    # In the same folder, hence on the same file system, where replacing is atomic.
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            encode(rgb, like.alpha, like.metadata, file, quality)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def output_format(like: Photo, target: Path | None = None) -> str:
    """The format that `write_photo` takes by itself."""
    if target is not None and target.suffix.lower() in SUFFIXES:
        return SUFFIXES[target.suffix.lower()]
    if like.format == "MPO":
        return "JPEG"
    return like.format if like.format in SUFFIXES.values() else "PNG"


@contextlib.contextmanager
def _opened(source: Path | bytes | BinaryIO, max_pixels: int) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """The file with its header read, and size checked; whatever a decoder raises within is made a ValueError."""
    name = str(source) if isinstance(source, Path) else "the photo"
    with contextlib.ExitStack() as stack:
        if isinstance(source, Path):
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
            raise ValueError(f"{name}: no photo that can be read; {', '.join(READABLE)} can") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: too many pixels, a decompression bomb? ({error})") from error
        # Given hostile bytes, decoders fail with anything from SyntaxError to ZeroDivisionError.
        except Exception as error:
            raise ValueError(f"{name}: {error or type(error).__name__}") from error


def _decoded(image: Image.Image, stream: BinaryIO) -> Photo:
    notes = []
    deep = _has_sixteen_bit_color(image)
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append("of its several frames only the first is colored")
    orientation = image.getexif().get(metadata.ORIENTATION, 1)
    kept = metadata.read(image)
    if deep:
        pixels, alpha = _sixteen_bit_color(image, stream, notes)
    else:
        image.load()
        # Pillow turns a TIFF itself, and takes the tag away.
        orientation = image.getexif().get(metadata.ORIENTATION, 1)
        pixels, alpha = _deep_gray(image) if image.mode.startswith(("I", "F")) else _eight_bit(image, notes)
    if image.info.get("icc_profile"):
        kept["icc_profile"] = srgb_profile()
    pixels = np.ascontiguousarray(_upright(pixels, orientation))
    if alpha is not None:
        alpha = (
            None if (alpha == np.iinfo(alpha.dtype).max).all() else np.ascontiguousarray(_upright(alpha, orientation))
        )
    return Photo(pixels, alpha, image.format or "PNG", kept, tuple(notes))


def _eight_bit(image: Image.Image, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    profile = image.info.get("icc_profile")
    if image.mode in ("P", "PA", "RGBa", "La") or "transparency" in image.info:
        gray = image.mode in ("1", "L", "La")
        transparent = image.has_transparency_data
        image = image.convert(("LA" if gray else "RGBA") if transparent else "RGB")
    alpha = None
    if image.mode in ("LA", "RGBA"):
        alpha = _array(image.getchannel("A"))
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode == "LAB":
        image = _converted(image, ImageCms.createProfile("LAB"))
    elif profile:
        image = _in_srgb(image, profile, notes)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return _array(image), alpha


def _deep_gray(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    transparent = image.info.get("transparency")
    alpha = None if transparent is None else np.where(values == transparent, 0, 65535).astype(np.uint16)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError("a photo of floating-point numbers must lie in 0…1")
        values = np.round(values * 65535)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{image.mode}: integers of {values.min()}…{values.max()} do not fit into 16 bits")
    values = values.astype(np.uint16)
    if tags.get(258) == (12,):
        values = (values << 4) | (values >> 8)
    if image.mode.startswith("I;16") and tags.get(262) == 0:
        values = 65535 - values  # "white is zero", which Pillow heeds for 8 bits alone
    return values, alpha


def _has_sixteen_bit_color(image: Image.Image) -> bool:
    """To be asked first, since to read a PNG's metadata Pillow decodes it, and forgets."""
    if image.format == "TIFF":
        tags: Any = image
        return tags.tag_v2.get(262) == 2 and max(tags.tag_v2.get(258, (1,))) == 16
    return image.format == "PNG" and image.mode in ("RGB", "RGBA") and ";16" in str(getattr(image, "tile", ""))


def _sixteen_bit_color(image: Image.Image, stream: BinaryIO, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    # Pillow has no such mode and would keep the high byte alone.
    try:
        import imagecodecs
        import tifffile
    except ImportError as error:
        raise ValueError("color of 16 bits needs imagecodecs and tifffile: pip install imagecodecs tifffile") from error
    stream.seek(0)
    if image.format == "PNG":
        values = np.asarray(imagecodecs.png_decode(stream.read()))
    else:
        with tifffile.TiffFile(stream) as file:
            page: Any = file.pages[0]
            values = page.asarray()
            if page.axes.startswith("S"):
                values = np.moveaxis(values, 0, -1)
            if page.extrasamples and int(page.extrasamples[0]) == 1:  # color multiplied by alpha
                scale = 65535 / np.maximum(values[..., 3:4], 1).astype(np.float32)
                values[..., :3] = np.minimum(np.round(values[..., :3] * scale), 65535)
            elif page.extrasamples and int(page.extrasamples[0]) == 0:
                values = values[..., :3]
    if values.dtype != np.uint16 or values.shape[0] * values.shape[1] != image.height * image.width:
        raise ValueError(f"{values.dtype} {values.shape} was decoded of {image.width}×{image.height} pixels of 16 bits")
    if values.ndim == 2:
        return values, None
    alpha = values[..., -1] if values.shape[-1] in (2, 4) else None
    pixels = values[..., :3] if values.shape[-1] >= 3 else values[..., 0]
    profile = image.info.get("icc_profile")
    if profile and pixels.ndim == 3 and not _is_srgb(profile, notes):
        pixels = imagecodecs.cms_transform(
            np.ascontiguousarray(pixels), profile, srgb_profile(), colorspace="rgb", outcolorspace="rgb", intent=1
        )
    return pixels, alpha


def srgb_profile() -> bytes:
    """An ICC profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _in_srgb(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    try:
        parsed: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if parsed.profile.xcolor_space.strip() == "RGB" and image.mode in ("1", "L", "RGB"):
            if _is_srgb(profile, notes):
                return image  # as it is: the conversion would round
            image = image.convert("RGB")
        return _converted(image, parsed)
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.append("its ICC profile is broken or not for its pixels, and was ignored")
        return image


def _is_srgb(profile: bytes, notes: list[str]) -> bool:
    """Whether converting by it would change no 8-bit color by more than rounding does; true of a broken one."""
    axis = np.linspace(0, 255, 9).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(27, 27, 3)
    try:
        converted = _converted(Image.fromarray(colors), ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.append("its ICC profile is broken or not for its pixels, and was ignored")
        return True
    return int(np.abs(np.asarray(converted, np.int16) - colors).max()) <= 1


def _converted(image: Image.Image, profile: Any) -> Image.Image:
    result = ImageCms.profileToProfile(
        image if image.mode != "1" else image.convert("L"),
        profile,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert result is not None
    return result


def _array(image: Image.Image) -> np.ndarray:
    """As np.asarray, in bands, since Pillow makes two more copies of what it hands over."""
    image.load()
    shape = (image.height, image.width) + (() if image.mode in ("1", "L") else (len(image.getbands()),))
    array = np.empty(shape, np.uint8)
    rows = max(1, (1 << 22) // max(1, image.width))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        array[top : top + rows] = np.asarray(band.convert("L") if image.mode == "1" else band)
    return array


def _upright(x: np.ndarray, orientation: Any) -> np.ndarray:
    """Turns an array [H, W, ...] as EXIF's orientation, 1…8, asks; a view."""
    if orientation in (5, 6, 7, 8):
        x = x.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        x = x[::-1]
    if orientation in (2, 3, 6, 7):
        x = x[:, ::-1]
    return x
