"""Photo files: what fifty of them give, what is kept of their metadata, and how they are written."""

import io
import struct
from pathlib import Path
from typing import Any

import imagecodecs
import mixed_photos
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from colorjax.photos import readers, writers
from colorjax.photos.files import Photo, read_photo, read_size, write_photo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


@pytest.fixture(scope="module")
def mixed(folder: Path) -> dict[str, mixed_photos.Mixed]:
    return {photo.name: photo for photo in mixed_photos.write_all(folder, huge=(300, 400))}


def some_pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def test_fifty_files_give_the_pixels_that_they_were_made_of(folder: Path, mixed: dict[str, mixed_photos.Mixed]) -> None:
    assert len(mixed) == 50
    for name, expected in mixed.items():
        if expected.refused:
            with pytest.raises(ValueError, match=expected.refused) as error:
                read_photo(folder / name)
            assert name in str(error.value)
            continue
        photo = read_photo(folder / name)
        pixels = expected.gray if expected.gray is not None else expected.rgb
        assert pixels is not None
        assert (photo.pixels.shape, photo.pixels.dtype) == (pixels.shape, pixels.dtype), name
        if name != "huge.jpg":
            difference = np.abs(photo.pixels.astype(int) - pixels)
            # A lossy format is far off at single pixels, and right on average.
            assert difference.max() <= expected.tolerance, name
            assert difference.mean() <= expected.tolerance / 8, name
        assert (photo.alpha is None) == (expected.alpha is None), name
        if expected.alpha is not None:
            np.testing.assert_array_equal(photo.alpha, expected.alpha, err_msg=name)
        assert bool(photo.notes) == (name.startswith("animated") or name == "pages.tif"), name
        assert np.prod(read_size(folder / name)) == np.prod(pixels.shape[:2]), name


