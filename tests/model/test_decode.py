"""Decoding, against a softmax written out here."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.special

from colorjax import Predictor, color
from colorjax.model.decode import make_decoder
from colorjax.run.trained import load_trained, save_trained
from configs import paper


def test_colors_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    prior, logits = rng.dirichlet(np.full(313, 0.5)), rng.normal(size=(2, 3, 313)).astype(np.float32)
    config = paper.get_config().unlock()
    config.decode.update(temperature=0.5, unweighting=0.3, saturation=1.2)
    decoder = make_decoder(config, prior)
    adjusted = logits - 0.3 * np.log(color.rarity_weights(prior))
    np.testing.assert_allclose(decoder.adjusted(logits), adjusted, rtol=1e-5, atol=1e-5)
    for temperature in (0.5, 1.0):
        shares = scipy.special.softmax(adjusted.astype(np.float64) / temperature, axis=-1)
        got = decoder.ab(logits, temperature=None if temperature == 0.5 else temperature)
        np.testing.assert_allclose(got, 1.2 * shares @ color.ab_bins(), rtol=1e-4, atol=1e-3)
    mode = color.ab_bins()[adjusted.argmax(axis=-1)]
    np.testing.assert_allclose(decoder.ab(logits, temperature=0), 1.2 * mode, rtol=1e-5)
    ab = rng.normal(size=(2, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(decoder.ab(ab), 1.2 * ab, rtol=1e-6)


def test_all_of_the_weights_taken_out_gives_the_mean_color() -> None:
    """What a perfect network learns from a weighted loss is v·p; p is found again."""
    rng = np.random.default_rng(1)
    prior, p = rng.dirichlet(np.full(313, 0.5)), rng.dirichlet(np.full(313, 0.5), size=5)
    config = paper.get_config().unlock()
    config.decode.update(temperature=1.0, unweighting=1.0)
    logits = np.log(p * color.rarity_weights(prior))
    got = make_decoder(config, prior).ab(logits.astype(np.float32))
    np.testing.assert_allclose(got, p @ color.ab_bins(), rtol=1e-4, atol=1e-3)


def test_without_rarity_weights_there_is_nothing_to_take_out() -> None:
    config = paper.get_config("no_rarity").unlock()
    config.decode.unweighting = 1.0
    prior = np.random.default_rng(2).dirichlet(np.full(313, 0.5))
    np.testing.assert_allclose(make_decoder(config, prior).adjustment, 0, atol=1e-6)


def test_an_unweighting_needs_the_prior(untrained: Path, tmp_path: Path) -> None:
    trained = load_trained(untrained)
    with trained.config.unlocked():
        trained.config.decode.unweighting = 0.3
    save_trained(dataclasses.replace(trained, prior=None), tmp_path / "folder")
    with pytest.raises(ValueError, match=r"decode\.unweighting is 0\.3, which needs .* there is no prior\.npz: set it"):
        Predictor(tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    config["decode"]["unweighting"] = 1.5
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"decode\.unweighting is 1\.5; it must be between 0 and 1"):
        Predictor(tmp_path / "folder")


def test_predictions_are_decoded_as_configured(untrained: Path, tmp_path: Path) -> None:
    trained = load_trained(untrained)
    photo = np.random.default_rng(3).integers(0, 256, (32, 32), np.uint8)
    (plain,) = Predictor(untrained).predict([photo])
    with trained.config.unlocked():
        trained.config.decode.update(unweighting=0.3, saturation=1.2)
    save_trained(trained, tmp_path / "folder")
    (prediction,) = Predictor(tmp_path / "folder").predict([photo])
    decoder = trained.decoder()
    np.testing.assert_allclose(prediction.color, plain.color + decoder.adjustment, atol=1e-3)
    np.testing.assert_allclose(prediction.ab(), decoder.ab(plain.color), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(prediction.ab(temperature=0), decoder.ab(plain.color, temperature=0), rtol=1e-3)
