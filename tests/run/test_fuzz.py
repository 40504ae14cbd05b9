"""Whatever a photo, color points, or a file of a run, an export, a prior, a pack, a teacher or a judge holds, and
whatever is typed as a point or a keyframe: only the documented errors, in one line."""

import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, ImageCms

from colorjax import color, data
from colorjax.cli.errors import one_line
from colorjax.data import packed
from colorjax.data.batches import Share
from colorjax.data.prior import Prior
from colorjax.data.teacher import Teacher
from colorjax.evaluation.judges import weights
from colorjax.photos import keyframes, points
from colorjax.photos.files import read_photo, write_photo
from colorjax.run import portable, workdir
from colorjax.run.portable import INDEX, NPZ, SAFETENSORS
from colorjax.training.progress import has_validation, read_records
from configs import quickstart

_TREE = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _write_tensors(folder: Path, *, format: str, size: int = 1000) -> None:
    portable.write_tensors(folder, _TREE, {}, 7, format=format, dtype="float32", max_shard_size=size)


def _write_pack(folder: Path) -> None:
    source = data.open_source(_pack_config(folder, source="sample"))
    packed.write_pack(source, folder / "pack", splits=("test",), resolution=4, train_fraction=0.8)
    for path in (folder / "pack").iterdir():
        path.rename(folder / path.name)


def _pack_config(folder: Path, *, source: str = "packed") -> Any:
    config = quickstart.get_config().data.unlock()
    config.source, config.dir, config.resolution = source, str(folder), 4
    return config


def _read_pack(folder: Path) -> None:
    source = data.open_source(_pack_config(folder))
    for split in source.info.sizes:
        for batch in source.evaluate(split, Share(8)):
            assert batch["label"].max() < len(source.info.class_names)


def _write_image(folder: Path, *, format: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010E: "a cup", 0x011A: 72.0})
    exif.get_ifd(0x8769).update({0x9003: "1931:05:01 00:00:00", 0x829A: 0.25})
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(folder / f"photo.{format}", format, exif=exif, icc_profile=profile)


def _read_and_write_image(folder: Path, *, format: str) -> None:
    photo = read_photo(folder / f"photo.{format}", max_pixels=10_000)
    assert photo.pixels.dtype in (np.uint8, np.uint16)
    for written in ("TIFF", "JPEG", "PNG", "WEBP"):  # its metadata go along
        write_photo(photo.pixels, photo, io.BytesIO(), format=written)


def _read_as_in_training(folder: Path, *, format: str) -> None:
    import tensorflow as tf

    from colorjax.data.photos import decode_photo

    file = (folder / f"photo.{format}").read_bytes()
    try:
        pixels = decode_photo(tf.constant(file), resolution=8).numpy()
    except tf.errors.OpError as error:  # which masks the photo
        raise ValueError("it does not decode") from error
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8


def _read_keyframe(folder: Path) -> None:
    try:
        keyframe = keyframes.read(os.fsdecode((folder / "argument").read_bytes()))
    except (OSError, ValueError) as error:
        raise ValueError(one_line(error)) from error  # as the command does
    assert keyframe.seconds is None or 0 <= keyframe.seconds < 1e6


def _read_features(folder: Path) -> None:
    teacher = Teacher(folder / "teacher.npy", photos=5)
    assert np.isfinite(teacher[np.arange(5)]).all()


def _read_records(folder: Path) -> None:
    has_validation(folder / "metrics.jsonl", 2)
    for record in read_records(folder / "metrics.jsonl"):
        json.dumps(record)
        assert isinstance(record["step"] <= 2, bool)


