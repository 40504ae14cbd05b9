"""Photographs as batches of uint8 RGB, from Food-101, a folder, a pack, or the offline sample.

    train stream = function of (config.data, batch_size, seed, step)

Stopping at step k and starting again with `start_step=k` continues the same stream. The number of processes does not
change which photos are in a global batch.

`colorjax data` writes a pack: photos decoded once, for many epochs or runs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from colorjax.data.batches import MAX_UNDECODABLE, SPLITS, Batch, DatasetInfo, RowSource, Share, Source, center_crop
from colorjax.data.teacher import Teacher

__all__ = [
    "Batch",
    "DatasetInfo",
    "center_crop",
    "dataset_info",
    "eval_batches",
    "open_rows",
    "open_source",
    "open_teacher",
    "train_batches",
]

SOURCES = ("food101", "folder", "packed", "sample")


def dataset_info(data_config: ConfigDict) -> DatasetInfo:
    """Name, classes and split sizes of the data set.

    Raises:
        FileNotFoundError: if the data is not there.
        ValueError: if it cannot be used, or a config field is out of range.
    """
    return open_source(data_config).info


def train_batches(
    data_config: ConfigDict,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    teacher: Teacher | None = None,
) -> Iterator[Batch]:
    """Endless batches of the "train" split, reshuffled every epoch.

    Epochs follow each other without a gap: a batch may hold the end of one and the start of the
    next, so that every photo is seen once an epoch.

    Args:
        data_config: `config.data`.
        batch_size: photos in the global batch.
        seed: of the order, 0 or more.
        start_step: batches to pass over, without decoding them.
        process_index: which share of each batch to read.
        process_count: number of shares; process i gets rows i·B/P … (i+1)·B/P of the batch that
            a single process would get.
        teacher: see `open_teacher`; adds the features of each photo to the batches.

    Returns:
        An iterator over shares of batch_size / process_count rows. A photo that does not decode
        keeps its place with mask 0; the log names it once. If more than config.data.max_undecodable
        of the photos do not, or all of them, the iterator raises ValueError.

    Raises:
        FileNotFoundError, ValueError: as `dataset_info`, and if the processes do not divide the
            batch, or there is no training photo.
    """
    share = Share(batch_size, process_index, process_count)
    source = open_rows(data_config) if teacher else open_source(data_config)
    _check_split(source, "train", data_config)
    if isinstance(source, RowSource):
        source.teacher = teacher
    return source.train(share, seed=seed, start_step=start_step)


def eval_batches(
    data_config: ConfigDict,
    split: str,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """One pass over a split in a fixed order, every photo once over all processes.

    The last global batch is padded with rows of mask 0, so that every process gets equally many
    batches of equal size.

    Args:
        data_config: `config.data`.
        split: "train", "validation" or "test".
        batch_size: photos in the global batch.
        process_index: which share of each batch to read.
        process_count: number of shares.

    Raises:
        FileNotFoundError, ValueError: as `train_batches`, also while it is read.
    """
    share = Share(batch_size, process_index, process_count)
    source = open_source(data_config)
    _check_split(source, split, data_config)
    return source.evaluate(split, share)


def open_source(data_config: ConfigDict) -> Source:
    """Opens the source that `config.data` names; TensorFlow is imported for photo files only."""
    config: Any = data_config
    if config.source not in SOURCES:
        raise ValueError(f"config.data.source={config.source!r} is none of {', '.join(map(repr, SOURCES))}")
    if config.resolution < 1:
        raise ValueError(f"config.data.resolution={config.resolution} must be the side of a photo in pixels")
    if not 0 < config.train_fraction < 1:
        raise ValueError(
            f"config.data.train_fraction={config.train_fraction} must lie between 0 and 1: the "
            "share of the official training photos that trains, while the rest validates"
        )
    if config.shuffle_buffer < 1:
        raise ValueError(f"config.data.shuffle_buffer={config.shuffle_buffer} must be 1 or more examples")
    max_undecodable = config.get("max_undecodable", MAX_UNDECODABLE)
    if not 0 <= max_undecodable <= 1:
        raise ValueError(f"config.data.max_undecodable={max_undecodable} must lie between 0 and 1")
    if config.source == "sample":
        from colorjax.data.sample import open_sample

        return open_sample(resolution=config.resolution)
    if config.source == "packed":
        from colorjax.data.packed import open_pack

        return open_pack(config.dir, resolution=config.resolution, train_fraction=config.train_fraction)
    try:
        from colorjax.data.photos import open_folder, open_food101
    except ImportError as error:
        raise ImportError(
            f"config.data.source={config.source!r} needs TensorFlow and TensorFlow Datasets "
            "(pip install tensorflow tensorflow-datasets importlib_resources). Where they cannot "
            "be installed, read a pack: config.data.source='packed'"
        ) from error

    if config.source == "folder":
        return open_folder(
            config.dir,
            resolution=config.resolution,
            train_fraction=config.train_fraction,
            shuffle_buffer=config.shuffle_buffer,
            max_undecodable=max_undecodable,
        )
    return open_food101(
        config.dir,
        resolution=config.resolution,
        train_fraction=config.train_fraction,
        shuffle_buffer=config.shuffle_buffer,
        max_undecodable=max_undecodable,
        download=config.download,
    )


def open_rows(data_config: ConfigDict) -> RowSource:
    """Opens a source whose photos all decode and have a fixed order: a pack or the sample.

    Raises:
        FileNotFoundError, ValueError: as `open_source`, and for another source.
    """
    source = open_source(data_config)
    if not isinstance(source, RowSource):
        raise ValueError(
            f"config.data.source={data_config.source!r} has no fixed order of photos, which a teacher needs: write a "
            "pack with `colorjax data`, and set config.data.source='packed'"
        )
    return source


def open_teacher(data_config: ConfigDict) -> Teacher:
    """Opens the teacher's features of the training photos, the file that `config.data.teacher` names.

    Raises:
        FileNotFoundError: if the photos or the file are not there.
        ValueError: as `open_rows`, and if no file is named or it does not belong to the photos.
    """
    if not data_config.teacher:
        raise ValueError("loss.teacher_weight needs config.data.teacher, a file that `colorjax teacher` writes")
    path = Path(str(data_config.teacher)).expanduser()
    return Teacher(path, photos=open_rows(data_config).info.sizes["train"])


def _check_split(source: Source, split: str, data_config: ConfigDict) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is none of {', '.join(map(repr, SPLITS))}")
    if not source.info.sizes.get(split):
        raise ValueError(
            f"config.data.dir={data_config.dir!r} has no {split!r} split, only "
            f"{', '.join(map(repr, source.info.sizes))}: write the pack again with "
            f"--splits naming {split!r}"
        )
