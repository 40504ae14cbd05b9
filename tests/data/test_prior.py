import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.color
import skimage.data

from colorjax import color, data
from colorjax.data import prior
from colorjax.data.prior import Prior
from configs import quickstart

SIDE = 12


@pytest.fixture(scope="module")
def batches() -> list[dict[str, np.ndarray]]:
    """Two batches of three: four photographs, a gray one, and padding that looks like a photo."""
    crops = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = getattr(skimage.data, name)()
        top, left = photo.shape[0] // 2, photo.shape[1] // 2
        crops.append(photo[top : top + SIDE, left : left + SIDE])
    gray = np.full((SIDE, SIDE, 3), 90, np.uint8)
    image = np.stack([crops[0], gray, crops[1], crops[2], crops[3], 255 - crops[0]])
    mask = np.array([1, 1, 1, 1, 1, 0], np.float32)
    return [{"image": image[i : i + 3], "mask": mask[i : i + 3]} for i in (0, 3)]


@pytest.fixture
def some() -> Prior:
    p = np.random.default_rng(0).exponential(size=color.NUM_BINS)
    return Prior(p=p / p.sum(), mean_ab=np.array([7.1, 18.2]), photos=5, source="a, é:train")


def naive(photos: list[np.ndarray], *, factor: int, neighbors: int, sigma: float):
    bins, p, mean = color.ab_bins(), np.zeros(color.NUM_BINS), np.zeros(2)
    pixels = 0
    for photo in photos:
        ab = skimage.color.rgb2lab(photo)[..., 1:]
        for y in range(0, SIDE, factor):
            for x in range(0, SIDE, factor):
                pixel = ab[y : y + factor, x : x + factor].mean(axis=(0, 1))
                squared = ((bins - pixel) ** 2).sum(axis=1)
                near = np.argsort(squared, kind="stable")[:neighbors]
                weight = np.exp(-squared[near] / (2 * sigma**2))
                p[near] += weight / weight.sum()
                mean += pixel
                pixels += 1
    return p / pixels, mean / pixels


@pytest.mark.parametrize(("factor", "neighbors", "sigma"), [(2, 5, 5.0), (4, 3, 8.0)])
def test_count_equals_a_naive_loop(batches, factor, neighbors, sigma):
    options = {"factor": factor, "neighbors": neighbors, "sigma": sigma}
    result = prior.count(batches, source="four", **options)
    photos = [batches[0]["image"][0], batches[0]["image"][2], *batches[1]["image"][:2]]
    p, mean_ab = naive(photos, **options)
    assert (result.photos, result.source) == (4, "four")
    assert result.p.dtype == result.mean_ab.dtype == np.float64
    assert result.p.sum() == pytest.approx(1, abs=1e-12)
    # In float32 two bins may swap places on what is nearly a tie, with nearly the same weight.
    np.testing.assert_allclose(result.p, p, rtol=0, atol=2e-5)
    np.testing.assert_allclose(result.mean_ab, mean_ab, atol=1e-3)


def test_count_stops_at_the_limit_within_a_batch(batches):
    first = prior.count(batches[:1], source="")
    limited = prior.count(batches, limit=3, source="")
    np.testing.assert_array_equal(limited.p, first.p)
    four = prior.count(batches, limit=4, source="")
    assert four.photos == 3
    assert prior.count(batches, limit=2, source="").photos == 1


def test_count_reads_no_further_than_the_limit(batches):
    def endless():
        yield batches[0]
        raise AssertionError("read past the limit")

    assert prior.count(endless(), limit=3, source="").photos == 2


def test_count_refuses_photos_without_color(batches):
    gray = {"image": batches[0]["image"][1:2], "mask": np.ones(1)}
    masked = batches[0] | {"mask": np.zeros(3)}
    for nothing in ([], [gray], [masked]):
        with pytest.raises(ValueError, match="somewhere"):
            prior.count(nothing, source="somewhere")


def test_a_saved_prior_loads_as_it_was(some, tmp_path):
    path = tmp_path / "new" / "prior.npz"
    some.save(path)
    loaded = Prior.load(str(path))
    np.testing.assert_array_equal(loaded.p, some.p)
    np.testing.assert_array_equal(loaded.mean_ab, some.mean_ab)
    assert (loaded.photos, loaded.source) == (some.photos, some.source)
    assert [f.name for f in path.parent.iterdir()] == ["prior.npz"]


