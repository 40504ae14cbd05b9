"""The decoders behind `files.read_photo`: Pillow's, and those of 16-bit color, to upright sRGB."""

import io
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from colorjax.photos import metadata


class Decoded(NamedTuple):
    """The content of a file, as of `files.Photo`."""

    pixels: np.ndarray
    alpha: np.ndarray | None
    metadata: dict[str, Any]
    notes: tuple[str, ...]


def decode(image: Image.Image, stream: BinaryIO) -> Decoded:
    """Decodes an open file; of several frames the first.

    Args:
        image: as Pillow opens it.
        stream: the file.

    Raises:
        Exception: of any type, as decoders do when they are given hostile bytes.
    """
    notes: list[str] = []
    deep = _has_sixteen_bit_color(image)
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append("only the first of its frames is colored")
    orientation = image.getexif().get(metadata.ORIENTATION, 1)
    kept = metadata.read(image)
    if deep:
        pixels, alpha = _sixteen_bit_color(image, stream, notes)
    else:
        image.load()
        # Pillow turns a TIFF upright itself, and removes the tag.
        orientation = image.getexif().get(metadata.ORIENTATION, 1)
        pixels, alpha = _deep_gray(image) if image.mode.startswith(("I", "F")) else _eight_bit(image, notes)
    if image.info.get("icc_profile"):
        kept["icc_profile"] = srgb_profile()
    pixels = np.ascontiguousarray(_upright(pixels, orientation))
    if alpha is not None:
        alpha = (
            None if (alpha == np.iinfo(alpha.dtype).max).all() else np.ascontiguousarray(_upright(alpha, orientation))
        )
    return Decoded(pixels, alpha, kept, tuple(notes))


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
            raise ValueError("a photo of floating-point numbers must have values of 0…1")
        values = np.round(values * 65535)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{image.mode}: integers of {values.min()}…{values.max()} do not fit into 16 bits")
    values = values.astype(np.uint16)
    if tags.get(258) == (12,):
        values = (values << 4) | (values >> 8)
    if image.mode.startswith("I;16") and tags.get(262) == 0:
        values = 65535 - values  # "white is zero", which Pillow only handles for 8 bits
    return values, alpha


def _has_sixteen_bit_color(image: Image.Image) -> bool:
    """Whether it has 16-bit color. Call it first: Pillow forgets it when it decodes a PNG to read its metadata."""
    if image.format == "TIFF":
        tags: Any = image
        return tags.tag_v2.get(262) == 2 and max(tags.tag_v2.get(258, (1,))) == 16
    return image.format == "PNG" and image.mode in ("RGB", "RGBA") and ";16" in str(getattr(image, "tile", ""))


def _sixteen_bit_color(image: Image.Image, stream: BinaryIO, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    # Pillow has no such mode, and would keep only the high byte.
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
                return image  # unchanged, since the conversion would round
            image = image.convert("RGB")
        return _converted(image, parsed)
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.append("its ICC profile is broken or not for its pixels, and was ignored")
        return image


def _is_srgb(profile: bytes, notes: list[str]) -> bool:
    """Whether converting by the profile changes no 8-bit color by more than rounding; True for a broken profile."""
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
    """Like np.asarray, but in bands: Pillow makes two more copies of what it converts."""
    image.load()
    shape = (image.height, image.width) + (() if image.mode in ("1", "L") else (len(image.getbands()),))
    array = np.empty(shape, np.uint8)
    rows = max(1, (1 << 22) // max(1, image.width))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        array[top : top + rows] = np.asarray(band.convert("L") if image.mode == "1" else band)
    return array


def _upright(x: np.ndarray, orientation: Any) -> np.ndarray:
    """A view of an array [H, W, ...], turned upright from EXIF's orientation, 1…8."""
    if orientation in (5, 6, 7, 8):
        x = x.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        x = x[::-1]
    if orientation in (2, 3, 6, 7):
        x = x[:, ::-1]
    return x
