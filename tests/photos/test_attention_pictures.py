"""What the attentions look at, against softmax(q kᵀ) and γ computed from the parameters in numpy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from colorjax.cli import main
from colorjax.model import attention
from colorjax.model.program import abstract_model
from colorjax.photos.attention import attention_weights, draw_attention
from colorjax.run.trained import load_trained

UNOPTIMIZED = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize("pooled", [False, True])
def test_the_output_attention_is_the_softmax_of_the_parameters_scores(pooled: bool) -> None:
    module = attention.SelfAttention(16, pooled=pooled, rngs=nnx.Rngs(0))
    module(jnp.ones((1, 4, 4, 16)))  # moves the spectral norms' vectors
    module.eval()
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 16)).astype(np.float32) * 3

    def mapped(name: str) -> np.ndarray:
        layer = getattr(module, name)
        kernel = np.asarray(layer.kernel[...], np.float64)
        v = kernel @ np.asarray(layer.u[...], np.float64)
        v /= np.linalg.norm(v)
        u = v @ kernel / np.linalg.norm(v @ kernel)
        return x @ (kernel / (v @ kernel @ u))

    query, key = mapped("query"), mapped("key")
    if pooled:
        key = key.reshape(2, 3, 2, 4, 2, -1).max(axis=(2, 4))
    scores = np.einsum("bc,bhwc->bhw", query[:, 4, 3], key)
    expected = np.exp(scores) / np.exp(scores).sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(module.weights(jnp.asarray(x), row=4, column=3), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("relation_norm", ["before", "after"])
def test_the_patch_weights_are_those_that_the_attention_sums_with(relation_norm: Any) -> None:
    module = attention.PatchwiseSelfAttention(
        16,
        kernel_size=3,
        relation_features=2,
        out_features=8,
        share=4,
        relation_norm=relation_norm,
        norm=lambda features: nnx.BatchNorm(features, use_running_average=True, rngs=nnx.Rngs(1)),
        rngs=nnx.Rngs(0),
    )
    x = np.random.default_rng(0).normal(size=(1, 5, 6, 16)).astype(np.float32)
    weights = np.asarray(module.weights(jnp.asarray(x)))
    assert weights.shape == (1, 5, 6, 3, 3, 2)
    values = np.pad(np.asarray(module.beta(jnp.asarray(x))), [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    expected = np.zeros((5, 6, 8))
    for row, column, c in np.ndindex(5, 6, 8):
        patch = values[0, row : row + 3, column : column + 3, c]
        expected[row, column, c] = (weights[0, row, column, :, :, c % 2] * patch).sum()
    np.testing.assert_allclose(module(jnp.asarray(x))[0], expected, rtol=1e-3, atol=1e-4)


def test_the_command_draws_one_picture(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "attention.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)).save(photo)

    def run(*arguments: Any) -> int:
        with pytest.raises(SystemExit) as exit:
            main(["attention", *map(str, arguments), "--checkpoint", str(untrained)])
        assert isinstance(exit.value.code, int)
        return exit.value.code

    assert run(photo, "--at", "49,29", "--out", out) == 0
    with Image.open(out) as picture:
        assert picture.size == (5 * 296 + 8, 288 + 38)
    for arguments, message in (
        ((photo, "--at", "50,29", "--out", out), "--at: 50,29 is outside the photo; x is 0…49 and y 0…29"),
        ((photo, "--at", "middle", "--out", out), "--at: 'middle' is not a point; give two whole numbers"),
        ((photo, "--at", "1,1", "--out", "a.gif"), "--out is a.gif; the picture is a .png or .jpg file"),
        ((tmp_path / "no.png", "--at", "1,1", "--out", out), "no.png: No such file"),
    ):
        assert run(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_a_variant_without_an_attention(untrained: Path) -> None:
    trained = load_trained(untrained)
    photo = np.zeros((30, 50), np.uint8)
    without_output, without_patches = {"output_attention": "none"}, {"patch_attention": False}
    for changes in (without_output, without_patches, {"fusion": False}, without_output | without_patches):
        config = trained.config.copy_and_resolve_references().unlock()
        config.model.update(changes)
        if len(changes) == 2:
            with pytest.raises(
                ValueError, match=r"no attention \(model\.output_attention 'none', patch_attention False"
            ):
                attention_weights(replace(trained, config=config), photo, (1, 1))
            continue
        program, params, stats = abstract_model(config, "joint", classes=8)
        place = {"x": jnp.float32(0.5), "y": jnp.float32(0.5)}
        shapes = jax.eval_shape(
            lambda params, stats, program=program, place=place: program.attention_weights(
                params, stats, jnp.zeros((1, 32, 32, 1)), **place
            ),
            params,
            stats,
        )
        assert (shapes.output is None) == (changes == without_output)
        assert [x.shape for x in shapes.patches] == ([] if changes == without_patches else [(1, 3, 3)] * 3)
        ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
        panels = 1 + len(jax.tree.leaves(shapes))
        assert draw_attention(photo, (1, 1), ones, size=32).shape[1] == panels * 296 + 8


def test_the_patches_are_drawn_where_there_is_no_output_attention(untrained: Path) -> None:
    trained = load_trained(untrained)
    photo = np.random.default_rng(0).integers(0, 255, (30, 50), np.uint8)
    whole = attention_weights(trained, photo, (20, 10))
    config = trained.config.copy_and_resolve_references().unlock()
    config.model.output_attention = "none"
    params, stats = ({name: dict(x) for name, x in tree.items()} for tree in (trained.params, trained.stats))
    for tree in (params, stats):
        del tree["colorization"]["attention"]
    weights = attention_weights(replace(trained, config=config, params=params, stats=stats), photo, (20, 10))
    assert weights.output is None
    # What the output attention does comes after them.
    for one, other in zip(weights.patches, whole.patches, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
