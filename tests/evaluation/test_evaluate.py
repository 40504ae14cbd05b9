"""The evaluation of a whole split against loops over its photos in numpy and scikit-image."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.special
import skimage.color
import skimage.metrics
import skimage.transform
from flax import nnx
from PIL import Image
from test_judges import QUICK, lpips_weights

from colorjax import color, data
from colorjax.data import batches as batches_module
from colorjax.data.batches import DatasetInfo, RowSource, center_crop
from colorjax.data.packed import write_pack
from colorjax.data.prior import Prior
from colorjax.evaluation import bootstrap, measures
from colorjax.evaluation.evaluate import evaluate
from colorjax.evaluation.judges import efficientnet, lpips
from colorjax.evaluation.summary import agreeing_temperature
from colorjax.model.colorizer import Colorizer
from colorjax.model.program import Program, abstract_model, build_program
from colorjax.run import compilation, locate, sharding
from colorjax.run.checkpoints import Checkpoints, load_checkpoint
from colorjax.run.trained import load_trained, save_trained
from colorjax.run.workdir import bind_config, load_config, save_class_names
from colorjax.training.optimizer import init_state, make_optimizer

# A mode or a sharp mean may lie outside of sRGB.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")

REPOSITORY = Path(__file__).resolve().parents[2]
GRAY, BROKEN = 3, 6  # places in the split
TEMPERATURES = (0.0, 0.38, 1.0)
MEASURES = (
    "psnr",
    "ssim",
    "colorfulness",
    "true_colorfulness",
    "auc",
    "auc_rebalanced",
    "delta_e",
    "mean_a",
    "mean_b",
    "mean_color_distance",
    "color_ce",
    "color_loss",
    "top1",
    "top5",
)


@pytest.fixture(scope="module", autouse=True)
def _quick_to_compile() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "compiler_options", lambda: QUICK)
        yield


def _copy(untrained: Path, to: Path, *, source: str = "sample", **model: Any) -> Path:
    shutil.copytree(untrained, to)
    config = json.loads((to / "config.json").read_text())
    config["data"] |= {"source": source, "dir": "where/it/was/once"}
    config["model"] |= model
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.fixture(scope="module")
def split(untrained: Path) -> dict[str, np.ndarray]:
    """Eleven photos of the sample as `image` and `label`; one has lost its color, one does not decode."""
    batch = next(data.eval_batches(load_config(untrained).data, "test", batch_size=11))
    image, label = batch["image"].copy(), batch["label"]
    image[GRAY] = image[GRAY].mean(axis=-1, keepdims=True).astype(np.uint8)
    image[BROKEN] = 0
    return {"image": image, "label": label, "mask": (np.arange(11) != BROKEN).astype(np.float32)}


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def _column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) if row[name] else np.nan for row in rows])


@pytest.fixture(scope="module")
def evaluated(untrained: Path, split: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of `split` with everything, in batches of 4."""
    workdir = _copy(untrained, tmp_path_factory.mktemp("evaluated") / "run")
    np.savez(workdir / "lpips.npz", **lpips_weights())

    def batches(_: Any, name: str, *, batch_size: int, **processes: int) -> Iterator[data.Batch]:
        assert name == "test"
        for start in range(0, 11, batch_size):
            rows = {key: x[start : start + batch_size] for key, x in split.items()}
            missing = batch_size - len(rows["mask"])
            yield data.Batch(**{k: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for k, x in rows.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "eval_batches", batches)
        patch.setattr(batches_module, "EVAL_BATCH_SIZE", 4)
        # A judge with three features instead of the large one.
        patch.setattr(efficientnet, "load", lambda: {"scale": np.float32(10)})
        patch.setitem(
            measures.FEATURES, "efficientnet", lambda w, rgb: w["scale"] * color.unit_rgb(rgb).mean(axis=(1, 2))
        )
        evaluate(workdir, temperature=TEMPERATURES, frechet=True, lpips_weights=workdir / "lpips.npz")
    return workdir / "evaluation" / "test"


@pytest.fixture(scope="module")
def outputs(untrained: Path, split: dict) -> tuple[np.ndarray, np.ndarray]:
    """The model's logits of color and of class for the split, from its networks alone."""
    config = load_config(untrained)
    program = build_program(config, "joint", classes=8)
    _, params, stats = load_checkpoint(untrained / "joint" / "checkpoints")
    l = skimage.color.rgb2lab(_crops(split))[..., :1].astype(np.float32)
    run = jax.jit(lambda p, s, l: program(p, s, l, train=False)[0], compiler_options=QUICK)
    result = run(params, stats, l)
    return np.asarray(result.color, np.float64), np.asarray(result.class_logits)


def _crops(split: dict) -> np.ndarray:
    return split["image"][:, 4:-4, 4:-4] / 255


def _predicted(logits: np.ndarray, rgb: np.ndarray, temperature: float) -> np.ndarray:
    bins = color.ab_bins()
    if temperature == 0:
        ab = bins[logits.argmax(axis=-1)].astype(np.float64)
    else:
        ab = scipy.special.softmax(logits / temperature, axis=-1) @ bins
    lab = skimage.color.rgb2lab(rgb)
    lab[..., 1:] = skimage.transform.resize(ab, (32, 32, 2), order=1, mode="edge", anti_aliasing=False)
    return np.clip(skimage.color.lab2rgb(lab), 0, 1)


def _colorfulness(rgb: np.ndarray) -> float:
    r, g, b = 255 * np.moveaxis(rgb, -1, 0)
    rg, yb = r - g, (r + g) / 2 - b
    return np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())


