"""Fifty files as an old archive has them, made from scikit-image's photos: all formats and modes, and bad files.

`python tests/mixed_photos.py DIR` writes them, to try the command line by hand.
"""

import importlib.resources
import io
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms, PngImagePlugin


@dataclass(frozen=True)
class Mixed:
    """One of the files, and the expected result of reading it.

    Attributes:
        name: of the file.
        gray: uint8 or uint16 [H, W], the upright photo, if it is gray.
        rgb: uint8 or uint16 [H, W, 3], if it is in color.
        alpha: [H, W], if it has transparency.
        tolerance: largest difference of a value, which a lossy format or a color conversion makes.
        refused: a regular expression for the error, if it cannot be read.
    """

    name: str
    gray: np.ndarray | None = None
    rgb: np.ndarray | None = None
    alpha: np.ndarray | None = None
    tolerance: int = 0
    refused: str = ""


def swapped_profile() -> bytes:
    """An ICC profile of sRGB with red and blue exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">L", profile, 128)
    entries = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    profile[entries[b"rXYZ"] : entries[b"rXYZ"] + 4], profile[entries[b"bXYZ"] : entries[b"bXYZ"] + 4] = (
        b"bXYZ",
        b"rXYZ",
    )
    return bytes(profile)


def write_all(folder: Path, *, huge: tuple[int, int] = (2400, 3200)) -> list[Mixed]:
    """Writes the files.

    Args:
        folder: created if it is missing.
        huge: height and width of the largest photo.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Mixed] = []
    rgb, gray, height, width = small_pixels("coffee.png"), _gray("astronaut.png"), 48, 64
    deep = (rgb.astype(np.uint16) << 8) + np.random.default_rng(0).integers(0, 256, rgb.shape, np.uint16)
    deep_gray = deep[..., 1].copy()
    alpha = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    deep_alpha = alpha.astype(np.uint16) * 257
    color, black = Image.fromarray(rgb), Image.fromarray(gray)
    onebit = Image.fromarray(gray).convert("1")
    bits = np.asarray(onebit).astype(np.uint8) * 255
    few = color.quantize(16)

    def add(name: str, image: Image.Image | bytes, options: dict[str, Any] | None = None, **expected: Any) -> None:
        if isinstance(image, bytes):
            (folder / name).write_bytes(image)
        else:
            image.save(folder / name, **(options or {}))
        written.append(Mixed(name, **expected))

    # JPEG
    add("rgb.jpg", color, {"quality": 95, "subsampling": 0}, rgb=rgb, tolerance=30)
    add(
        "upper case and ümlaut.JPG",
        small_image("rocket.jpg"),
        {"quality": 95, "subsampling": 0},
        rgb=small_pixels("rocket.jpg"),
        tolerance=40,
    )
    add("gray.jpeg", black, {"quality": 95}, gray=gray, tolerance=20)
    add("progressive.jpg", color, {"progressive": True, "quality": 95, "subsampling": 0}, rgb=rgb, tolerance=30)
    add("cmyk.jpg", color.convert("CMYK"), {"quality": 95}, rgb=rgb, tolerance=40)
    add(
        "icc.jpg",
        Image.fromarray(rgb[..., ::-1].copy()),
        {"quality": 95, "subsampling": 0, "icc_profile": swapped_profile()},
        rgb=rgb,
        tolerance=30,
    )
    for orientation, turn in _TURNS.items():
        exif = Image.Exif()
        exif[0x0112], exif[0x010E], exif[0x0132] = orientation, "a cup", "1931:05:02 12:00:00"
        exif.get_ifd(34665)[0x9003] = "1931:05:02 12:00:00"
        stored = Image.fromarray(np.ascontiguousarray(turn(rgb)))
        add(
            f"turned {orientation}.jpg",
            stored,
            {"quality": 95, "subsampling": 0, "exif": exif, "dpi": (300, 300)},
            rgb=rgb,
            tolerance=30,
        )
    # PNG
    add("rgb.png", color, rgb=rgb)
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "Kaffee")
    add("gray.png", black, {"pnginfo": text, "dpi": (600, 600)}, gray=gray)
    add("onebit.png", onebit, gray=bits)
    add("palette.png", few, rgb=np.asarray(few.convert("RGB")))
    index = np.asarray(few)
    add(
        "palette transparent.png",
        few,
        {"transparency": 3},
        rgb=np.asarray(few.convert("RGB")),
        alpha=np.where(index == 3, 0, 255).astype(np.uint8),
    )
    add("la.png", Image.merge("LA", (black, Image.fromarray(alpha))), gray=gray, alpha=alpha)
    add("rgba.png", Image.merge("RGBA", (*color.split(), Image.fromarray(alpha))), rgb=rgb, alpha=alpha)
    add("opaque rgba.png", color.convert("RGBA"), rgb=rgb)
    add("gray 16.png", Image.fromarray(deep_gray), gray=deep_gray)
    add("rgb 16.png", _png_16(deep), rgb=deep)
    add("rgba 16.png", _png_16(np.dstack([deep, deep_alpha])), rgb=deep, alpha=deep_alpha)
    add("la 16.png", _png_16(np.dstack([deep_gray, deep_alpha])), gray=deep_gray, alpha=deep_alpha)
    add("icc.png", Image.fromarray(rgb[..., ::-1].copy()), {"icc_profile": swapped_profile()}, rgb=rgb, tolerance=2)
    add("animated.png", color, {"save_all": True, "append_images": [color.rotate(180)]}, rgb=rgb)
    # TIFF
    add("rgb.tif", color, {"compression": "tiff_lzw", "dpi": (1200, 1200)}, rgb=rgb)
    add("gray.tiff", black, gray=gray)
    add("onebit.tif", onebit, {"compression": "group4"}, gray=bits)
    add("gray 16.tif", Image.fromarray(deep_gray), gray=deep_gray)
    add("rgb 16.tif", _tiff(deep, photometric="rgb", compression="lzw"), rgb=deep)
    add(
        "rgba 16 big-endian.tif",
        _tiff(np.dstack([deep, deep_alpha]), photometric="rgb", extrasamples=["unassalpha"], byteorder=">"),
        rgb=deep,
        alpha=deep_alpha,
    )
    add(
        "rgb 16 planes icc.tif",
        _tiff(
            np.moveaxis(deep[..., ::-1], -1, 0),
            photometric="rgb",
            planarconfig="separate",
            iccprofile=swapped_profile(),
        ),
        rgb=deep,
        tolerance=300,
    )
    add("white is zero 16.tif", _tiff(65535 - deep_gray, photometric="miniswhite"), gray=deep_gray)
    add("cmyk.tif", color.convert("CMYK"), rgb=rgb)
    add("float.tif", Image.fromarray(deep_gray.astype(np.float32) / 65535), gray=deep_gray, tolerance=1)
    add("pages.tif", color, {"save_all": True, "append_images": [color.rotate(180)]}, rgb=rgb)
    # WebP and the rest
    add("lossless.webp", color, {"lossless": True}, rgb=rgb)
    add(
        "alpha.webp",
        Image.merge("RGBA", (*color.split(), Image.fromarray(alpha))),
        {"lossless": True, "exact": True},
        rgb=rgb,
        alpha=alpha,
    )
    add("animated.gif", few, {"save_all": True, "append_images": [few.rotate(180)]}, rgb=np.asarray(few.convert("RGB")))
    add("photo.bmp", color, rgb=rgb)
    tall, wide = huge
    add(
        "huge.jpg",
        small_image("retina.jpg").resize((wide, tall)),
        {"quality": 90},
        rgb=np.empty((*huge, 3), np.uint8),
        tolerance=256,
    )
    add("one pixel.png", Image.fromarray(gray[:1, :1]), gray=gray[:1, :1])
    add("thin.png", Image.fromarray(gray[:1]), gray=gray[:1])
    add("a png in truth.jpg", _encoded(color, "PNG"), rgb=rgb)
    # What cannot be read
    whole = _encoded(color, "JPEG")
    add("truncated.jpg", whole[: len(whole) // 2], refused="truncated")
    whole = (folder / "rgb.png").read_bytes()
    add("truncated.png", whole[: len(whole) // 2], refused="truncated|broken|decod")
    whole = (folder / "rgb 16.tif").read_bytes()
    add("truncated.tif", whole[: len(whole) // 2], refused="truncated|corrupt|strip|read|buffer")
    whole = (folder / "lossless.webp").read_bytes()
    add("truncated.webp", whole[: len(whole) // 2], refused="decod|truncated")
    add("empty.jpg", b"", refused="empty")
    add("text.jpg", b"Dear Anna,\nhere is the photo that you asked for.\n", refused="not a photo")
    add("bomb.png", _bomb(), refused="megapixels|bomb")
    return written


_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    # How an upright photo lies in a file of that orientation (EXIF 2.32, table 6).
    3: lambda x: np.rot90(x, 2),
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    8: lambda x: np.rot90(x, -1),
}


def small_image(name: str) -> Image.Image:
    """One of scikit-image's photographs, 64×48 pixels."""
    with (importlib.resources.files("skimage.data") / name).open("rb") as stream:
        return Image.open(stream).convert("RGB").resize((64, 48), Image.Resampling.BOX)


def small_pixels(name: str) -> np.ndarray:
    """The same as uint8 [48, 64, 3]."""
    return np.array(small_image(name))


def _gray(name: str) -> np.ndarray:
    return np.array(small_image(name).convert("L"))


def _encoded(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def _tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


def _png_16(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit channels, without any filter."""
    kind = {2: 4, 3: 2, 4: 6}[pixels.shape[-1]]
    rows = pixels.astype(">u2").tobytes()
    stride = len(rows) // len(pixels)
    data = b"".join(b"\0" + rows[at : at + stride] for at in range(0, len(rows), stride))
    return _png(pixels.shape[1], pixels.shape[0], 16, kind, zlib.compress(data))


def _bomb() -> bytes:
    """30,000×30,000 pixels in a few bytes."""
    return _png(30_000, 30_000, 8, 0, zlib.compress(bytes(1000)))


def _png(width: int, height: int, depth: int, kind: int, data: bytes) -> bytes:
    header = struct.pack(">LLBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body)) for name, body in chunks
    )


if __name__ == "__main__":
    print(len(write_all(Path(sys.argv[1]))), "files")
