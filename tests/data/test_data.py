"""Sources of photographs: what they yield, in which order, and what they refuse."""

import io
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import skimage.metrics
import skimage.transform
from ml_collections import ConfigDict
from PIL import Image

from colorjax import data
from colorjax.data.sample import crop_boxes

SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_food101 = pytest.mark.skipif(not (SHARED / "food101_256").is_dir(), reason="no Food-101 photos in ../shared")


def make_config(source: str, directory: Path | str = "", **fields: Any) -> ConfigDict:
    defaults = {
        "source": source,
        "dir": str(directory),
        "resolution": 16,
        "train_fraction": 0.8,
        "shuffle_buffer": 6,
        "max_undecodable": 0.2,
        "download": False,
    }
    return ConfigDict(defaults | fields)


def save_photo(path: Path, number: int, *, side: int = 16) -> None:
    """A photo that its mean gray tells from the others, saved as its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (number, number, number)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 17 training and 5 test photos each: 28 train, 6 validate, 10 test."""
    root = tmp_path / "photos"
    for number in range(44):
        split = "train" if number < 34 else "test"
        class_name = ("pear", "plum")[number % 2]
        save_photo(root / split / class_name / f"{number}.png", number * 5)
    return root


def take(config: ConfigDict, count: int, **arguments: Any) -> list[data.Batch]:
    arguments = {"batch_size": 6, "seed": 1} | arguments
    return list(itertools.islice(data.train_batches(config, **arguments), count))


