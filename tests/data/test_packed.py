"""Packs: what is written is what was decoded, and what is damaged is refused."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from ml_collections import ConfigDict
from PIL import Image

from colorjax import data
from colorjax.data import packed
from colorjax.data.batches import Share, Source

REPOSITORY = Path(__file__).resolve().parents[2]


def make_config(source: str, directory: Path | str = "", *, resolution: int = 16) -> ConfigDict:
    return ConfigDict(
        {
            "source": source,
            "dir": str(directory),
            "resolution": resolution,
            "train_fraction": 0.8,
            "shuffle_buffer": 100,
            "max_undecodable": 0.2,
            "download": False,
        }
    )


def write(out: Path, config: ConfigDict, splits: tuple[str, ...] = ("train", "test")) -> None:
    packed.write_pack(data.open_source(config), out, splits=splits, resolution=16, train_fraction=0.8)


@pytest.fixture(scope="module")
def sample_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "sample"
    write(out, make_config("sample"), ("train", "validation", "test"))
    return out


@pytest.fixture
def pack(sample_pack: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sample_pack, tmp_path / "pack"))


def read(config: ConfigDict, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a split that decoded."""
    batches = list(data.eval_batches(config, split, batch_size=50))
    mask = np.concatenate([batch["mask"] for batch in batches]) == 1
    image = np.concatenate([batch["image"] for batch in batches])[mask]
    return image, np.concatenate([batch["label"] for batch in batches])[mask]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def flip_bit(path: Path, position: int, bit: int = 8) -> None:
    with path.open("r+b") as file:
        file.seek(position, os.SEEK_SET if position >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ bit]))


def test_pack_holds_exactly_what_its_source_decodes(sample_pack: Path) -> None:
    config = make_config("packed", sample_pack)
    assert data.dataset_info(config) == data.dataset_info(make_config("sample"))
    for split in ("train", "validation", "test"):
        for one, other in zip(read(config, split), read(make_config("sample"), split), strict=True):
            np.testing.assert_array_equal(one, other)
    plain = np.load(sample_pack / "test.images.npy")
    np.testing.assert_array_equal(plain, read(config, "test")[0])


