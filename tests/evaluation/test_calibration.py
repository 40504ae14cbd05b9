"""The calibration of the color probabilities, against loops over pixels in numpy."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special
import skimage.color
from test_judges import QUICK

from colorjax import color, data
from colorjax.data.batches import Share
from colorjax.evaluation import calibration
from colorjax.evaluation.evaluate import evaluate
from colorjax.run import compilation, sharding
from colorjax.run.trained import load_trained

BINS = calibration.BINS


def test_the_error_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 500)
    right = rng.uniform(0, 1, 500) < confidence**2
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    expected = sum(
        (number == i).sum() / 500 * abs(right[number == i].mean() - confidence[number == i].mean()) for i in set(number)
    )
    sums = [np.bincount(number, weights=x, minlength=BINS) for x in (np.ones(500), confidence, right)]
    assert calibration.expected_calibration_error(*sums) == pytest.approx(expected)


def test_the_lowest_point_of_a_curve() -> None:
    x = np.linspace(-1, 1, 9)
    assert calibration.lowest(x, (x - 0.33) ** 2) == pytest.approx(0.33)
    assert calibration.lowest(x, -x) == 1.0  # at an end, not beyond it
    assert calibration.lowest(x, np.zeros(9)) == -1.0


@pytest.mark.slow
def test_a_split_is_measured_as_in_a_loop(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_trained(untrained)
    with trained.config.unlocked():
        trained.config.decode.update(unweighting=0.4, saturation=1.25)
    config, program = trained.config, trained.program()
    batch = next(data.eval_batches(config.data, "test", batch_size=4))
    batch["image"][1] = batch["image"][1].mean(axis=-1, keepdims=True)  # gray
    batch["mask"][2] = 0
    asked = []

    def batches(_: Any, split: str, **__: Any) -> Iterator[data.Batch]:
        asked.append(split)
        yield batch

    monkeypatch.setattr(data, "eval_batches", batches)
    monkeypatch.setattr(compilation, "compiler_options", lambda: QUICK)
    monkeypatch.setattr(calibration, "_TEMPERATURES", (0.5, 1.0, 2.0))
    mesh = sharding.make_mesh()
    trees = trained.params, trained.stats
    options: dict[str, Any] = {"decoder": trained.decoder(), "split": "test", "share": Share(4, 0, 1), "mesh": mesh}
    record = calibration.calibrate(program, *trees, config, **options)
    assert asked == ["validation", "test"]

    rgb = np.asarray(data.center_crop(batch["image"], 32))[[0, 3]]
    lab = skimage.color.rgb2lab(rgb)
    run = jax.jit(lambda p, s, l: program(p, s, l, train=False)[0].color, compiler_options=QUICK)
    logits = np.asarray(run(*trees, lab[..., :1].astype(np.float32)), np.float64).reshape(-1, 313)
    true = lab[..., 1:].reshape(2, 16, 2, 16, 2, 2).mean(axis=(2, 4)).reshape(-1, 2)
    nearest = np.square(true[:, None] - color.ab_bins()).sum(-1).argmin(-1)
    assert trained.prior is not None
    logits -= 0.4 * np.log(color.rarity_weights(trained.prior.p))
    decoded = 1.25 * scipy.special.softmax(logits / config.decode.temperature, axis=-1) @ color.ab_bins()

    def nll(temperature: float) -> float:
        return -scipy.special.log_softmax(logits / temperature, axis=-1)[range(len(nearest)), nearest].mean()

    low, middle, high = (nll(t) for t in (0.5, 1.0, 2.0))
    vertex = 0.5 * (low - high) / (low - 2 * middle + high)
    best = np.argmin([low, middle, high])
    assert record["temperature"] == pytest.approx((0.5, 2**vertex, 2.0)[best], rel=1e-3)
    for name, temperature in (("before", 1.0), ("after", record["temperature"])):
        found = record[name]
        p = scipy.special.softmax(logits / temperature, axis=-1)
        assert found["nll"] == pytest.approx(nll(temperature), rel=1e-3)
        uncertainty = -(p * np.log(p)).sum(-1) / np.log(313)
        for values, share, means in (
            (p.max(-1), "share", {"confidence": p.max(-1), "accuracy": p.argmax(-1) == nearest}),
            (uncertainty, "uncertainty_share", {"error": np.linalg.norm(decoded - true, axis=-1)}),
        ):
            number = np.minimum((values * BINS).astype(int), BINS - 1)
            counts = np.bincount(number, minlength=BINS)
            np.testing.assert_allclose(found[share], counts / len(number), atol=0.02)
            for key, x in means.items():
                sums = np.bincount(number, weights=x, minlength=BINS)
                total = sum(n * (m or 0) for n, m in zip(found[share], found[key], strict=True))
                assert total == pytest.approx(sums.sum() / len(number), rel=0.01, abs=0.01)
        assert found["ece"] == pytest.approx(
            sum(
                n * abs(a - c)
                for n, a, c in zip(found["share"], found["accuracy"], found["confidence"], strict=True)
                if n
            )
        )
        assert found["ece_interval"][0] <= found["ece_interval"][1] <= 1
    drawn = ET.fromstring(calibration.chart(record))
    assert len(drawn.findall("{*}polyline")) == 4


def test_only_a_model_with_color_classes_has_it(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from colorjax.evaluation import evaluate as module

    config = load_trained(untrained).config.unlock()
    config.model.head = "ab"
    monkeypatch.setattr(module, "load_config", lambda _: config)
    with pytest.raises(ValueError, match=r"--calibration is for models with color classes.*'ab'"):
        evaluate(untrained, calibration=True)