_READERS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    # What is damaged: its file, how the folder is written and read.
    "safetensors": (SAFETENSORS, lambda folder: _write_tensors(folder, format="safetensors"), portable.read_tensors),
    "a shard": (
        "model-00001-of-00003.safetensors",
        lambda folder: _write_tensors(folder, format="safetensors", size=1),
        portable.read_tensors,
    ),
    "index": (INDEX, lambda folder: _write_tensors(folder, format="safetensors", size=1), portable.read_tensors),
    "npz": (NPZ, lambda folder: _write_tensors(folder, format="npz"), portable.read_tensors),
    "config": (
        "config.json",
        lambda folder: workdir.save_config(quickstart.get_config(), folder),
        workdir.load_config,
    ),
    "classes": (
        "classes.json",
        lambda folder: workdir.save_class_names(folder, ("pear", "plum")),
        workdir.load_class_names,
    ),
    "prior": (
        "prior.npz",
        lambda folder: Prior(np.full(color.NUM_BINS, 1 / color.NUM_BINS), np.zeros(2), photos=3, source="three").save(
            folder / "prior.npz"
        ),
        lambda folder: Prior.load(folder / "prior.npz"),
    ),
    "records": (
        "metrics.jsonl",
        lambda folder: (folder / "metrics.jsonl").write_text(
            "".join(f'{{"step": {step}, "split": "train", "loss": 1.5}}\n' for step in (1, 2, 3))
        ),
        _read_records,
    ),
    "teacher's features": (
        "teacher.npy",
        lambda folder: np.save(folder / "teacher.npy", np.eye(5, 3, dtype=np.float16)),
        _read_features,
    ),
    "judge's weights": (
        "lpips.npz",
        lambda folder: weights.write_npz(folder / "lpips.npz", _TREE["a"]),
        lambda folder: weights.read_npz(folder / "lpips.npz", remedy="convert them again"),
    ),
    "point on the command line": (
        "argument",
        lambda folder: (folder / "argument").write_text("12,7,#3060a0"),
        lambda folder: points.parse(os.fsdecode((folder / "argument").read_bytes())),
    ),
    "keyframe on the command line": (
        "argument",
        lambda folder: (
            _write_image(folder, format="png"),
            (folder / "argument").write_text(f"{folder}/photo.png@12.5"),
        ),
        _read_keyframe,
    ),
    "color points": (
        "points.json",
        lambda folder: (folder / "points.json").write_text('{"a.jpg": [[12, 7, "#3060a0"]], "b.jpg": []}'),
        lambda folder: points.read(folder / "points.json"),
    ),
    **{
        f"photo, {format}": (
            f"photo.{format}",
            functools.partial(_write_image, format=format),
            functools.partial(_read_and_write_image, format=format),
        )
        for format in ("jpeg", "png", "tiff", "webp")
    },
    **{
        f"training photo, {format}": (
            f"photo.{format}",
            functools.partial(_write_image, format=format),
            functools.partial(_read_as_in_training, format=format),
        )
        for format in ("jpeg", "png")
    },
    **{
        f"pack's {name}": (name, _write_pack, _read_pack)
        for name in ("meta.json", "test.images.npy", "test.labels.npy", "test.crc32.npy")
    },
}


def _damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Anything at all, any JSON, or the content with some bytes changed, dropped or put in."""

    def change(places: list[tuple[int, int, int]]) -> bytes:
        changed = bytearray(content)
        for place, value, kind in places:
            place %= max(len(changed), 1)
            changed[place : place + (kind != 1)] = bytes([value] * (kind != 2))
        return bytes(changed)

    place = st.integers(0, min(len(content), 400) - 1) | st.integers(0, len(content) - 1)
    return st.one_of(
        st.binary(max_size=300),
        _JSON.map(lambda value: json.dumps(value).encode()),
        st.integers(0, len(content)).map(lambda end: content[:end]),
        st.lists(st.tuples(place, st.integers(0, 255), st.integers(0, 2)), min_size=1, max_size=6).map(change),
        st.integers(1, 200_000).map(lambda depth: b"[" * depth),
    )


def _refusal(read: Callable[[Path], object], folder: Path) -> str | None:
    try:
        read(folder)
    except (ValueError, FileNotFoundError) as error:
        if type(error) not in (ValueError, FileNotFoundError):
            raise  # a library's own
        return str(error)
    return None


# COLORJAX_FUZZ says how many inputs a reader gets in the slow form; 10000 are the long form, an hour or more.
MANY = int(os.environ.get("COLORJAX_FUZZ", "1000"))


@pytest.mark.parametrize(
    "examples", [60, pytest.param(MANY, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("reader", _READERS)
def test_damaged_files_are_refused_in_one_line_or_read(reader: str, examples: int, tmp_path: Path) -> None:
    name, write, read = _READERS[reader]
    write(tmp_path)
    read(tmp_path)
    file = tmp_path / name
    good = file.read_bytes()

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    @hypothesis.given(_damaged(good))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        if message := _refusal(read, tmp_path):
            assert message.isprintable(), message
            assert len(message.replace(str(tmp_path), "")) <= 300, message

    check()