def _loop(
    split: dict, outputs: tuple[np.ndarray, np.ndarray], prior: Prior, predict: Callable[[int, np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Every measure of every photo, one photo after the other; `predict` takes a photo's place and the photo."""
    bins = color.ab_bins()
    kernel = np.exp(-((bins[:, None] - bins) ** 2).sum(axis=-1) / 50)
    smooth = (kernel / kernel.sum(axis=0)) @ prior.p
    occurs = prior.p > 0
    inverse = np.where(occurs, 1 / smooth, (1 / smooth[occurs]).max())
    rarity = 1 / (0.5 * smooth + 0.5 / occurs.sum())
    rarity = np.where(occurs, rarity, rarity[occurs].max())
    rarity /= prior.p @ rarity
    rows = []
    for i in np.flatnonzero(split["mask"]).tolist():
        true = _crops(split)[i]
        predicted = predict(i, true)
        lab, predicted_lab = skimage.color.rgb2lab(true), skimage.color.rgb2lab(predicted)
        error = np.linalg.norm(lab[..., 1:] - predicted_lab[..., 1:], axis=-1)
        nearest = ((lab[..., None, 1:] - bins) ** 2).sum(axis=-1).argmin(axis=-1)

        small = lab[..., 1:].reshape(16, 2, 16, 2, 2).mean(axis=(1, 3))
        squared = ((small[..., None, :] - bins) ** 2).sum(axis=-1)
        closest = np.argsort(squared, axis=-1)[..., :5]
        shares = scipy.special.softmax(-np.take_along_axis(squared, closest, -1) / 50, axis=-1)
        log_p = scipy.special.log_softmax(outputs[0][i], axis=-1)
        entropy = -(shares * np.take_along_axis(log_p, closest, -1)).sum(axis=-1)
        if i == GRAY:
            entropy[:] = np.nan
        order = np.argsort(-outputs[1][i], kind="stable")
        rows.append(
            {
                "psnr": min(skimage.metrics.peak_signal_noise_ratio(true, predicted, data_range=1), 100),
                "ssim": skimage.metrics.structural_similarity(
                    true,
                    predicted,
                    channel_axis=-1,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                    data_range=1,
                ),
                "colorfulness": _colorfulness(predicted),
                "true_colorfulness": _colorfulness(true),
                "auc": np.mean([100 * (error <= t).mean() for t in range(151)]),
                "auc_rebalanced": np.mean([100 * np.average(error <= t, weights=inverse[nearest]) for t in range(151)]),
                "delta_e": skimage.color.deltaE_ciede2000(lab, predicted_lab).mean(),
                "mean_a": predicted_lab[..., 1].mean(),
                "mean_b": predicted_lab[..., 2].mean(),
                "mean_color_distance": np.linalg.norm(predicted_lab[..., 1:] - prior.mean_ab, axis=-1).mean(),
                "color_ce": entropy.mean(),
                "color_loss": (rarity[closest[..., 0]] * entropy).mean(),
                "top1": float(order[0] == split["label"][i]),
                "top5": float(split["label"][i] in order[:5]),
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_every_photo_scores_as_in_a_loop(evaluated: Path, split: dict, outputs: tuple) -> None:
    rows = _read(evaluated / "per_photo.csv")
    assert [int(row["index"]) for row in rows] == [i for i in range(11) if i != BROKEN]
    assert [int(row["label"]) for row in rows] == [*np.delete(split["label"], BROKEN)]
    names = json.loads((evaluated.parents[1] / "classes.json").read_text())
    assert [row["class"] for row in rows] == [names[int(row["label"])] for row in rows]

    prior = Prior.load(evaluated.parents[1] / "prior.npz")
    expected = _loop(split, outputs, prior, lambda i, rgb: _predicted(outputs[0][i], rgb, 0.38))
    for name in MEASURES:
        np.testing.assert_allclose(_column(rows, name), expected[name], rtol=2e-3, atol=5e-3, err_msg=name)
    assert np.isnan(_column(rows, "color_ce")[GRAY])
    difference = expected["colorfulness"] - expected["true_colorfulness"]
    np.testing.assert_allclose(_column(rows, "colorfulness_error"), np.abs(difference), atol=0.05)

    record = json.loads((evaluated / "metrics.json").read_text())
    assert record["photos"] == 10
    assert record["temperature"] == 0.38
    for name in MEASURES:
        if name != "true_colorfulness":
            column = _column(rows, name)
            mean, (low, high) = record["rows"]["model"][name], record["intervals"]["model"][name]
            assert mean == pytest.approx(np.nanmean(column), rel=1e-5)
            np.testing.assert_allclose((low, high), bootstrap.interval(column), rtol=1e-5)
            assert low <= mean <= high
    assert record["rows"]["model"]["colorfulness_difference"] == pytest.approx(difference.mean(), abs=0.05)
    assert record["rows"]["truth"]["colorfulness"] == pytest.approx(expected["true_colorfulness"].mean(), rel=1e-4)
    true_ab = [
        skimage.color.rgb2lab(_crops(split)[i])[..., 1:].mean(axis=(0, 1)) for i in np.flatnonzero(split["mask"])
    ]
    truth = record["rows"]["truth"]
    assert (truth["mean_a"], truth["mean_b"]) == pytest.approx(np.mean(true_ab, axis=0), abs=5e-3)


def test_the_baselines_score_as_in_a_loop(evaluated: Path, split: dict, outputs: tuple) -> None:
    prior = Prior.load(evaluated.parents[1] / "prior.npz")
    record = json.loads((evaluated / "metrics.json").read_text())
    log_p = np.log(np.maximum(prior.p, 1e-8))
    annealed = scipy.special.softmax(np.log(prior.p + 1e-12) / 0.38) @ color.ab_bins()

    def constant(ab: np.ndarray) -> Callable[[int, np.ndarray], np.ndarray]:
        def predict(_: int, rgb: np.ndarray) -> np.ndarray:
            lab = skimage.color.rgb2lab(rgb)
            lab[..., 1:] = ab
            return np.clip(skimage.color.lab2rgb(lab), 0, 1)

        return predict

    constants = {"prior": annealed, "mean color": prior.mean_ab, "gray": np.zeros(2)}
    for method, ab in constants.items():
        same_everywhere = np.broadcast_to(log_p, outputs[0].shape), outputs[1]
        expected = _loop(split, same_everywhere, prior, constant(ab))
        for name, value in record["rows"][method].items():
            if name in MEASURES:
                assert value == pytest.approx(np.nanmean(expected[name]), rel=2e-3, abs=5e-3), (method, name)
        assert {*MEASURES[:3], *MEASURES[4:10]} < record["rows"][method].keys()
        assert ("color_ce" in record["rows"][method]) == (method == "prior")
        assert "top1" not in record["rows"][method]


def test_the_sweep_decodes_the_same_logits(evaluated: Path, split: dict, outputs: tuple) -> None:
    record = json.loads((evaluated / "metrics.json").read_text())
    prior = Prior.load(evaluated.parents[1] / "prior.npz")
    assert [*record["sweep"]] == ["0.0", "0.38", "1.0"]
    for t in TEMPERATURES:
        expected = _loop(split, outputs, prior, lambda i, rgb, t=t: _predicted(outputs[0][i], rgb, t))
        for name in ("psnr", "colorfulness", "delta_e"):
            assert record["sweep"][str(t)][name] == pytest.approx(expected[name].mean(), rel=2e-3), (t, name)
    for name, value in record["sweep"]["0.38"].items():
        assert record["rows"]["model"][name] == pytest.approx(value, rel=1e-6)
        assert record["intervals"]["model"][name] == pytest.approx(record["sweep_intervals"]["0.38"][name], rel=1e-6)


def test_judges_see_the_photos_as_files_would_hold_them(evaluated: Path, split: dict, outputs: tuple) -> None:
    record = json.loads((evaluated / "metrics.json").read_text())
    decoded = np.flatnonzero(split["mask"])
    true = _crops(split)[decoded]
    predicted = np.stack([_predicted(outputs[0][i], rgb, 0.38) for i, rgb in zip(decoded, true, strict=True)])
    a, b = (10 * (np.round(255 * x) / 255).mean(axis=(1, 2)) for x in (predicted, true))
    covariances = np.cov(a.T), np.cov(b.T)
    root = np.real(np.asarray(scipy.linalg.sqrtm(covariances[0] @ covariances[1])))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert record["frechet"]["efficientnet"]["model"] == pytest.approx(expected, rel=0.02)
    assert [*record["frechet"]["efficientnet"]][:4] == ["model", "prior", "mean color", "gray"]

    weights = lpips_weights()
    distances = jax.jit(lpips.distance, compiler_options=QUICK)(
        weights, np.round(255 * predicted).astype(np.uint8), np.round(255 * true).astype(np.uint8)
    )
    np.testing.assert_allclose(_column(_read(evaluated / "per_photo.csv"), "lpips"), distances, rtol=0.02, atol=1e-4)
    assert "lpips" not in record["rows"]["truth"]
    assert record["left_out"] == ["FID (--inception-weights)"]


def test_classes_average_their_photos(evaluated: Path) -> None:
    photos, classes = _read(evaluated / "per_photo.csv"), _read(evaluated / "per_class.csv")
    assert len(classes) == 8
    assert sum(int(row["photos"]) for row in classes) == 10
    for row in classes:
        members = [photo for photo in photos if photo["class"] == row["class"]]
        assert int(row["photos"]) == len(members)
        for name in ("psnr", "color_ce", "top5"):
            values = [float(photo[name]) for photo in members if photo[name]]
            assert float(row[name] or "nan") == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True)


def test_the_pictures_show_the_right_photos(evaluated: Path, split: dict, outputs: tuple) -> None:
    rows = _read(evaluated / "per_photo.csv")
    order = [int(rows[i]["index"]) for i in np.argsort(_column(rows, "delta_e"))]
    shown = {"panel.png": [int(row["index"]) for row in rows], "best_worst.png": order[:6] + order[2:8] + order[-6:]}
    for name, places in shown.items():
        picture = np.asarray(Image.open(evaluated / name))
        assert picture.shape[0] == 14 + 36 * len(places)
        for j, place in enumerate(places):
            _, predicted, true = (picture[14 + 36 * j :][:32, 4 + 36 * i :][:, :32] for i in range(3))
            np.testing.assert_array_equal(true, split["image"][place, 4:-4, 4:-4])
            expected = 255 * _predicted(outputs[0][place], true / 255, 0.38)
            assert np.abs(predicted - expected).mean() < 1


@pytest.fixture(scope="module")
def in_batches_of_5() -> Iterator[None]:
    """Evaluates in batches of 5, so that the tests share one program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "EVAL_BATCH_SIZE", 5)
        yield


@pytest.fixture(scope="module")
def whole(untrained: Path, tmp_path_factory: pytest.TempPathFactory, in_batches_of_5: None) -> Path:
    """A run with an evaluation of the whole sample, in batches of 5."""
    workdir = _copy(untrained, tmp_path_factory.mktemp("whole") / "run")
    evaluate(workdir)
    return workdir


@pytest.mark.slow
def test_devices_batch_size_and_source_do_not_change_the_results(untrained: Path, whole: Path, tmp_path: Path) -> None:
    other = _copy(untrained, tmp_path / "other", source="packed")
    sample = load_config(whole).data
    write_pack(
        data.open_source(sample),
        tmp_path / "pack",
        splits=("test",),
        resolution=sample.resolution,
        train_fraction=sample.train_fraction,
    )
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-m", "colorjax", "evaluate", f"--workdir={other}", "--temperature=0.38"]
    command += [f"--data_dir={tmp_path / 'pack'}", f"--out={tmp_path / 'out'}"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert "| prior | mean color |" in " ".join(run.stderr.split())
    assert "Left out: LPIPS (--lpips-weights)" in run.stderr
    assert not (other / "evaluation").exists()
    for name in ("per_photo.csv", "per_class.csv"):
        mine, theirs = (_read(folder / name) for folder in (tmp_path / "out", whole / "evaluation" / "test"))
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert a["class"] == b["class"]
            assert {k for k, v in a.items() if not v} == {k for k, v in b.items() if not v}
            for key in MEASURES:
                assert float(a[key] or 0) == pytest.approx(float(b[key] or 0), rel=1e-4, abs=1e-4)
    sizes = data.dataset_info(sample).sizes
    assert [int(row["index"]) for row in _read(whole / "evaluation/test/per_photo.csv")] == [*range(sizes["test"])]


@pytest.fixture(scope="module")
def portable(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained colorizer as a portable folder."""
    folder = tmp_path_factory.mktemp("portable") / "exported"
    save_trained(load_trained(untrained), folder)
    return folder


@pytest.mark.slow
def test_a_portable_folder_is_evaluated_like_its_run(
    portable: Path, whole: Path, tmp_path: Path, in_batches_of_5: None
) -> None:
    before = sorted(path.name for path in portable.iterdir())
    assert "prior.npz" in before
    evaluate(portable, out=tmp_path / "out")
    for name in ("per_photo.csv", "per_class.csv", "metrics.json", "panel.png", "best_worst.png"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / "evaluation" / "test" / name).read_bytes(), name
    assert not (tmp_path / "out" / "prior.npz").exists()
    assert sorted(path.name for path in portable.iterdir()) == before


def test_a_prior_that_a_portable_folder_lacks_is_counted_beside_the_results(
    portable: Path, whole: Path, tmp_path: Path, in_batches_of_5: None
) -> None:
    shutil.copytree(portable, tmp_path / "older")
    (tmp_path / "older" / "prior.npz").unlink()
    evaluate(tmp_path / "older", out=tmp_path / "out")
    assert (tmp_path / "out" / "prior.npz").exists()
    assert not (tmp_path / "older" / "prior.npz").exists()
    ours, theirs = (json.loads((x / "metrics.json").read_text()) for x in (tmp_path / "out", whole / "evaluation/test"))
    assert ours["rows"] == theirs["rows"]


def test_weights_that_ship_are_found_by_name_and_kept_clean(portable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "SHIPPED", portable.parent)
    monkeypatch.setattr("colorjax.evaluation.evaluate.SHIPPED", portable.parent)
    for checkpoint in (portable.name, portable):
        with pytest.raises(ValueError, match=r"out is missing: give --out=FOLDER"):
            evaluate(checkpoint)


class Rows:
    """Some photos of a split, with other labels."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._images[indices], self._labels[indices]


@pytest.fixture(scope="module")
def three_classes(split: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of ten photos in three classes."""
    images = split["image"][split["mask"] > 0]
    rows: Any = Rows(images, np.arange(10) % 3)
    info = DatasetInfo("three", ("bread", "cheese", "wine"), {"train": 10, "test": 10})
    folder = tmp_path_factory.mktemp("three_classes") / "pack"
    write_pack(
        RowSource(info, {"train": rows, "test": rows}),
        folder,
        splits=("train", "test"),
        resolution=images.shape[1],
        train_fraction=0.8,
    )
    return folder


def test_a_run_of_three_classes_has_no_top_5(untrained: Path, three_classes: Path, tmp_path: Path) -> None:
    config = load_config(_copy(untrained, tmp_path / "config", source="packed")).unlock()
    config.data.dir = str(three_classes)
    workdir = tmp_path / "run"
    bind_config(config.lock(), workdir)
    save_class_names(workdir, ("bread", "cheese", "wine"))
    rng = np.random.default_rng(1)
    _, *shapes = abstract_model(config, "pretrain", classes=3)
    params, stats = jax.tree.map(lambda x: rng.uniform(0.01, 0.1, x.shape).astype(np.float32), shapes)
    checkpoints = Checkpoints(workdir / "pretrain" / "checkpoints")
    checkpoints.save(init_state(params, stats, make_optimizer(config, "pretrain"), sharding.make_mesh()))
    checkpoints.close()
    row = evaluate(workdir)["model"]
    assert row.keys() == {"top1"}
    photos = _read(workdir / "evaluation" / "test" / "per_photo.csv")
    assert row["top1"] == np.mean([float(photo["top1"]) for photo in photos])
    assert {photo["top5"] for photo in photos} == {""}

    # The classifier of other classes has nothing to say about these.
    (workdir / "classes.json").write_text('["bread", "cheese", "beer"]')
    with pytest.raises(ValueError, match="the classes of three are not those"):
        evaluate(workdir)


def test_photos_of_other_classes_are_evaluated_without_top_1(
    portable: Path, untrained: Path, three_classes: Path, tmp_path: Path, in_batches_of_5: None
) -> None:
    folder = _copy(portable, tmp_path / "exported", source="packed")
    shutil.copy(untrained / "prior.npz", folder)
    rows = evaluate(folder, data_dir=str(three_classes), out=tmp_path / "out")
    assert not {"top1", "top5"} & rows["model"].keys()
    assert rows["model"]["psnr"] > 0
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["left_out"][-1] == "top-1 and top-5, since the photos' classes are not the model's"
    assert [row["class"] for row in _read(tmp_path / "out" / "per_class.csv")] == ["bread", "cheese", "wine"]


def test_outputs_that_are_not_finite_are_an_error(
    portable: Path, untrained: Path, three_classes: Path, tmp_path: Path, in_batches_of_5: None
) -> None:
    trained = load_trained(portable)
    params = jax.tree.map(np.copy, trained.params)
    # Finite numbers, whose products are not.
    params["colorization"]["output"]["kernel"][:] = 3e38
    save_trained(replace(trained, params=params), tmp_path / "damaged")
    folder = _copy(tmp_path / "damaged", tmp_path / "packed", source="packed")
    shutil.copy(untrained / "prior.npz", folder)
    with pytest.raises(ValueError, match=r"not finite for 10 of 10 photos, such as photo 0: the weights are damaged"):
        evaluate(folder, data_dir=str(three_classes), out=tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_the_agreeing_temperature() -> None:
    assert agreeing_temperature({0.5: -2.0, 0.1: 6.0, 0.3: 2.0}) == pytest.approx(0.4)
    assert agreeing_temperature({0.2: 0.0, 0.1: 1.0}) == 0.2
    assert agreeing_temperature({0.1: -1.0, 0.2: -2.0}) is None


def test_what_cannot_be_asked_for(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"temperature=\[0\.2, -1\] must be 0 or more"):
        evaluate(untrained, temperature=[0.2, -1])
    with pytest.raises(ValueError, match=r"temperature=nan must be 0 or more"):
        evaluate(untrained, temperature=float("nan"))
    with pytest.raises(FileNotFoundError, match=r"alex\.pth does not exist"):
        evaluate(untrained, lpips_weights=tmp_path / "alex.pth")
    regression = _copy(untrained, tmp_path / "regression", head="ab")
    with pytest.raises(ValueError, match=r"temperature=0\.5 is for models with color classes.*'ab'"):
        evaluate(regression, temperature=0.5)
    classifier = tmp_path / "classifier"
    shutil.copytree(untrained, classifier)
    (classifier / "joint").rename(classifier / "pretrain")
    with pytest.raises(ValueError, match="has only its classifier yet"):
        evaluate(classifier, frechet=True)
    assert not (untrained / "evaluation").exists()


def test_a_regression_has_no_entropy_of_color(untrained: Path) -> None:
    config = load_config(untrained).unlock()
    config.model.head = "ab"
    mesh = sharding.make_mesh()
    model = nnx.eval_shape(lambda: Colorizer(config.model, classes=8, image_size=32, rngs=nnx.Rngs(0)))
    program, params, stats = Program.split(model)
    prior = Prior.load(untrained / "prior.npz")
    step = measures.make_measure(program, config, prior=prior, sweep=(), mesh=mesh)
    batch = next(data.eval_batches(config.data, "test", batch_size=2))
    scores, photos = jax.eval_shape(step, params, stats, batch)
    assert "color_ce" not in scores["model"]
    assert "color_loss" not in scores["prior"]
    assert scores["model"]["delta_e"].shape == (2,)
    assert photos["model"].shape == center_crop(batch["image"], config.data.image_size).shape
