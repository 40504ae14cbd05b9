"""Photos that travel in pieces become the same pack as at home."""

import filecmp
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as benchmarks
from colorjax import data
from colorjax.data.batches import DatasetInfo
from colorjax.data.packed import write_pack

SIZES = {"train": 40, "validation": 3, "test": 5}
OPTIONS: dict[str, Any] = {"splits": tuple(SIZES), "resolution": 32, "train_fraction": 0.97}


@pytest.fixture(scope="module")
def source() -> Any:
    """48 JPEG files, every fifth of them gray."""
    import tensorflow as tf

    from colorjax.data.photos import PhotoSource

    rng = np.random.default_rng(0)

    def jpeg(i: int) -> bytes:
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32))
        stream = io.BytesIO()
        (small.convert("L") if i % 5 == 0 else small).save(stream, "JPEG", quality=90)
        return stream.getvalue()

    photos: dict[str, Any] = {
        split: {
            "file": [jpeg(i) for i in range(size)],
            "label": np.arange(size) % 3,
            "id": [f"{split}{i}" for i in range(size)],
        }
        for split, size in SIZES.items()
    }
    options = {"resolution": 32, "shuffle_buffer": 8, "max_undecodable": 0.0}
    info = DatasetInfo("food101", ("a", "b", "c"), SIZES)
    return PhotoSource(info, lambda split: tf.data.Dataset.from_tensor_slices(photos[split]), lambda x: x, **options)


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit:
        benchmarks.main(["pieces", *map(str, arguments)])
    return int(exit.value.code or 0)


def test_pieces_become_the_same_pack(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pack(source, tmp_path / "pack", **OPTIONS)
    monkeypatch.setattr(data, "open_source", lambda _: source)
    config = ("--config=configs/food101_small.py", "--config.data.source=food101", "--config.data.resolution=32")
    assert run(*config, f"--out={tmp_path / 'pieces'}", "--megabytes=0.01") == 0
    pieces = sorted((tmp_path / "pieces").iterdir())
    assert len(pieces) > 4
    assert max(piece.stat().st_size for piece in pieces) < 20_000
    assert run(f"--join={tmp_path / 'pieces'}", f"--out={tmp_path / 'joined'}") == 0
    names = [path.name for path in (tmp_path / "pack").iterdir()]
    same, *others = filecmp.cmpfiles(tmp_path / "pack", tmp_path / "joined", names, shallow=False)
    assert (sorted(same), others) == (sorted(names), [[], []])

    whole = pieces[1].read_bytes()
    for damaged in (whole[:3000], whole[:3000] + bytes(100) + whole[3100:], b""):
        pieces[1].write_bytes(damaged)
        capsys.readouterr()
        assert run(f"--join={tmp_path / 'pieces'}", f"--out={tmp_path / 'short'}") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {pieces[1]}: ")
    pieces[1].unlink()
    capsys.readouterr()
    assert run(f"--join={tmp_path / 'pieces'}", f"--out={tmp_path / 'short'}") == 2
    assert "and the data set has {'train': 40, 'validation': 3, 'test': 5}: add a piece" in capsys.readouterr().err
    assert not (tmp_path / "short").exists()


def test_what_cannot_be_split_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"--out={tmp_path / 'pieces'}") == 2
    assert "--config is missing" in capsys.readouterr().err
    assert run("--config=configs/food101_small.py", f"--out={tmp_path / 'pieces'}") == 2
    assert "config.data.source is 'packed'; pieces are made of food101's files" in capsys.readouterr().err
