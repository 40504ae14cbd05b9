"""Photo files through TFDS and tf.data: Food-101, and folders. TensorFlow is imported here only.

An example stays the bytes of its file while it is shuffled, skipped and shared out among the
processes; each process decodes its own share alone.
"""

import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from colorjax.data.batches import SPLITS, Batch, DatasetInfo, Share

# TensorFlow would otherwise take the accelerator's memory from JAX.
tf.config.set_visible_devices([], "GPU")

Dataset = tf.data.Dataset
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FOLDER_SUFFIXES = (".jpg", ".jpeg", ".png")
# Photos decoded as one unit of work; see _decode_chunk.
_CHUNK = 16


class PhotoSource:
    """A `Source` over a TFDS builder of {"image", "label"} examples."""

    def __init__(
        self,
        builder: Any,
        *,
        name: str,
        splits: dict[str, str],
        resolution: int,
        shuffle_buffer: int,
        keep: Any = None,
    ):
        """Opens the builder's splits.

        Args:
            builder: a TFDS builder, prepared.
            name: the data set's name.
            splits: TFDS split expression by our split name.
            resolution: S, the side in pixels that every photo is decoded to.
            shuffle_buffer: undecoded examples that training shuffles among.
            keep: what has to live as long as this source does.
        """
        sizes = {split: builder.info.splits[tfds_split].num_examples for split, tfds_split in splits.items()}
        self.info = DatasetInfo(name, tuple(builder.info.features["label"].names), sizes)
        self.undecodable: list[str] = []
        self._builder = builder
        self._splits = splits
        self._resolution = resolution
        self._shuffle_buffer = shuffle_buffer
        self._keep = keep

    def train(self, share: Share, *, seed: int, start_step: int) -> Iterator[Batch]:
        files = self._files("train")
        epoch, skip = divmod(start_step * share.batch_size, self.info.sizes["train"])

        def shuffle(epoch: tf.Tensor) -> Dataset:
            epoch_seed = tf.random.stateless_uniform(
                [], seed=tf.stack([seed, epoch]), minval=0, maxval=tf.int64.max, dtype=tf.int64
            )
            return files.shuffle(
                self._shuffle_buffer,
                seed=epoch_seed,  # pyright: ignore[reportArgumentType] (a tensor is fine)
                reshuffle_each_iteration=False,
            )

        stream = Dataset.range(epoch, tf.int64.max).flat_map(shuffle).skip(skip)
        return self._batches(stream, share)

    def evaluate(self, split: str, share: Share) -> Iterator[Batch]:
        size = self.info.sizes[split]
        padding = Dataset.from_tensors(
            {"image": tf.constant(b""), "label": tf.constant(0, tf.int64), "id": tf.constant(b"")}
        ).repeat(share.steps(size) * share.batch_size - size)
        return self._batches(self._files(split).concatenate(padding), share)

    def _files(self, split: str) -> Dataset:
        """Undecoded {"image", "label", "id"} examples, always in the same order."""
        # TFDS shuffled the examples when it wrote (or listed) them, so neighbors are unrelated.
        dataset = self._builder.as_dataset(
            split=self._splits[split],
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(try_autocache=False, add_tfds_id=True),
        )
        return dataset.map(
            lambda example: {
                "image": example["image"],
                "label": example["label"],
                "id": example["tfds_id" if "tfds_id" in example else "image/filename"],
            }
        )

    def _batches(self, files: Dataset, share: Share) -> Iterator[Batch]:
        if share.process_count > 1:
            rows = share.rows
            files = (
                files.batch(share.batch_size)
                .map(lambda batch: {key: column[rows] for key, column in batch.items()})
                .unbatch()
            )
        batches = (
            files.batch(_CHUNK)
            .interleave(self._decode_chunk, num_parallel_calls=tf.data.AUTOTUNE)
            .rebatch(share.local_size, drop_remainder=True)
            .prefetch(2)
        )
        options = tf.data.Options()
        options.deterministic = True
        for batch in batches.with_options(options).as_numpy_iterator():
            for name in batch["id"][batch["mask"] == 0]:
                if name:
                    self._report(name.decode())
            yield Batch(image=batch["image"], label=batch["label"], mask=batch["mask"])

    def _decode_chunk(self, files: dict[str, tf.Tensor]) -> Dataset:
        """One element: the chunk decoded, with blanks for the photos that do not decode.

        tf.data can drop an element that fails, but not replace it. So the whole chunk is tried,
        and one photo at a time if that fails: a nested data set for every photo would be simpler
        code, and costs a third of the speed at 256 pixels and more at 64.
        """
        examples = Dataset.from_tensor_slices(files)  # pyright: ignore[reportArgumentType]
        size = tf.size(files["id"], out_type=tf.int64)

        def decode_or_blank(example: dict[str, tf.Tensor]) -> Dataset:
            example_alone = Dataset.from_tensors(example)
            decoded = example_alone.map(self._decode).ignore_errors()
            return decoded.concatenate(example_alone.map(self._blank)).take(1)

        # drop_remainder: what is left of a chunk after a failure must not pass for the chunk.
        at_once = examples.map(self._decode).batch(size, drop_remainder=True).ignore_errors()
        one_by_one = examples.flat_map(decode_or_blank).batch(size)
        return at_once.concatenate(one_by_one).take(1)

    def _decode(self, example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        is_photo = example["id"] != b""
        blank = self._blank(example)
        image = tf.cond(
            is_photo,
            lambda: decode_photo(example["image"], resolution=self._resolution),
            lambda: blank["image"],
        )
        return blank | {"image": image, "mask": tf.cast(is_photo, tf.float32)}

    def _blank(self, example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {
            "image": tf.zeros([self._resolution, self._resolution, 3], tf.uint8),
            "label": tf.cast(example["label"], tf.int32),
            "mask": tf.constant(0.0),
            "id": example["id"],
        }

    def _report(self, name: str) -> None:
        if name not in self.undecodable:
            self.undecodable.append(name)
            logging.warning(
                "Photo %s does not decode: its place stays, masked (%d such photos so far)",
                name,
                len(self.undecodable),
            )


def decode_photo(file: tf.Tensor, *, resolution: int) -> tf.Tensor:
    """Decodes a photo, center-crops it to a square and resizes that.

    Shrinking averages the area that each new pixel covers: it keeps mean colors, comes closer
    to PIL's Lanczos filter than an antialiased triangle does, and takes half its time. A
    transparent PNG is laid over white.

    Args:
        file: string scalar, the bytes of a JPEG or PNG file, gray or color.
        resolution: S, in pixels.

    Returns:
        uint8 [S, S, 3], sRGB.

    Raises:
        tf.errors.InvalidArgumentError: if the file is truncated or no image.
    """

    def decode_png() -> tf.Tensor:
        rgba = tf.cast(tf.io.decode_png(file, channels=4), tf.float32)
        alpha = rgba[..., 3:] / 255
        return tf.cast(tf.round(rgba[..., :3] * alpha + 255 * (1 - alpha)), tf.uint8)

    def decode_jpeg() -> tf.Tensor:
        # The default, INTEGER_FAST, is no faster and tints photos green: red and blue lose more
        # than 1 of 255 on average. INTEGER_ACCURATE is what PIL decodes, bit for bit.
        return tf.io.decode_jpeg(file, channels=3, dct_method="INTEGER_ACCURATE")

    image = tf.case(
        [
            (tf.io.is_jpeg(file), decode_jpeg),
            (tf.strings.substr(file, 0, len(_PNG_SIGNATURE)) == _PNG_SIGNATURE, decode_png),
        ],
        # Photos from the web carry .jpg in their names, whatever they are.
        default=lambda: tf.io.decode_image(file, channels=3, expand_animations=False),
    )
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.minimum(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]

    def resize(method: str) -> tf.Tensor:
        resized = tf.image.resize(image, [resolution, resolution], method=method)
        return tf.cast(tf.round(resized), tf.uint8)

    image = tf.case(
        [
            (side > resolution, lambda: resize("area")),
            (side < resolution, lambda: resize("bilinear")),
        ],
        default=lambda: image,
    )
    return tf.ensure_shape(image, [resolution, resolution, 3])


def open_food101(
    directory: str, *, resolution: int, train_fraction: float, shuffle_buffer: int, download: bool
) -> PhotoSource:
    """Opens TFDS's Food-101.

    Args:
        directory: TFDS's data_dir; "" for its default, ~/tensorflow_datasets.
        resolution: S, in pixels.
        train_fraction: share of the official training split that trains; the rest validates.
        shuffle_buffer: undecoded examples that training shuffles among.
        download: whether to download and prepare the data set if it is not there.

    Raises:
        FileNotFoundError: if it is not there and `download` is false.
        ValueError: if a split holds no photo.
    """
    builder = tfds.builder("food101", data_dir=directory or None)
    if not builder.is_prepared():
        if not download:
            raise FileNotFoundError(
                f"config.data.dir={directory!r} holds no prepared Food-101 ({builder.data_dir} is "
                "not there). Point config.data.dir at one, or pass --config.data.download=true "
                "to have TFDS fetch it: about 5 GB to download, and as much again on disk"
            )
        builder.download_and_prepare()
    for official in ("train", "validation"):
        if official not in builder.info.splits or not builder.info.splits[official].num_examples:
            raise ValueError(
                f"config.data.dir={directory!r}: split {official!r} of {builder.data_dir} holds "
                "no photo. Delete that folder and prepare Food-101 again "
                "(--config.data.download=true, about 5 GB)"
            )
    cut = round(train_fraction * builder.info.splits["train"].num_examples)
    return PhotoSource(
        builder,
        name="food101",
        splits={
            "train": f"train[:{cut}]",
            "validation": f"train[{cut}:]",
            "test": "validation",
        },
        resolution=resolution,
        shuffle_buffer=shuffle_buffer,
    )


def open_folder(directory: str, *, resolution: int, train_fraction: float, shuffle_buffer: int) -> PhotoSource:
    """Opens a folder of JPEG and PNG files through TFDS's ImageFolder.

    Two layouts are read: `directory/split/class/photo.jpg`, where `train` is required and `test`,
    `validation` or `val` may stand beside it; and `directory/class/photo.jpg`. What a layout
    lacks is cut from its training photos class by class, in the order of their names' checksums,
    which neither the machine nor a moved folder changes: the test split takes the last 20 %,
    then the validation split the last 1 - `train_fraction` of what remains. A single official
    `validation` or `val` is the test split, as Food-101's is.

    Args:
        directory: the folder.
        resolution: S, in pixels.
        train_fraction: share of the training photos that trains; the rest validates.
        shuffle_buffer: undecoded examples that training shuffles among.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no photo in either layout, or too few for three splits.
    """
    root = Path(directory).expanduser().resolve()
    if not directory or not root.is_dir():
        raise FileNotFoundError(
            f"config.data.dir={directory!r} is no folder: give one that holds class/photo.jpg or split/class/photo.jpg"
        )
    splits = _folder_splits(root, train_fraction=train_fraction)
    for split, classes in splits.items():
        if not any(classes.values()):
            raise ValueError(
                f"config.data.dir={directory!r}: no photo for the {split!r} split. The folder "
                f"must hold class/photo or train/class/photo and test/class/photo with files "
                f"named {', '.join(_FOLDER_SUFFIXES)}, several to a class"
            )
    # ImageFolder reads a folder that has our splits: one of links to the photos, numbered
    # because TFDS does not read every name that a file may have.
    view = tempfile.TemporaryDirectory(prefix="colorjax-folder-")
    for split, classes in splits.items():
        for class_name, photos in classes.items():
            folder = Path(view.name, split, class_name)
            folder.mkdir(parents=True)
            for number, photo in enumerate(photos):
                link = folder / f"{number:08}{photo.suffix}"
                link.symlink_to(photo)
    return _FolderSource(
        tfds.ImageFolder(view.name),
        name=root.name,
        splits={split: split for split in SPLITS},
        resolution=resolution,
        shuffle_buffer=shuffle_buffer,
        keep=view,
    )


class _FolderSource(PhotoSource):
    def _report(self, name: str) -> None:
        super()._report(str(Path(name).readlink()))


_Classes = dict[str, list[Path]]


def _folder_splits(root: Path, *, train_fraction: float) -> dict[str, _Classes]:
    """Photos by split and class."""
    official = {
        name: _photos_by_class(root / name) for name in ("train", "test", "validation", "val") if (root / name).is_dir()
    }
    if not any(official.get("train", {}).values()):
        official = {"train": _photos_by_class(root)}
    train = official["train"]
    held_out = [official[name] for name in ("test", "validation", "val") if name in official]
    if held_out:
        test = held_out[0]
    else:
        train, test = _cut(train, 0.8)
    if len(held_out) > 1:
        validation = held_out[1]
    else:
        train, validation = _cut(train, train_fraction)
    return {"train": train, "validation": validation, "test": test}


def _photos_by_class(root: Path) -> _Classes:
    classes = {}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            photos = [
                path
                for path in folder.iterdir()
                if path.suffix.lower() in _FOLDER_SUFFIXES and not path.name.startswith(".")
            ]
            if photos:
                classes[folder.name] = sorted(photos, key=_checksum_order)
    return classes


def _checksum_order(photo: Path) -> tuple[int, str]:
    return zlib.crc32(os.fsencode(photo.name)), photo.name


def _cut(classes: _Classes, fraction: float) -> tuple[_Classes, _Classes]:
    """The first `fraction` of every class, and the rest."""
    first, rest = {}, {}
    for name, photos in classes.items():
        cut = round(fraction * len(photos))
        first[name], rest[name] = photos[:cut], photos[cut:]
    return first, rest
