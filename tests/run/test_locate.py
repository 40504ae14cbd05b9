"""What --checkpoint and Predictor take: names of shipped weights, folders, and nothing else."""

import logging
from pathlib import Path

import pytest

from colorjax.run import locate
from colorjax.run.workdir import save_class_names, save_config
from configs import quickstart


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the only weights that ship, called food101; the working folder is another one."""
    folder = tmp_path / "package" / "weights" / "food101"
    _colorizer(folder)
    monkeypatch.setattr(locate, "SHIPPED", folder.parent)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def _colorizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    save_config(quickstart.get_config(), folder)
    save_class_names(folder, ("soup", "cake"))


def test_the_shipped_weights_are_the_default_and_have_a_name(shipped: Path) -> None:
    assert locate.shipped_weights() == {"food101": shipped}
    assert locate.locate() == locate.locate("food101") == shipped


def test_a_name_means_the_shipped_weights_wherever_the_command_runs(
    shipped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = Path("food101").absolute()
    here.mkdir()
    with caplog.at_level(logging.WARNING):
        assert locate.locate("food101") == shipped  # a data set's folder, for example
    assert not caplog.records
    here.rmdir()
    _colorizer(here)
    with caplog.at_level(logging.WARNING):
        assert locate.locate("food101") == shipped
    (record,) = caplog.records
    assert record.getMessage() == "food101 is the weights that ship; the folder of that name is ./food101"
    assert locate.locate("./food101") == locate.locate(Path("food101")) == locate.locate(str(here)) == here


def test_what_is_neither_a_name_nor_a_folder_is_refused(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("food102", Path("food101"), "food101/"):
        with pytest.raises(FileNotFoundError, match=r"is neither a folder nor .*\(shipped weights are food101\)"):
            locate.locate(wrong)
    with pytest.raises(ValueError, match="is a URL"):
        locate.locate("gs://bucket/food101")
    (shipped.parent / "run" / "joint" / "checkpoints").mkdir(parents=True)
    save_config(quickstart.get_config(), shipped.parent / "run")
    with pytest.raises(ValueError, match="did you mean the folder above"):
        locate.locate(shipped.parent / "run" / "joint")
    with pytest.raises(FileNotFoundError, match="did you mean the folder above"):
        locate.locate(shipped.parent / "run" / "joint" / "checkpoints" / "400")
    monkeypatch.setattr(locate, "SHIPPED", shipped / "nothing")
    for missing in (None, "food101"):
        with pytest.raises(FileNotFoundError, match="no weights are shipped in "):
            locate.locate(missing)
