"""The encoders behind `files.write_photo`: JPEG, WebP, and PNG and TIFF of 8 or 16 bits."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from colorjax.photos.metadata import TIFF_STRUCTURE

_Writer = Callable[[np.ndarray, np.ndarray | None, dict[str, Any], BinaryIO, int], None]
JPEG_SEGMENT = 65_000
"""Bytes of EXIF data or XMP that fit into a JPEG, whose segments have at most 64 kB."""

_BAND = 1 << 22  # bytes that are filtered and compressed as one


def _jpeg(rgb: np.ndarray, alpha: np.ndarray | None, metadata: dict[str, Any], target: BinaryIO, quality: int) -> None:
    rgb, alpha = _to_8_bit(rgb), None if alpha is None else _to_8_bit(alpha)
    if alpha is not None:
        cover = alpha[..., None].astype(np.uint16)
        rgb = ((rgb * cover + 255 * (255 - cover) + 127) // 255).astype(np.uint8)
    options = {k: metadata[k] for k in ("dpi", "icc_profile", "comment") if k in metadata}
    options |= {k: metadata[k] for k in ("exif", "xmp") if k in metadata and len(metadata[k]) <= JPEG_SEGMENT}
    segments = (b"\xff\xed" + struct.pack(">H", len(s) + 2) + s for s in metadata.get("photoshop", ()))
    # Without chroma subsampling, the color is as sharp as the lightness.
    Image.fromarray(rgb).save(target, "JPEG", quality=quality, subsampling=0, extra=b"".join(segments), **options)


def _webp(rgb: np.ndarray, alpha: np.ndarray | None, metadata: dict[str, Any], target: BinaryIO, quality: int) -> None:
    options = {k: metadata[k] for k in ("exif", "xmp", "icc_profile") if k in metadata}
    # exact: keeps the color of transparent pixels.
    _image(_to_8_bit(rgb), alpha).save(target, "WEBP", quality=quality, exact=True, **options)


def _png(rgb: np.ndarray, alpha: np.ndarray | None, metadata: dict[str, Any], target: BinaryIO, quality: int) -> None:
    del quality
    options = {k: metadata[k] for k in ("exif", "dpi", "icc_profile") if k in metadata}
    text = PngImagePlugin.PngInfo()
    for key, value in metadata.get("text", {}).items():
        text.add_itxt(key, value)
    if "xmp" in metadata:
        text.add_itxt("XML:com.adobe.xmp", metadata["xmp"].decode(errors="replace"))
    if rgb.dtype == np.uint8:
        _image(rgb, alpha).save(target, "PNG", pnginfo=text, **options)
        return
    # Pillow has no 16-bit color. It writes a PNG of one pixel with all the metadata, whose pixel chunks are then
    # replaced by the photo's.
    model = io.BytesIO()
    Image.new("RGB", (1, 1)).save(model, "PNG", pnginfo=text, **options)
    chunks = model.getvalue()
    target.write(chunks[:8])
    at = 8
    while at < len(chunks):
        (length,) = struct.unpack_from(">L", chunks, at)
        kind = chunks[at + 4 : at + 8]
        if kind == b"IHDR":
            header = struct.pack(">LLBBBBB", rgb.shape[1], rgb.shape[0], 16, 2 if alpha is None else 6, 0, 0, 0)
            PngImagePlugin.putchunk(target, kind, header)
        elif kind == b"IDAT":
            for data in _deflated_png_rows(rgb, alpha):
                PngImagePlugin.putchunk(target, kind, data)
        else:
            target.write(chunks[at : at + 12 + length])
        at += 12 + length


def _deflated_png_rows(rgb: np.ndarray, alpha: np.ndarray | None) -> Iterator[bytes]:
    """One zlib stream of rows, each the difference to the one above (PNG's filter 2)."""
    deflate = zlib.compressobj()
    above = np.zeros((1, rgb.shape[1] * (6 if alpha is None else 8)), np.uint8)
    for band in _bands(rgb, alpha):
        rows = band.astype(">u2").view(np.uint8).reshape(len(band), -1)
        filtered = np.full((len(rows), rows.shape[1] + 1), 2, np.uint8)
        np.subtract(rows, np.concatenate([above, rows[:-1]]), out=filtered[:, 1:])
        above = rows[-1:]
        if data := deflate.compress(filtered.tobytes()):
            yield data
    yield deflate.flush()


def _tiff(rgb: np.ndarray, alpha: np.ndarray | None, metadata: dict[str, Any], target: BinaryIO, quality: int) -> None:
    """Writes strips of deflated differences; Pillow cannot write 16-bit color."""
    del quality
    channels = 3 if alpha is None else 4
    strips = []
    for band in _bands(rgb, alpha):
        difference = band.copy()
        difference[:, 1:] -= band[:, :-1]
        strips.append(zlib.compress(difference.astype(difference.dtype.newbyteorder("<"), copy=False).tobytes()))
    ifd = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in _exif_tags(metadata.get("exif", b"")):
        ifd[tag] = value
    if "dpi" in metadata:
        ifd[296], (ifd[282], ifd[283]) = 2, metadata["dpi"]
    if "xmp" in metadata:
        ifd.tagtype[700], ifd[700] = 1, metadata["xmp"]
    if "icc_profile" in metadata:
        ifd.tagtype[34675], ifd[34675] = 7, metadata["icc_profile"]
    ifd[256], ifd[257] = rgb.shape[1], rgb.shape[0]
    ifd[258] = (8 * rgb.itemsize,) * channels
    ifd[259], ifd[262], ifd[274], ifd[277], ifd[284], ifd[317] = 8, 2, 1, channels, 1, 2
    ifd[278] = _band_rows(rgb, alpha)
    if alpha is not None:
        ifd[338] = 2
    sizes = [len(s) for s in strips]
    ifd.tagtype[279] = ifd.tagtype[273] = 4
    ifd[279] = tuple(sizes)
    ifd[273] = tuple(int(x) for x in np.cumsum([0, *sizes[:-1]]))  # from the end of the directory on
    ifd.save(target)
    for strip in strips:
        target.write(strip)


def _exif_tags(exif: bytes) -> Iterator[tuple[int, Any]]:
    """The tags of EXIF data, and its nested directories as dicts, without those that cannot be written again."""
    read = Image.Exif()
    try:
        read.load(exif)
    except Exception:  # foreign bytes: SyntaxError, struct.error and others
        return
    for tag in read:
        if tag in TIFF_STRUCTURE:
            continue
        try:
            value = dict(read.get_ifd(tag)) if tag in (34665, 34853) else read[tag]
        except Exception:
            continue
        if isinstance(value, dict):
            yield tag, {key: x for key, x in value.items() if _is_writable(key, x)}
        elif _is_writable(tag, value):
            yield tag, value


def _is_writable(tag: int, value: Any) -> bool:
    """Whether Pillow can write a tag that it has read, whose value may be broken."""
    ifd = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    try:
        ifd[tag] = value
        ifd.tobytes()
    except Exception:
        return False
    return True


def _bands(rgb: np.ndarray, alpha: np.ndarray | None) -> Iterator[np.ndarray]:
    rows = _band_rows(rgb, alpha)
    for top in range(0, len(rgb), rows):
        band = rgb[top : top + rows]
        yield band if alpha is None else np.concatenate([band, alpha[top : top + rows, :, None]], axis=-1)


def _band_rows(rgb: np.ndarray, alpha: np.ndarray | None) -> int:
    channels = 3 if alpha is None else 4
    return min(len(rgb), max(1, _BAND // (rgb.shape[1] * channels * rgb.itemsize)))


def _image(rgb: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    image = Image.fromarray(rgb)
    if alpha is not None:
        image.putalpha(Image.fromarray(_to_8_bit(alpha)))
    return image


def _to_8_bit(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.uint8 else (x // 257 + (x % 257 > 128)).astype(np.uint8)


WRITERS: dict[str, _Writer] = {"JPEG": _jpeg, "WEBP": _webp, "PNG": _png, "TIFF": _tiff}
"""Format -> a function that writes (rgb, alpha, metadata, target, quality)."""
