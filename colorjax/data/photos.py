"""Photo files through tf.data: Food-101 and folders. TensorFlow is imported here only.

An example stays a file, its bytes or its path, while it is shuffled, skipped and shared out among the processes; each
process decodes its own share alone.
"""

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from colorjax.data.batches import SPLITS, Batch, DatasetInfo, Share
from colorjax.data.errors import one_line
from colorjax.data.folder import list_folder

_log = logging.getLogger(__name__)

# TensorFlow would otherwise take the accelerator's memory from JAX.
tf.config.set_visible_devices([], "GPU")

Dataset = tf.data.Dataset
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Photos decoded as one unit of work; see _decode_chunk.
_CHUNK = 16


class PhotoSource:
    """A `Source` over photo files.

    Attributes:
        files: split -> its examples, undecoded.
    """

    def __init__(
        self,
        info: DatasetInfo,
        files: Callable[[str], Dataset],
        read: Callable[[tf.Tensor], tf.Tensor],
        *,
        resolution: int,
        shuffle_buffer: int,
        max_undecodable: float,
    ):
        """Args:
        info: name, classes and sizes.
        files: split -> examples {"file", "label", "id"}, always in the same order: a photo's file, its int64 class
            and its name.
        read: what "file" holds -> the bytes of a photo.
        resolution: S, the side in pixels that every photo is decoded to.
        shuffle_buffer: undecoded examples that training shuffles among.
        max_undecodable: the largest share of a split's photos that may not decode, 0…1.
        """
        self.info = info
        self.undecodable: list[str] = []
        self.files = files
        self._read = read
        self._resolution = resolution
        self._shuffle_buffer = shuffle_buffer
        self._max_undecodable = max_undecodable

    def train(self, share: Share, *, seed: int, start_step: int) -> Iterator[Batch]:
        files = self.files("train")
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
        return self._batches(stream, share, "train", size=self.info.sizes["train"])

    def evaluate(self, split: str, share: Share) -> Iterator[Batch]:
        size = self.info.sizes[split]
        padding = Dataset.from_tensors(
            {"file": tf.constant(b""), "label": tf.constant(0, tf.int64), "id": tf.constant(b"")}
        ).repeat(share.steps(size) * share.batch_size - size)
        files = self.files(split).concatenate(padding)
        return self._batches(files, share, split, size=-(-size // share.process_count))

    def _batches(self, files: Dataset, share: Share, split: str, *, size: int) -> Iterator[Batch]:
        """Batches of one process; `size` is the number of different photos among them."""
        failed: set[bytes] = set()
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
                if name and name not in failed:
                    failed.add(name)
                    self._report(name.decode(errors="backslashreplace"))
            if len(failed) > self._max_undecodable * size or len(failed) == size:
                raise ValueError(
                    f"{len(failed)} of the {size} {split} photos of {self.info.name} do not decode, such as "
                    f"{one_line(self.undecodable[-1])}: mend or remove them, or raise config.data.max_undecodable "
                    f"({self._max_undecodable})"
                )
            yield Batch(image=batch["image"], label=batch["label"], mask=batch["mask"])

    def _decode_chunk(self, files: dict[str, tf.Tensor]) -> Dataset:
        """A data set of one element: the decoded chunk, with blanks for the photos that do not decode.

        tf.data can drop an element that fails, but not replace it. So the whole chunk is tried first, and one photo
        at a time if that fails. A nested data set for every photo would be simpler, and costs a third of the speed at
        256 pixels and more at 64.
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
            lambda: decode_photo(self._read(example["file"]), resolution=self._resolution),
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
            _log.warning(
                "Photo %s does not decode: its place stays, masked (%d such photos so far)",
                one_line(name, limit=1000),
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
    directory: str,
    *,
    resolution: int,
    train_fraction: float,
    shuffle_buffer: int,
    max_undecodable: float,
    download: bool,
) -> PhotoSource:
    """Opens TFDS's Food-101.

    Args:
        directory: TFDS's data_dir; "" for its default, ~/tensorflow_datasets.
        resolution: S, in pixels.
        train_fraction: share of the official training split that trains; the rest validates.
        shuffle_buffer: undecoded examples that training shuffles among.
        max_undecodable: the largest share of a split's photos that may not decode, 0…1.
        download: whether to download and prepare the data set if it is not there.

    Raises:
        FileNotFoundError: if it is not there and `download` is false.
        ValueError: if a split holds no photo.
    """
    builder: Any = tfds.builder("food101", data_dir=directory or None)
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
    splits = {"train": f"train[:{cut}]", "validation": f"train[{cut}:]", "test": "validation"}

    def files(split: str) -> Dataset:
        # TFDS shuffled the examples when it wrote them, so neighbors are unrelated.
        examples = builder.as_dataset(
            split=splits[split],
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(try_autocache=False, add_tfds_id=True),
        )
        return examples.map(lambda x: {"file": x["image"], "label": x["label"], "id": x["tfds_id"]})

    sizes = {split: builder.info.splits[expression].num_examples for split, expression in splits.items()}
    return PhotoSource(
        DatasetInfo("food101", tuple(builder.info.features["label"].names), sizes),
        files,
        tf.identity,
        resolution=resolution,
        shuffle_buffer=shuffle_buffer,
        max_undecodable=max_undecodable,
    )


def open_folder(
    directory: str, *, resolution: int, train_fraction: float, shuffle_buffer: int, max_undecodable: float
) -> PhotoSource:
    """Opens a folder of JPEG and PNG files; see `list_folder` for its layout.

    Args:
        directory: the folder.
        resolution: S, in pixels.
        train_fraction: share of the training photos that trains; the rest validates.
        shuffle_buffer: undecoded examples that training shuffles among.
        max_undecodable: the largest share of a split's photos that may not decode, 0…1.

    Raises:
        FileNotFoundError, ValueError: as `list_folder`.
    """
    name, listed = list_folder(directory, train_fraction=train_fraction)
    class_names = sorted({name for classes in listed.values() for name in classes})

    def files(split: str) -> Dataset:
        photos = [(label, photo) for label, name in enumerate(class_names) for photo in listed[split].get(name, [])]
        random.Random(split).shuffle(photos)  # so that neighbors are unrelated
        examples = {
            "file": tf.constant([photo.file for _, photo in photos]),
            "label": tf.constant([label for label, _ in photos], tf.int64),
            "id": tf.constant([photo.name for _, photo in photos]),
        }
        return Dataset.from_tensor_slices(examples)  # pyright: ignore[reportArgumentType]

    sizes = {split: sum(map(len, listed[split].values())) for split in SPLITS}
    return PhotoSource(
        DatasetInfo(name, tuple(class_names), sizes),
        files,
        tf.io.read_file,
        resolution=resolution,
        shuffle_buffer=shuffle_buffer,
        max_undecodable=max_undecodable,
    )