def test_a_photo_comes_from_bytes_and_streams_as_from_its_path(folder: Path, mixed: dict) -> None:
    del mixed
    path = folder / "rgba.png"
    expected = read_photo(path)
    with path.open("rb") as stream:
        for photo in (read_photo(path.read_bytes()), read_photo(stream)):
            np.testing.assert_array_equal(photo.array, expected.array)
    assert expected.array.shape[-1] == 4
    with pytest.raises(FileNotFoundError):
        read_photo(folder / "absent.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(some_pixels(5, 7, 3))
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    photo = read_photo(buffer.getvalue())
    np.testing.assert_array_equal(photo.pixels, np.asarray(ImageOps.exif_transpose(Image.open(buffer))))
    written = io.BytesIO()
    write_photo(photo.pixels, photo, written)
    assert Image.open(written).getexif()[0x0112] == 1


def test_a_photo_of_too_many_pixels_is_refused_before_it_is_decoded(folder: Path, mixed: dict) -> None:
    del mixed
    with pytest.raises(ValueError, match=r"huge\.jpg: 400×300 = 0\.1 megapixels are more than the limit of 0\.1"):
        read_photo(folder / "huge.jpg", max_pixels=119_999)
    read_photo(folder / "huge.jpg", max_pixels=120_000)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("transparent", [False, True])
def test_png_and_tiff_are_exact_to_other_readers(format: str, dtype: type, transparent: bool) -> None:
    # More rows than one strip has.
    rgb = some_pixels(700, 1100, 3, dtype=dtype)
    alpha = some_pixels(700, 1100, dtype=dtype) if transparent else None
    buffer = io.BytesIO()
    write_photo(rgb, Photo(rgb, alpha), buffer, format=format)
    data = buffer.getvalue()
    got = imagecodecs.png_decode(data) if format == "PNG" else tifffile.imread(io.BytesIO(data))
    np.testing.assert_array_equal(got, rgb if alpha is None else np.dstack([rgb, alpha]))
    back = read_photo(data)
    np.testing.assert_array_equal(back.pixels, rgb)
    assert (back.alpha is None) == (alpha is None)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats_take_16_bits_and_transparency_as_far_as_they_can(format: str) -> None:
    rgb = np.full((16, 16, 3), (40_000, 20_000, 10_000), np.uint16)
    alpha = np.full((16, 16), 0, np.uint16)
    alpha[:, 8:] = 65535
    buffer = io.BytesIO()
    write_photo(rgb, Photo(rgb, alpha), buffer, format=format)
    back = read_photo(buffer.getvalue())
    opaque = (40_000 / 257, 20_000 / 257, 10_000 / 257)
    np.testing.assert_allclose(back.pixels[:, 14].mean(0), opaque, atol=4)
    if format == "JPEG":
        assert back.alpha is None
        np.testing.assert_allclose(back.pixels[:, 1].mean(0), 255, atol=4)  # laid over white
    else:
        np.testing.assert_array_equal(back.alpha, alpha // 257)


@pytest.mark.parametrize("source", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("target", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_metadata_is_written_again(source: str, target: str) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112], exif[0x8298] = "a cup", 6, "Anna"
    exif.get_ifd(34665)[0x9003] = "1931:05:02 12:00:00"
    exif.get_ifd(34853)[1] = "N"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="cup"/></x:xmpmeta>'
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stored = Image.fromarray(some_pixels(4, 6, 3))
    options: dict[str, Any] = {"exif": exif, "icc_profile": profile, "dpi": (300, 300)}
    if source == "PNG":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        text.add_text("Title", "cup")
        options["pnginfo"] = text
    elif source == "TIFF":
        # As bytes and back, since Pillow writes into a TIFF only those directories that it has read.
        written_exif = exif.tobytes()
        exif = Image.Exif()
        exif.load(written_exif)
        exif[700] = xmp
        options["exif"] = exif
    else:
        options["xmp"] = xmp
    if source == "JPEG":
        segment = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\0"
        options |= {"comment": b"a remark", "extra": b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment}
    buffer = io.BytesIO()
    stored.save(buffer, source, **options)
    photo = read_photo(buffer.getvalue())
    assert photo.pixels.shape == (6, 4, 3)

    written = io.BytesIO()
    write_photo(photo.pixels, photo, written, format=target)
    image = Image.open(written)
    got = image.getexif()
    assert (got[0x010E], got[0x0112], got[0x8298]) == ("a cup", 1, "Anna")
    assert got.get_ifd(34665)[0x9003] == "1931:05:02 12:00:00"
    assert got.get_ifd(34853)[1] == "N"
    again = read_photo(written.getvalue())
    assert again.pixels.shape == (6, 4, 3)  # not turned twice
    assert again.metadata["xmp"].rstrip(b"\0") == xmp.replace(b'"6"', b'"1"')
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"])))
    if "WEBP" not in (source, target):
        np.testing.assert_allclose(again.metadata["dpi"], 300, atol=0.1)
    if source == target == "PNG":
        assert again.metadata["text"] == {"Title": "cup"}
    if source == target == "JPEG":
        assert again.metadata["comment"] == b"a remark"
        assert again.metadata["photoshop"] == [segment]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_exif_thumbnail_and_broken_exif_do_not_go_on() -> None:
    buffer = io.BytesIO()
    thumbnail = b"\xff\xd8thumbnail\xff\xd9"
    ifd1 = struct.pack("<HHHLLHHLLL", 2, 0x201, 4, 1, 56, 0x202, 4, 1, len(thumbnail), 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<LHHHLLL", 8, 1, 0x0112, 3, 1, 8, 26) + ifd1 + thumbnail
    Image.fromarray(some_pixels(4, 6, 3)).save(buffer, "JPEG", exif=exif)
    photo = read_photo(buffer.getvalue())
    assert photo.pixels.shape == (6, 4, 3)
    kept = Image.Exif()
    kept.load(photo.metadata["exif"])
    assert dict(kept) == {0x0112: 1}
    assert not kept.get_ifd(1)
    buffer = io.BytesIO()
    Image.fromarray(some_pixels(4, 6, 3)).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\0\0")
    assert "exif" not in read_photo(buffer.getvalue()).metadata


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_tags_are_left_out_of_a_tiff() -> None:
    def tag(number: int, kind: int, count: int, value: bytes) -> bytes:
        return struct.pack("<HHL", number, kind, count) + value

    tags = [
        tag(0x0100, 4, 1, struct.pack("<L", 10**9)),  # a width, which is not this photo's
        tag(0x010E, 2, 4, b"cup\0"),
        tag(0x0110, 99, 1, bytes(4)),  # a type that does not exist
        tag(0x0128, 7, 1, b"cm\0\0"),  # bytes where a number should be
        tag(0x0132, 11, 1, struct.pack("<f", 1931.5)),  # a number where a text should be
        tag(0x013E, 2, 2, b"x\0\0\0"),  # a text where numbers should be
        tag(0x0142, 4, 1, struct.pack("<L", 0)),  # tiles of no width
        tag(0x8769, 4, 1, struct.pack("<L", 2**31)),  # a directory beyond the end
        tag(0xA005, 3, 1, struct.pack("<L", 26)),  # a directory that belongs into another one
        tag(0xC000, 10, 0, bytes(4)),  # no value
        tag(0x010F, 2, 2**31, struct.pack("<L", 2**31)),  # a text far beyond the end, where reading ends
    ]
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(tags)) + b"".join(tags) + bytes(4)
    buffer = io.BytesIO()
    Image.fromarray(some_pixels(4, 6, 3)).save(buffer, "JPEG", exif=exif)
    photo = read_photo(buffer.getvalue())
    written = io.BytesIO()
    write_photo(photo.pixels, photo, written, format="TIFF")
    np.testing.assert_array_equal(read_photo(written.getvalue()).pixels, photo.pixels)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(written.getvalue())), photo.pixels)
    with Image.open(written) as image:
        assert image.getexif()[0x010E] == "cup"


def test_a_broken_profile_is_ignored_and_noted() -> None:
    pixels = some_pixels(4, 6, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", icc_profile=b"nonsense")
    photo = read_photo(buffer.getvalue())
    np.testing.assert_array_equal(photo.pixels, pixels)
    assert "ICC profile is broken" in photo.notes[0]


def test_a_gray_photo_with_srgb_s_profile_is_as_it_is() -> None:
    gray = some_pixels(4, 6)
    for profile, exact in ((readers.srgb_profile(), True), (mixed_photos.swapped_profile(), False)):
        buffer = io.BytesIO()
        Image.fromarray(gray).save(buffer, "PNG", icc_profile=profile)
        photo = read_photo(buffer.getvalue())
        assert photo.notes == ()
        # Red and blue that change their places leave gray what it is.
        rgb = photo.pixels if photo.pixels.ndim == 3 else np.stack([photo.pixels] * 3, axis=-1)
        np.testing.assert_allclose(rgb, np.stack([gray] * 3, axis=-1), atol=0 if exact else 2)


def test_the_format_is_asked_for_or_the_suffix_or_the_photo_s_own(tmp_path: Path) -> None:
    pixels = some_pixels(4, 6, 3)
    for like, name, format, expected in (
        ("JPEG", "a.tif", None, "TIFF"),
        ("JPEG", "a.tif", "png", "PNG"),
        ("JPEG", "a", None, "JPEG"),
        ("MPO", "b", None, "JPEG"),
        ("GIF", "c", None, "PNG"),
    ):
        write_photo(pixels, Photo(pixels, format=like), tmp_path / name, format=format)
        assert read_photo(tmp_path / name).format == expected


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = some_pixels(4, 6, 3)
    target = tmp_path / "a.png"
    write_photo(pixels, Photo(pixels), target)
    before = target.read_bytes()

    def interrupted(rgb: object, alpha: object, metadata: object, file: Any, quality: int) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(writers.WRITERS, "PNG", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_photo(pixels, Photo(pixels), target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_formats_and_sizes_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    pixels = some_pixels(2, 2, 3)
    with pytest.raises(ValueError, match="format is 'gif'; it must be JPEG, PNG, TIFF or WEBP"):
        write_photo(pixels, Photo(pixels), tmp_path / "a.png", format="gif")
    with pytest.raises(ValueError, match="quality is 0"):
        write_photo(pixels, Photo(pixels), tmp_path / "a.png", quality=0)
    wide = np.zeros((1, 16_384, 3), np.uint8)
    with pytest.raises(ValueError, match="16384×1 pixels are too many for WEBP"):
        write_photo(wide, Photo(wide), tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_is_turned_once(dtype: type) -> None:
    upright = some_pixels(6, 4, 3, dtype=dtype)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, np.ascontiguousarray(np.rot90(upright)), photometric="rgb", extratags=[(274, 3, 1, 6, True)]
    )
    np.testing.assert_array_equal(read_photo(buffer.getvalue()).pixels, upright)
