"""The prior of a run: what is refused before a pretraining."""

from pathlib import Path

import pytest
from PIL import Image

from colorjax.run.prior import check_prior
from configs import quickstart


def test_gray_photos_are_refused_before_the_pretraining(tmp_path: Path) -> None:
    config = quickstart.get_config().unlock()
    config.data.source, config.data.dir = "folder", str(tmp_path / "photos")
    config.data.resolution = 16
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for number in range(10):
        color = (number, 255 - number, 40) if number == 9 else (number, number, number)
        Image.new("RGB", (16, 16), color).save(tmp_path / "photos" / "a" / f"{number}.png")
    check_prior(config, tmp_path)
    (tmp_path / "photos" / "a" / "9.png").unlink()
    with pytest.raises(ValueError, match="no color photo among the 6 photos of folder:train"):
        check_prior(config, tmp_path)
    config.data.prior = str(tmp_path / "missing.npz")
    with pytest.raises(ValueError, match=r"missing\.npz is no readable prior"):
        check_prior(config, tmp_path)