def assert_same(first: list[data.Batch], second: list[data.Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for key in ("image", "label", "mask"):
            np.testing.assert_array_equal(one[key], other[key])


def join(shares: list[list[data.Batch]]) -> list[data.Batch]:
    """What several processes read, as one process would have."""
    return [
        data.Batch(
            image=np.concatenate([batch["image"] for batch in batches]),
            label=np.concatenate([batch["label"] for batch in batches]),
            mask=np.concatenate([batch["mask"] for batch in batches]),
        )
        for batches in zip(*shares, strict=True)
    ]


def stack(batches: list[data.Batch]) -> data.Batch:
    return data.Batch(
        image=np.concatenate([batch["image"] for batch in batches]),
        label=np.concatenate([batch["label"] for batch in batches]),
        mask=np.concatenate([batch["mask"] for batch in batches]),
    )


@pytest.fixture(params=["folder", "sample"])
def config(request: pytest.FixtureRequest) -> ConfigDict:
    if request.param == "folder":
        return make_config("folder", request.getfixturevalue("folder"))
    return make_config("sample")


def test_batches_have_the_promised_types_and_ranges(config: ConfigDict) -> None:
    info = data.dataset_info(config)
    for batch in [take(config, 1)[0], next(data.eval_batches(config, "test", batch_size=6))]:
        assert batch["image"].shape == (6, 16, 16, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        assert batch["mask"].dtype == np.float32
        assert set(batch["label"]) <= set(range(len(info.class_names)))
        assert (batch["mask"] == 1).all()


# 28 and 359 training photos: a step within the first epoch, one at a border, one in a later epoch.
@pytest.mark.parametrize("start_step", [0, 2, 14, 130])
def test_stream_resumes_at_any_step_bit_for_bit(config: ConfigDict, start_step: int) -> None:
    uninterrupted = take(config, start_step + 7)
    assert_same(uninterrupted[start_step:], take(config, 7, start_step=start_step))


def test_order_depends_on_the_seed_and_changes_with_the_epoch(folder: Path) -> None:
    config = make_config("folder", folder)
    epochs = stack(take(config, 14, batch_size=4))["image"][:, 0, 0, 0].reshape(2, 28)
    assert (epochs[0] != epochs[1]).any()
    other = stack(take(config, 7, batch_size=4, seed=2))["image"][:, 0, 0, 0]
    assert (epochs[0] != other).any()


def test_every_photo_once_an_epoch_though_batches_cross_its_border(folder: Path) -> None:
    photos = stack(take(make_config("folder", folder), 14))["image"][:, 0, 0, 0]
    epochs = np.sort(photos.reshape(3, 28))
    assert len(set(epochs[0])) == 28
    np.testing.assert_array_equal(epochs[1], epochs[0])
    np.testing.assert_array_equal(epochs[2], epochs[0])


def test_epoch_of_an_array_source_is_a_permutation() -> None:
    config = make_config("sample")
    size = data.dataset_info(config).sizes["train"]
    epoch = next(data.train_batches(config, batch_size=size, seed=0))["image"]
    in_order = next(data.eval_batches(config, "train", batch_size=size))["image"]
    assert sorted(map(bytes, epoch)) == sorted(map(bytes, in_order))
    assert (epoch != in_order).any()


@pytest.mark.parametrize("process_count", [2, 3])
def test_process_shares_make_up_the_single_process_batch(config: ConfigDict, process_count: int) -> None:
    shares = [
        take(config, 8, start_step=3, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    assert_same(join(shares), take(config, 8, start_step=3))


@pytest.mark.parametrize("process_count", [1, 2, 3])
def test_evaluation_sees_every_photo_once_over_all_processes(folder: Path, process_count: int) -> None:
    config = make_config("folder", folder)
    shares = [
        list(data.eval_batches(config, "test", batch_size=6, process_index=index, process_count=process_count))
        for index in range(process_count)
    ]
    assert {len(share) for share in shares} == {2}
    batches = stack(join(shares))
    assert len(batches["mask"]) == 12
    photos = batches["image"][batches["mask"] == 1][:, 0, 0, 0]
    assert sorted(photos) == [number * 5 for number in range(34, 44)]
    # Class 0 has the even numbers.
    np.testing.assert_array_equal(photos // 5 % 2, batches["label"][batches["mask"] == 1])


def test_a_process_reads_only_the_files_of_its_share(folder: Path) -> None:
    config = make_config("folder", folder)

    def photos(process: int) -> list[int]:
        batches = data.eval_batches(config, "test", batch_size=6, process_index=process, process_count=2)
        batch = stack(list(batches))
        return [int(value) for value in batch["image"][batch["mask"] == 1][:, 0, 0, 0]]

    mine, others = photos(0), photos(1)
    for value in others:
        (file,) = folder.glob(f"test/*/{value // 5}.png")
        file.write_bytes(b"not a photo")
    assert photos(0) == mine
    with pytest.raises(ValueError, match="do not decode"):
        photos(1)


def test_evaluation_of_the_sample_pads_its_last_batch() -> None:
    config = make_config("sample")
    size = data.dataset_info(config).sizes["validation"]
    shares = [
        list(data.eval_batches(config, "validation", batch_size=8, process_index=index, process_count=2))
        for index in range(2)
    ]
    assert len(shares[0]) == len(shares[1]) == -(-size // 8)
    mask = stack(join(shares))["mask"]
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < size)


# The sample.


def test_sample_is_a_few_hundred_crops_of_eight_classes() -> None:
    info = data.dataset_info(make_config("sample"))
    assert info.name == "sample"
    assert len(info.class_names) == 8
    assert 200 <= info.sizes["train"] <= 1000
    for split in ("validation", "test"):
        batch = next(data.eval_batches(make_config("sample"), split, batch_size=info.sizes[split]))
        assert set(batch["label"]) == set(range(8))


@pytest.mark.parametrize(("width", "height"), [(451, 300), (512, 512), (1000, 872)])
def test_no_sample_split_touches_the_pixels_of_another(width: int, height: int) -> None:
    covered = {}
    for split in ("train", "validation", "test"):
        covered[split] = np.zeros((height, width), bool)
        for left, upper, right, lower in crop_boxes(split, width=width, height=height):
            assert 0 <= left < right <= width
            assert 0 <= upper < lower <= height
            assert right - left == lower - upper
            covered[split][upper:lower, left:right] = True
    assert np.sum(list(covered.values()), axis=0).max() == 1
    assert covered["train"].mean() > 0.6


def test_sample_crop_shows_the_photograph() -> None:
    config = make_config("sample", resolution=48)
    image = next(data.eval_batches(config, "train", batch_size=1))["image"][0]
    box = next(crop_boxes("train", width=512, height=512))
    region = skimage.data.astronaut()[box[1] : box[3], box[0] : box[2]]
    expected = skimage.transform.resize(region, (48, 48), anti_aliasing=True) * 255
    assert skimage.metrics.peak_signal_noise_ratio(expected, image, data_range=255) > 30


# Folders.


def test_folder_with_train_and_test(folder: Path) -> None:
    info = data.dataset_info(make_config("folder", folder))
    assert info == data.DatasetInfo("photos", ("pear", "plum"), {"train": 28, "validation": 6, "test": 10})


@pytest.mark.parametrize("name", ["validation", "val"])
def test_single_official_validation_folder_is_the_test_split(folder: Path, name: str) -> None:
    (folder / "test").rename(folder / name)
    assert data.dataset_info(make_config("folder", folder)).sizes == {
        "train": 28,
        "validation": 6,
        "test": 10,
    }


def test_folder_with_all_three_splits_keeps_them(folder: Path) -> None:
    save_photo(folder / "validation" / "pear" / "v.png", 250)
    config = make_config("folder", folder)
    assert data.dataset_info(config).sizes == {"train": 34, "validation": 1, "test": 10}
    batch = next(data.eval_batches(config, "validation", batch_size=1))
    assert (batch["image"] == 250).all()


def test_flat_folder_is_split_class_by_class_and_moving_it_changes_nothing(tmp_path: Path) -> None:
    for number in range(20):
        save_photo(tmp_path / "flat" / ("a", "b")[number % 2] / f"{number}.png", number * 10)
    config = make_config("folder", tmp_path / "flat")
    sizes = data.dataset_info(config).sizes
    assert sizes == {"train": 12, "validation": 4, "test": 4}

    def photos(config: ConfigDict) -> dict[str, list[int]]:
        return {
            split: next(data.eval_batches(config, split, batch_size=size))["image"][:, 0, 0, 0].tolist()
            for split, size in sizes.items()
        }

    before = photos(config)
    assert sorted(itertools.chain(*before.values())) == [number * 10 for number in range(20)]
    assert {value // 10 % 2 for value in before["test"]} == {0, 1}
    (tmp_path / "flat").rename(tmp_path / "moved")
    assert photos(make_config("folder", tmp_path / "moved")) == before


def test_folder_reads_any_photo_name_and_passes_over_other_files(tmp_path: Path) -> None:
    root = tmp_path / "fotos"
    for number, name in enumerate(["A.JPG", "b.Jpeg", "crème brûlée 寿司.PNG", "d #1%.jpg", "e.png"]):
        save_photo(root / "苺 & süß" / name, number * 10)
    for name in ("notes.txt", ".hidden.jpg", "list.csv"):
        (root / "苺 & süß" / name).write_text("no photo")
    (root / ".thumbnails").mkdir()
    save_photo(root / ".thumbnails" / "x.jpg", 0)
    (root / "empty").mkdir()
    info = data.dataset_info(make_config("folder", root))
    assert info.class_names == ("苺 & süß",)
    assert info.sizes == {"train": 3, "validation": 1, "test": 1}
    for split in info.sizes:
        for batch in data.eval_batches(make_config("folder", root), split, batch_size=1):
            assert batch["mask"] == 1


# Decoding.


def encode(photo: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, format, **options)
    return file.getvalue()


def decode(file: bytes, resolution: int) -> np.ndarray:
    from colorjax.data.photos import decode_photo

    return np.asarray(decode_photo(file, resolution=resolution))  # pyright: ignore


def centre_square(photo: Image.Image) -> Image.Image:
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    return photo.crop((left, top, left + side, top + side))


def psnr(image: np.ndarray, photo: Image.Image) -> float:
    with np.errstate(divide="ignore"):  # equal images have an infinite ratio
        return skimage.metrics.peak_signal_noise_ratio(np.asarray(photo), image, data_range=255)


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket"])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_decoding_agrees_with_pil(name: str, format: str) -> None:
    photo = Image.fromarray(getattr(skimage.data, name)())
    for upright in (photo, photo.transpose(Image.Transpose.ROTATE_90)):
        file = encode(upright, format)
        reference = centre_square(Image.open(io.BytesIO(file)))
        np.testing.assert_array_equal(decode(file, reference.width), np.asarray(reference))
        for side in (64, 128, 224):
            shrunk = reference.resize((side, side), Image.Resampling.LANCZOS)
            triangle = reference.resize((side, side), Image.Resampling.BILINEAR)
            assert psnr(decode(file, side), shrunk) > 34
            # Closer to the best filter than the usual one is.
            assert psnr(decode(file, side), shrunk) > psnr(np.asarray(triangle), shrunk)
            mean = decode(file, side).mean((0, 1)) - np.asarray(reference).mean((0, 1))
            assert abs(mean).max() < 0.5
        enlarged = reference.resize((512, 512), Image.Resampling.BILINEAR)
        assert psnr(decode(file, 512), enlarged) > 45


def test_gray_photos_become_three_equal_channels() -> None:
    gray = Image.fromarray(skimage.data.chelsea()).convert("L").crop((0, 0, 96, 96))
    for file in (encode(gray, "JPEG", quality=95), encode(gray, "PNG")):
        image = decode(file, 96)
        assert (image == image[..., :1]).all()
        assert psnr(image, gray.convert("RGB")) > 35


def test_transparent_png_lies_on_white() -> None:
    photo = Image.fromarray(skimage.data.chelsea()).crop((0, 0, 64, 64))
    alpha = Image.linear_gradient("L").resize((64, 64))
    photo.putalpha(alpha)
    expected = Image.new("RGBA", (64, 64), "white")
    expected.alpha_composite(photo)
    difference = decode(encode(photo, "PNG"), 64).astype(int) - np.asarray(expected.convert("RGB"))
    assert abs(difference).max() <= 1


def test_palette_and_16_bit_png() -> None:
    photo = Image.fromarray(skimage.data.coffee()).crop((0, 0, 64, 64))
    palette = photo.quantize(32)
    np.testing.assert_array_equal(decode(encode(palette, "PNG"), 64), np.asarray(palette.convert("RGB")))
    gray = np.asarray(photo.convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode(encode(deep, "PNG"), 64)[..., 0], gray)


@pytest.mark.parametrize("format", ["GIF", "BMP", "WEBP"])
def test_file_of_another_format_is_read_for_what_it_is(format: str) -> None:
    photo = Image.new("RGB", (40, 30), (0, 102, 204))
    image = decode(encode(photo, format), 16)
    assert abs(image.astype(int) - (0, 102, 204)).max() <= 4


# Undecodable photos.


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, Path, dict[str, Callable[[bytes], bytes]]]:
    """A folder of 40 training JPEG photos, a damaged copy of it, and what was damaged how."""
    whole = tmp_path / "whole"
    photo = Image.fromarray(skimage.data.chelsea())
    for number in range(40):
        for split in ("train", "test"):
            path = whole / split / ("a", "b")[number % 2] / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo.crop((number * 5, number, number * 5 + 64, number + 64)).save(path)
    damage: dict[str, Callable[[bytes], bytes]] = {
        "a/04.jpg": lambda file: file[: len(file) // 2],
        "b/05.jpg": lambda file: file[:-20],
        "a/18.jpg": lambda file: b"",
        "b/37.jpg": lambda file: b"<html>404 not found</html>",
    }
    copy = tmp_path / "damaged"
    shutil.copytree(whole, copy)
    for split in ("train", "test"):
        for name, change in damage.items():
            path = copy / split / name
            path.write_bytes(change(path.read_bytes()))
    return whole, copy, damage


def test_undecodable_photos_keep_their_place_and_are_named(
    damaged: tuple[Path, Path, dict], caplog: pytest.LogCaptureFixture
) -> None:
    whole, copy, damage = damaged
    batches = [
        stack(list(data.eval_batches(make_config("folder", root), "test", batch_size=6))) for root in (whole, copy)
    ]
    masked = batches[1]["mask"] == 0
    assert masked.sum() == len(damage) + 2  # 40 photos in batches of 6 need 2 rows of padding
    assert (batches[1]["image"][masked] == 0).all()
    np.testing.assert_array_equal(batches[1]["label"], batches[0]["label"])
    np.testing.assert_array_equal(batches[1]["image"][~masked], batches[0]["image"][~masked])
    for name in damage:
        assert caplog.text.count(str(copy / "test" / name)) == 1
    assert "4 such photos so far" in caplog.text
    assert str(whole) not in caplog.text


def test_undecodable_photos_in_training_are_named_once_and_resume_exactly(
    damaged: tuple[Path, Path, dict], caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config("folder", damaged[1])
    # 32 training photos: three epochs.
    uninterrupted = take(config, 16)
    names = [record.getMessage() for record in caplog.records if "decode" in record.getMessage()]
    masked = int((stack(uninterrupted)["mask"] == 0).sum())
    assert masked == 3 * len(names) > 0
    assert_same(uninterrupted[5:], take(config, 11, start_step=5))
    shares = [take(config, 16, process_index=index, process_count=2) for index in range(2)]
    assert_same(uninterrupted, join(shares))


def spoil(folder: Path) -> list[Path]:
    """Puts what has a photo's name and is none into a folder, as many things as there are."""
    (folder / "to_nowhere.jpg").symlink_to(folder / "nothing")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "null.jpg").symlink_to("/dev/null")
    return [folder / f"{name}.jpg" for name in ("to_nowhere", "loop", "folder", "pipe", "null")]


def test_what_is_no_file_is_masked_like_any_other_bad_photo(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = spoil(folder / "test" / "pear")
    config = make_config("folder", folder, max_undecodable=0.5)
    assert data.dataset_info(config).sizes["test"] == 10 + len(bad)
    batch = next(data.eval_batches(config, "test", batch_size=10 + len(bad)))
    assert sorted(batch["image"][batch["mask"] == 1][:, 0, 0, 0]) == [number * 5 for number in range(34, 44)]
    assert (batch["label"][batch["mask"] == 0] == 0).all()
    for path in bad:
        assert caplog.text.count(f"{path} does not decode") == 1


def test_a_photo_that_vanishes_is_masked(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = data.eval_batches(make_config("folder", folder), "test", batch_size=10)
    (folder / "test" / "plum" / "35.png").unlink()
    assert next(batches)["mask"].sum() == 9
    assert "35.png does not decode" in caplog.text


def test_a_name_that_is_not_utf8(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo = folder / "test" / "pear" / os.fsdecode(b"\xff.png")
    photo.write_bytes(b"")
    batches = list(data.eval_batches(make_config("folder", folder), "test", batch_size=11))
    assert stack(batches)["mask"].sum() == 10
    assert "\\xff.png does not decode" in caplog.text
    (folder / "test" / "pear").rename(folder / "test" / os.fsdecode(b"p\xe4r"))
    with pytest.raises(ValueError, match=r"test/p\\xe4r' is not named in UTF-8: rename it"):
        data.dataset_info(make_config("folder", folder))


@pytest.mark.parametrize("limit", [0.29, 1.0])
def test_too_many_bad_photos_end_the_run(folder: Path, limit: float) -> None:
    photos = sorted((folder / "test").rglob("*.png"))
    for photo in photos if limit == 1 else photos[:3]:
        photo.write_bytes(b"")
    config = make_config("folder", folder, max_undecodable=limit)
    with pytest.raises(ValueError, match=r"(3|10) of the 10 test photos of photos do not decode, .*max_undecodable"):
        list(data.eval_batches(config, "test", batch_size=5))
    if limit < 1:
        config.max_undecodable = 0.3
        assert len(list(data.eval_batches(config, "test", batch_size=5))) == 2


def test_too_many_bad_photos_end_the_training(folder: Path) -> None:
    for photo in (folder / "train").rglob("*.png"):
        photo.write_bytes(b"")
    with pytest.raises(ValueError, match=r"\d+ of the 28 train photos of photos do not decode"):
        take(make_config("folder", folder), 5)


# Food-101.


@needs_food101
def test_food101_splits_the_official_training_photos() -> None:
    import tensorflow_datasets as tfds

    config = make_config("food101", SHARED / "food101_256", resolution=64)
    info = data.dataset_info(config)
    assert info.name == "food101"
    assert len(info.class_names) == 101
    assert info.class_names[0] == "apple_pie"
    assert info.sizes == {"train": 2290, "validation": 572, "test": 365}
    builder: Any = tfds.builder("food101", data_dir=str(SHARED / "food101_256"))
    official = [
        int(example["label"])
        for example in builder.as_dataset(
            split="train", decoders={"image": tfds.decode.SkipDecoding()}
        ).as_numpy_iterator()
    ]
    ours = [stack(list(data.eval_batches(config, split, batch_size=286))) for split in ("train", "validation")]
    labels = np.concatenate([batches["label"][batches["mask"] == 1] for batches in ours])
    assert sorted(labels) == sorted(official)
    images = [bytes(image) for batches in ours for image in batches["image"][batches["mask"] == 1]]
    assert len(set(images)) == len(images)


@needs_food101
def test_food101_photos_agree_with_pil() -> None:
    import tensorflow_datasets as tfds

    config = make_config("food101", SHARED / "food101_256", resolution=128)
    batch = next(data.eval_batches(config, "test", batch_size=32))
    builder: Any = tfds.builder("food101", data_dir=str(SHARED / "food101_256"))
    raw = builder.as_dataset(split="validation", decoders={"image": tfds.decode.SkipDecoding()})
    for image, label, example in zip(batch["image"], batch["label"], raw.as_numpy_iterator(), strict=False):
        photo = centre_square(Image.open(io.BytesIO(example["image"])).convert("RGB"))
        assert psnr(image, photo.resize((128, 128), Image.Resampling.LANCZOS)) > 30
        assert label == example["label"]


@needs_food101
def test_food101_stream_resumes_and_is_shared_exactly() -> None:
    config = make_config("food101", SHARED / "food101_256", resolution=32, shuffle_buffer=512, train_fraction=0.1)
    # 286 photos, so step 12 of 24 is in the second epoch.
    uninterrupted = take(config, 16, batch_size=24)
    assert_same(uninterrupted[13:], take(config, 3, batch_size=24, start_step=13))
    shares = [take(config, 4, batch_size=24, start_step=12, process_index=index, process_count=3) for index in range(3)]
    assert_same(uninterrupted[12:], join(shares))


def test_food101_that_is_not_prepared_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"(?s)dir=.*download=true.*about 5 GB"):
        data.dataset_info(make_config("food101", tmp_path))


def test_food101_without_photos_is_refused(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    builder = tfds.builder("food101", data_dir=str(tmp_path))
    Path(builder.data_dir).mkdir(parents=True)
    splits = [
        tfds.core.SplitInfo(name=name, shard_lengths=[], num_bytes=0, filename_template=None)
        for name in ("train", "validation")
    ]
    builder.info.set_splits(type(builder.info.splits)(splits))
    builder.info.write_to_directory(builder.data_dir)
    with pytest.raises(ValueError, match="holds no photo"):
        data.dataset_info(make_config("food101", tmp_path))


# Refusals.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "imagenet"}, "source='imagenet'.*'food101'"),
        ({"resolution": 0}, "resolution=0"),
        ({"train_fraction": 1.0}, "train_fraction=1.0"),
        ({"shuffle_buffer": 0}, "shuffle_buffer=0"),
        ({"max_undecodable": 1.1}, "max_undecodable=1.1"),
    ],
)
def test_config_out_of_range_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.dataset_info(make_config(**({"source": "sample"} | fields)))


def test_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.dataset_info(make_config("folder", tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="dir=''"):
        data.dataset_info(make_config("folder", ""))
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "readme.txt").write_text("no photo")
    with pytest.raises(ValueError, match=r"no photo.*\.jpg"):
        data.dataset_info(make_config("folder", tmp_path))


def test_batch_that_does_not_divide_among_processes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=5.*2"):
        data.train_batches(make_config("sample"), batch_size=5, seed=0, process_count=2)
    with pytest.raises(ValueError, match="process_index=2"):
        data.eval_batches(make_config("sample"), "test", batch_size=4, process_index=2, process_count=2)


def test_unknown_split_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="split='valid'"):
        data.eval_batches(make_config("sample"), "valid", batch_size=4)
