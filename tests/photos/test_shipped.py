"""The weights that ship: the folder is whole, its card is true, and they color a photo offline."""

import hashlib
import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import skimage.color
import skimage.data
import yaml

from colorjax import Predictor
from colorjax.evaluation.evaluate import evaluate
from colorjax.run.locate import locate
from colorjax.run.trained import Trained, load_trained

FOLDER = locate()
SHARED = Path(__file__).parents[3] / "shared" / "food101_64"


@pytest.fixture(scope="module")
def trained() -> Trained:
    return load_trained(FOLDER)


@pytest.fixture(scope="module")
def card() -> str:
    return (FOLDER / "README.md").read_text()


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n", 2)[1])


def test_the_folder_is_small_and_whole(trained: Trained) -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {"README.md", "classes.json", "config.json", "model.safetensors", "prior.npz"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12e6
    tensors = safetensors.numpy.load_file(FOLDER / "model.safetensors")
    assert {x.dtype.name for key, x in tensors.items() if key != "step"} == {"float16"}
    with safetensors.safe_open(FOLDER / "model.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["crc32"]).keys() == tensors.keys()
    assert trained.step == tensors["step"] > 0
    assert len(set(trained.class_names)) == 101
    assert trained.prior is not None
    assert trained.prior.photos > 50_000


def test_the_card_has_the_checksum_and_the_temperature(trained: Trained, card: str) -> None:
    content = (FOLDER / "model.safetensors").read_bytes()
    assert f"| `model.safetensors` | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` |" in card
    assert f"decoded at temperature {trained.config.decode.temperature:g}" in card
    assert f"{trained.step:,} steps of" in card
    assert "It knows food; elsewhere it guesses." in card
    assert "2,020 photographs of the test split" in card
    assert "scientific fair use" in card


def test_the_folder_names_no_path_of_the_machine(card: str) -> None:
    for text in (card, (FOLDER / "config.json").read_text()):
        assert not re.search(r"(?<![\w:/.])/(home|root|tmp|var|work)/", text)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(FOLDER, copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1000] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="differs from its checksum"):
        Predictor(copy)


@pytest.mark.slow
def test_a_photo_is_colored_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    photo = skimage.data.coffee()
    predictor = Predictor()
    (colored,) = predictor.colorize([photo])
    assert colored.shape == photo.shape
    before, after = skimage.color.rgb2lab(photo), skimage.color.rgb2lab(colored)
    np.testing.assert_allclose(after[..., 0], before[..., 0], atol=0.5)
    assert np.linalg.norm(after[..., 1:], axis=-1).mean() > 5  # gray has 0
    (named,) = Predictor("food101").colorize([photo])
    np.testing.assert_array_equal(colored, named)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the photos of ../shared are not here")
def test_the_card_s_figures_are_those_of_the_file(card: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(FOLDER, copy)
    config = json.loads((copy / "config.json").read_text())
    config["data"] |= {"source": "food101", "dir": str(SHARED)}
    (copy / "config.json").write_text(json.dumps(config))
    measured = evaluate(copy)["model"]
    recorded = {
        {"accuracy": "top1"}.get(entry["type"], entry["type"]): entry["value"]
        for entry in front_matter(card)["model-index"][0]["results"][0]["metrics"]
    }
    assert {"psnr", "color_loss", "auc_rebalanced", "delta_e", "top1"} <= recorded.keys()
    for name, value in recorded.items():
        if name in measured:  # LPIPS needs weights of its own
            # Of 2,020 photos, one or two may change their class on another processor.
            assert measured[name] == pytest.approx(value, rel=2e-3, abs=1e-3 if name.startswith("top") else 2e-2), name
    truth = measured["colorfulness"] - measured["colorfulness_difference"]
    assert measured["colorfulness"] == pytest.approx(truth, rel=0.02)
