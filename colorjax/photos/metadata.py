"""Reads a photo file's metadata, and adapts it to pixels that were turned upright."""

import re
import struct
from typing import Any

from PIL import Image

ORIENTATION = 0x0112
"""EXIF's tag."""

_EXIF_PREFIX = b"Exif\0\0"
TIFF_STRUCTURE = frozenset(
    (
        *(*range(254, 260), *range(262, 267), 273, ORIENTATION, *range(277, 282), 284, *range(290, 294), 301),
        *(*range(317, 348), *range(512, 533), 700, 34377, 34675, 0xA005),
    )
)
"""Tags of a TIFF that describe how its pixels are stored, or that have entries of their own in `metadata`."""


def read(image: Image.Image) -> dict[str, Any]:
    """The entries of `Photo.metadata` in an open file, without the ICC profile.

    Args:
        image: as Pillow opens it.
    """
    info, found = image.info, {}
    exif = _exif_of_tiff(image) if image.format == "TIFF" else _exif_upright(info.get("exif", b""))
    if exif:
        found["exif"] = exif
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
    if xmp:
        xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
        found["xmp"] = re.sub(rb'(tiff:Orientation(?:="|>))[2-8]', rb"\g<1>1", xmp)
    dpi = info.get("dpi")
    if dpi and all(0 < x < 1e6 for x in map(float, dpi)):
        found["dpi"] = tuple(map(float, dpi))
    if image.format == "PNG":
        text = {k: str(v) for k, v in getattr(image, "text", {}).items() if k != "XML:com.adobe.xmp"}
        found |= {"text": text} if text else {}
    if image.format in ("JPEG", "MPO"):
        found |= {"comment": info["comment"]} if info.get("comment") else {}
        segments = [s for name, s in getattr(image, "applist", []) if name == "APP13" and s.startswith(b"Photoshop")]
        found |= {"photoshop": segments} if segments else {}
    return found


def _exif_of_tiff(image: Image.Image) -> bytes:
    # A TIFF's EXIF data is the file's own directory, which also describes how the pixels are stored.
    source, kept = image.getexif(), Image.Exif()
    for tag in source:
        if tag not in TIFF_STRUCTURE:
            kept[tag] = dict(source.get_ifd(tag)) if tag in (34665, 34853) else source[tag]
    if not len(kept):
        return b""
    try:
        return kept.tobytes()
    except Exception:  # a tag of a type that Pillow reads and does not write
        return b""


def _exif_upright(exif: bytes) -> bytes:
    """The EXIF data with orientation 1 and without the thumbnail, which shows the gray photo."""
    exif = exif.removeprefix(_EXIF_PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return b""
    changed = bytearray(exif)
    try:
        (start,) = struct.unpack_from(f"{order}L", changed, 4)
        (count,) = struct.unpack_from(f"{order}H", changed, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            if struct.unpack_from(f"{order}H", changed, entry)[0] == ORIENTATION:
                struct.pack_into(f"{order}HHLHH", changed, entry, ORIENTATION, 3, 1, 1, 0)
        struct.pack_into(f"{order}L", changed, start + 2 + 12 * count, 0)
    except struct.error:
        return b""
    return _EXIF_PREFIX + bytes(changed)