@pytest.mark.parametrize("processes", [2, 4])
def test_packed_stream_resumes_and_is_shared_exactly(sample_pack: Path, processes: int) -> None:
    config = make_config("packed", sample_pack)

    def take(count: int, **arguments: Any) -> list[data.Batch]:
        batches = data.train_batches(config, batch_size=40, seed=5, **arguments)
        return list(itertools.islice(batches, count))

    uninterrupted = take(20)
    shares = [take(6, start_step=14, process_index=i, process_count=processes) for i in range(processes)]
    for one, *parts in zip(uninterrupted[14:], *shares, strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(one[name], np.concatenate([part[name] for part in parts]))
    size = data.dataset_info(config).sizes["train"]
    epoch = np.concatenate([batch["image"] for batch in uninterrupted])[:size]
    assert sorted(map(bytes, epoch)) == sorted(map(bytes, read(config, "train")[0]))


def test_two_processes_read_one_pack(sample_pack: Path) -> None:
    program = """
import itertools, sys, zlib
from colorjax import data
from ml_collections import ConfigDict
config = ConfigDict({"source": "packed", "dir": sys.argv[1], "resolution": 16,
                     "train_fraction": 0.8, "shuffle_buffer": 1, "download": False})
batches = data.train_batches(config, batch_size=40, seed=5, process_index=int(sys.argv[2]),
                             process_count=2)
for batch in itertools.islice(batches, 12):
    print(zlib.crc32(batch["image"].tobytes()), *batch["label"])
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(sample_pack), str(index)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    config = make_config("packed", sample_pack)
    single = itertools.islice(data.train_batches(config, batch_size=40, seed=5), 12)
    for batch, *lines in zip(single, *outputs, strict=True):
        labels = [int(label) for line in lines for label in line.split()[1:]]
        np.testing.assert_array_equal(batch["label"], labels)


def test_undecodable_photos_are_left_out_and_listed(tmp_path: Path) -> None:
    photo = Image.fromarray(skimage.data.chelsea()).crop((0, 0, 64, 64))
    for split, number in itertools.product(("train", "test"), range(10)):
        path = tmp_path / "photos" / split / "cat" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.rotate(number * 30).save(path)
    broken = [tmp_path / "photos" / "test" / "cat" / f"{number}.jpg" for number in (3, 7)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:500])
    config = make_config("folder", tmp_path / "photos")
    write(tmp_path / "pack", config)
    meta = json.loads((tmp_path / "pack" / "meta.json").read_text())
    assert sorted(meta["splits"]["test"]["skipped"]) == sorted(map(str, broken))
    assert meta["splits"]["train"]["skipped"] == []
    pack_config = make_config("packed", tmp_path / "pack")
    assert data.dataset_info(pack_config).sizes == {"train": 8, "test": 8}
    for one, other in zip(read(pack_config, "test"), read(config, "test"), strict=True):
        np.testing.assert_array_equal(one, other)


# Damage.


def test_truncated_pack_is_refused(pack: Path) -> None:
    path = pack / "test.images.npy"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"test\.images\.npy is missing or damaged.*again"):
        data.dataset_info(make_config("packed", pack))
    path.unlink()
    with pytest.raises(ValueError, match=r"test\.images\.npy is missing or damaged.*again"):
        data.dataset_info(make_config("packed", pack))


@pytest.mark.parametrize("file", ["images", "labels", "crc32"])
def test_flipped_bit_is_found_when_its_row_is_read(pack: Path, file: str) -> None:
    # Of the last label, 7, that it becomes another class.
    flip_bit(pack / f"test.{file}.npy", *((-4, 1) if file == "labels" else (-1,)))
    config = make_config("packed", pack)
    last = data.dataset_info(config).sizes["test"] - 1
    with pytest.raises(ValueError, match=rf"test\.images\.npy: row {last} .*checksum.*again"):
        read(config, "test")
    read(config, "validation")


def test_flipped_bit_is_found_in_training(pack: Path) -> None:
    flip_bit(pack / "train.images.npy", 5000)
    batches = data.train_batches(make_config("packed", pack), batch_size=359, seed=0)
    with pytest.raises(ValueError, match=r"train\.images\.npy: row 6 "):
        next(batches)


def test_foreign_folder_is_refused(tmp_path: Path, pack: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.dataset_info(make_config("packed", tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no pack of colorjax"):
        data.dataset_info(make_config("packed", tmp_path))
    (tmp_path / "meta.json").write_text('{"format": "another"}')
    with pytest.raises(ValueError, match="no pack of colorjax"):
        data.dataset_info(make_config("packed", tmp_path))
    np.save(pack / "test.images.npy", np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"test\.images\.npy holds float64 \(4, 4\)"):
        data.dataset_info(make_config("packed", pack))


def test_pack_of_another_version_or_resolution_is_refused(pack: Path) -> None:
    with pytest.raises(ValueError, match=r"resolution=32.*16 pixels: set config.data.resolution=16"):
        data.dataset_info(make_config("packed", pack, resolution=32))
    meta = json.loads((pack / "meta.json").read_text())
    (pack / "meta.json").write_text(json.dumps(meta | {"version": 2}))
    with pytest.raises(ValueError, match="version 2"):
        data.dataset_info(make_config("packed", pack))


def test_pack_of_another_train_fraction_is_refused(pack: Path) -> None:
    config = make_config("packed", pack)
    config.train_fraction = 0.9
    with pytest.raises(ValueError, match=r"train_fraction=0\.9, but .* written with 0\.8: set"):
        data.dataset_info(config)
    # An older pack does not say.
    meta = json.loads((pack / "meta.json").read_text())
    del meta["train_fraction"]
    (pack / "meta.json").write_text(json.dumps(meta))
    data.dataset_info(config)


def test_labels_without_a_class_are_refused(pack: Path) -> None:
    meta = json.loads((pack / "meta.json").read_text())
    (pack / "meta.json").write_text(json.dumps(meta | {"class_names": meta["class_names"][:3]}))
    with pytest.raises(ValueError, match=r"labels\.npy holds labels from 0 to 7, and meta\.json .* names 3 classes"):
        data.dataset_info(make_config("packed", pack))


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"class_names": None},
        {"class_names": [1, 2]},
        {"splits": []},
        {"splits": {"train": 3}},
        {"splits": {"train": {"size": -1}}},
        {"splits": {"../secret": {"size": 1}}},
        {"train_fraction": "most"},
    ],
)
def test_damaged_meta_is_named(pack: Path, change: dict[str, Any]) -> None:
    meta = json.loads((pack / "meta.json").read_text())
    (pack / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(ValueError, match=rf"meta\.json is damaged, its field '{next(iter(change))}'"):
        data.dataset_info(make_config("packed", pack))


@pytest.mark.parametrize("header", [b"{'descr': '|u1', 'shape': (", b"(" * 60, b"{" + b"9" * 5000 + b"}", b"\x00" * 70])
def test_damaged_header_of_an_array_is_refused(pack: Path, header: bytes) -> None:
    path = pack / "test.labels.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match=r"test\.labels\.npy is missing or damaged \(\w+: .*again") as error:
        data.dataset_info(make_config("packed", pack))
    assert len(str(error.value).replace(str(pack), "")) <= 300


def test_split_that_was_not_packed_is_named(tmp_path: Path) -> None:
    write(tmp_path / "pack", make_config("sample"), ("test",))
    config = make_config("packed", tmp_path / "pack")
    assert list(data.dataset_info(config).sizes) == ["test"]
    with pytest.raises(ValueError, match="no 'train' split, only 'test'"):
        data.train_batches(config, batch_size=4, seed=0)


# Writing.


class Interrupted:
    """A source that fails midway, as a killed run would."""

    def __init__(self, source: Source):
        self.info = source.info
        self.undecodable: list[str] = []
        self._source = source

    def train(self, share: Share, *, seed: int, start_step: int) -> Iterator[data.Batch]:
        return self._source.train(share, seed=seed, start_step=start_step)

    def evaluate(self, split: str, share: Share) -> Iterator[data.Batch]:
        yield next(self._source.evaluate(split, share))
        raise KeyboardInterrupt


def test_stopped_run_leaves_nothing_and_can_be_started_again(tmp_path: Path) -> None:
    source = data.open_source(make_config("sample"))
    out = tmp_path / "pack"
    with pytest.raises(KeyboardInterrupt):
        packed.write_pack(Interrupted(source), out, splits=("train",), resolution=16, train_fraction=0.8)
    assert not any(tmp_path.iterdir())
    write(out, make_config("sample"), ("test",))
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    read(make_config("packed", out), "test")


def test_nothing_is_overwritten(tmp_path: Path, pack: Path) -> None:
    sample = make_config("sample")
    with pytest.raises(FileExistsError, match="holds something already"):
        write(pack, sample)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("It was a dark and stormy night")
    with pytest.raises(FileExistsError, match="holds something already"):
        write(tmp_path / "thesis", sample)
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_full_disk_is_noticed_before_the_first_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"0\.0 GB are free"):
        write(tmp_path / "pack", make_config("sample"))
    assert not list(tmp_path.iterdir())


def test_command_writes_a_pack_and_says_how_far_it_is(tmp_path: Path) -> None:
    command = ("-m", "colorjax", "data", "--config=configs/quickstart.py", "--config.data.resolution=24")
    result = run(*command, f"--out={tmp_path / 'pack'}", "--splits=test")
    assert result.returncode == 0, result.stderr
    assert "29 of 29 photos" in result.stderr
    assert "photos/s" in result.stderr
    image, _ = read(make_config("packed", tmp_path / "pack", resolution=24), "test")
    expected, _ = read(make_config("sample", resolution=24), "test")
    np.testing.assert_array_equal(image, expected)

    result = run(*command, f"--out={tmp_path / 'other'}", "--splits=valid")
    assert result.returncode != 0
    assert "'valid' is not a split; the splits are train, validation, test" in result.stderr


def test_help_of_the_command_teaches() -> None:
    text = run("-m", "colorjax", "data", "--help").stdout
    assert "--config.data.source=packed" in text
    assert "--out" in text


def test_sample_and_packs_work_where_tensorflow_is_not_installed(tmp_path: Path) -> None:
    program = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "tensorflow_cpu"):
    sys.modules[name] = None  # importing it now raises ImportError
from colorjax import data
from colorjax.data.packed import write_pack
from ml_collections import ConfigDict
config = ConfigDict({"source": "sample", "dir": "", "resolution": 16,
                     "train_fraction": 0.8, "shuffle_buffer": 1, "download": False})
print(next(data.train_batches(config, batch_size=4, seed=0))["image"].shape)
write_pack(data.open_source(config), sys.argv[1], splits=["train", "test"], resolution=16, train_fraction=0.8)
config.source, config.dir = "packed", sys.argv[1]
print(next(data.train_batches(config, batch_size=4, seed=0))["image"].shape)
print(sum(batch["mask"].sum() for batch in data.eval_batches(config, "test", batch_size=8)))
config.source = "food101"
try:
    data.dataset_info(config)
except ImportError as error:
    print("read a pack" in str(error))
"""
    result = run("-c", program, str(tmp_path / "pack"))
    lines = ["(4, 16, 16, 3)", "(4, 16, 16, 3)", "29.0", "True"]
    assert result.stdout.splitlines() == lines, result.stderr