def test_a_failed_save_leaves_the_old_file_alone(some, tmp_path, monkeypatch):
    path = tmp_path / "prior.npz"
    some.save(path)
    before = path.read_bytes()

    def fail(file, **_):
        file.write(b"half")
        raise OSError("no space")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space"):
        some.save(path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["prior.npz"]


def write_truncated(path: Path, some: Prior) -> None:
    some.save(path)
    path.write_bytes(path.read_bytes()[:-200])


def write_flipped(path: Path, some: Prior) -> None:
    some.save(path)
    content = bytearray(path.read_bytes())
    content[600] ^= 0xFF
    path.write_bytes(content)


def write_arrays(**changes):
    def write(path: Path, some: Prior) -> None:
        np.savez(path, **(dataclasses.asdict(some) | changes))

    return write


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


WRITERS = {
    "missing": lambda path, some: None,
    "a folder": lambda path, some: path.mkdir(),
    "empty": lambda path, some: path.write_bytes(b""),
    "text": lambda path, some: path.write_text("no array"),
    "truncated": write_truncated,
    "damaged": write_flipped,
    "another array": lambda path, some: path.write_bytes(_npy(some.p)),
    "other arrays": lambda path, some: np.savez(path, x=some.p),
    "pickle": write_arrays(p=np.array([None, {}])),
    "wrong shape": write_arrays(p=np.ones(312) / 312),
    "wrong mean": write_arrays(mean_ab=np.ones(3)),
    "counts": write_arrays(p=np.arange(313)),
    "negative": write_arrays(p=np.append(np.full(312, 2 / 312), -1.0)),
    "NaN": write_arrays(p=np.full(313, np.nan)),
    "NaN mean": write_arrays(mean_ab=np.full(2, np.nan)),
    "no number": write_arrays(photos=np.ones(2)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_whatever_is_no_prior_is_refused_with_the_remedy(write, some, tmp_path):
    path = tmp_path / "prior.npz"
    write(path, some)
    with pytest.raises(ValueError, match=r"colorjax prior") as e:
        Prior.load(path)
    assert str(path) in str(e.value)


def test_a_loaded_prior_gives_rarity_weights(batches, tmp_path):
    prior.count(batches, source="four").save(tmp_path / "prior.npz")
    loaded = Prior.load(tmp_path / "prior.npz")
    assert loaded.p @ color.rarity_weights(loaded.p) == pytest.approx(1, rel=1e-6)


@pytest.mark.slow
def test_the_command_counts_the_centers_of_the_training_photos(tmp_path):
    config: Any = quickstart.get_config()
    command = ["-m", "colorjax", "prior", "--config=configs/quickstart.py", "--photos=6"]
    path = tmp_path / "prior.npz"
    done = subprocess.run(
        [sys.executable, *command, f"--out={path}"],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    batch = next(data.eval_batches(config.data, "train", batch_size=6))
    margin = (config.data.resolution - config.data.image_size) // 2
    image = batch["image"][:, margin:-margin, margin:-margin]
    expected = prior.count([{"image": image, "mask": batch["mask"]}], source="")
    loaded = Prior.load(path)
    np.testing.assert_allclose(loaded.p, expected.p, atol=1e-6)
    assert loaded.photos == expected.photos
    assert loaded.source == "sample:train"
    assert "0 of 6 photos" in done.stderr
    assert str(path) in done.stdout


def test_importing_needs_no_tensorflow():
    code = "import sys, colorjax.data.prior; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_first_color_photo_is_looked_for() -> None:
    gray = np.full((4, 8, 8, 3), 90, np.uint8)
    colored = gray.copy()
    colored[2, ..., 0] = 200
    masked = {"image": colored, "mask": np.array([1, 1, 0, 1])}
    prior.require_color([{"image": gray, "mask": np.ones(4)}, {"image": colored, "mask": np.ones(4)}], source="x")
    with pytest.raises(ValueError, match="no color photo among the 7 photos of x"):
        prior.require_color([{"image": gray, "mask": np.ones(4)}, masked], source="x")
