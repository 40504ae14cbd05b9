"""BatchNorm's statistics computed anew, against numpy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.color
from flax import nnx

from colorjax import data
from colorjax.export.formats import export
from colorjax.model.attention import SpectralLinear
from colorjax.model.program import Program
from colorjax.run.trained import load_trained
from colorjax.training.statistics import statistics_over


class _TwoNorms(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
        self.linear = SpectralLinear(3, 4, rngs=rngs)
        self.second = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jnp.tanh(self.linear(self.first(x))))


def test_the_statistics_are_the_mean_and_variance_over_all_batches() -> None:
    program, params, stats = Program.split(_TwoNorms())
    batches = np.random.default_rng(0).normal(3, 2, size=(40, 16, 3)).astype(np.float32)
    batches *= np.linspace(0.5, 2, 40)[:, None, None].astype(np.float32)  # so that the batches' means differ
    found = statistics_over(map(jnp.asarray, batches), program, params, stats)

    def check(name: str, inputs: np.ndarray) -> None:
        values = inputs.astype(np.float64).reshape(-1, inputs.shape[-1])
        mean = values.sum(axis=0) / len(values)
        np.testing.assert_allclose(found[name]["mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[name]["var"], ((values - mean) ** 2).mean(axis=0), rtol=1e-5)

    check("first", batches)
    # What the second sees: each batch normalized by its own statistics, the linear map by its largest singular value.
    normalized = batches - batches.mean(axis=1, keepdims=True)
    normalized = normalized / np.sqrt(batches.var(axis=1, keepdims=True) + 1e-5)
    kernel = np.asarray(params["linear"]["kernel"], np.float64)
    spectral = kernel / np.linalg.svd(kernel)[1][0]
    # Its power iteration takes some batches, so they go by once more.
    found = statistics_over(map(jnp.asarray, batches), program, params, found)
    check("second", np.tanh(normalized @ spectral))
    assert found.keys() == stats.keys()
    _, _, right = np.linalg.svd(kernel)
    assert abs(found["linear"]["u"] @ right[0]) == pytest.approx(1, abs=1e-4)


def test_no_batch_is_refused() -> None:
    program, params, stats = Program.split(_TwoNorms())
    with pytest.raises(ValueError, match="there is no batch"):
        statistics_over([], program, params, stats)


@pytest.mark.slow
def test_an_export_with_new_statistics_has_the_runs_weights(untrained: Path, tmp_path: Path) -> None:
    before = load_trained(untrained)
    for name in ("first", "again"):
        export(untrained, tmp_path / name, format="npz", statistics_batches=2)
    first, again = (load_trained(tmp_path / name) for name in ("first", "again"))
    jax.tree.map(np.testing.assert_array_equal, first.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, first.stats, again.stats)
    norm = first.stats["low_level"]["layers"]["0"]["norm"]
    assert not np.allclose(norm["mean"], before.stats["low_level"]["layers"]["0"]["norm"]["mean"])
    assert (norm["var"] > 0).all()
    # The photos are seen as in evaluation: their middle, as it is.
    config = before.config
    size, stream = config.data.image_size, data.train_batches(config.data, batch_size=config.joint.batch_size, seed=1)
    photos = [next(stream)["image"] for _ in range(2)]
    middle = (photos[0].shape[1] - size) // 2
    crops = [x[:, middle : middle + size, middle : middle + size] for x in photos]
    l = [skimage.color.rgb2lab(crop)[..., :1].astype(np.float32) for crop in crops]
    expected = statistics_over(map(jnp.asarray, l), before.program(), before.params, before.stats)
    expected = expected["low_level"]["layers"]["0"]["norm"]
    np.testing.assert_allclose(norm["mean"], expected["mean"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(norm["var"], expected["var"], rtol=1e-3)


def test_a_card_is_not_written_for_statistics_that_were_not_evaluated(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="export it as safetensors first"):
        export(untrained, tmp_path / "folder", format="hub", statistics_batches=2)
    assert not (tmp_path / "folder").exists()
