"""The six networks and the two models, against Iizuka's table and formulas written out here."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colorjax.model import networks
from colorjax.model.colorizer import SHARED, Classifier, Colorizer, compute_dtype, parameter_count
from colorjax.model.program import Program
from configs import paper


def _config(row: str = "full", **model: Any) -> Any:
    config = paper.get_config(row).unlock()
    config.model.width = 0.25
    config.model.update(model)
    return config.model


def _l(batch: int = 2, size: int = 32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).uniform(0, 100, (batch, size, size, 1)), jnp.float32)


# Only the shapes are computed, which takes no time.
_abstract = nnx.eval_shape


def _random_model(kind: type, config: Any, *, train: bool = True) -> Any:
    """A model of 32 pixels and seven classes, as a compiled function of the photos.

    Its parameters come from numpy: compiling their initialization would take as long as all the rest.
    """
    program, *trees = Program.split(_abstract(lambda: kind(config, classes=7, image_size=32, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def numbers(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if len(leaf.shape) > 1:
            return jnp.asarray(rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape), jnp.float32)
        return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)

    params, stats = jax.tree.map(numbers, trees)
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(
        lambda *args, **named: program(params, stats, *args, train=train, **named)[0], compiler_options=options
    )


def _conv(a: int, b: int) -> int:
    return 9 * a * b + 2 * b  # the kernel, and the normalization's scale and bias


def _dense(a: int, b: int) -> int:
    return a * b + 2 * b


def test_iizukas_network_has_the_parameters_of_iizukas_table() -> None:
    """Every layer of SIGGRAPH 2016's table 1, with 205 classes and ab regression."""
    low = _conv(1, 64) + _conv(64, 128) + _conv(128, 128) + _conv(128, 256) + _conv(256, 256) + _conv(256, 512)
    global_ = 4 * _conv(512, 512) + _dense(7 * 7 * 512, 1024) + _dense(1024, 512) + _dense(512, 256)
    mid = _conv(512, 512) + _conv(512, 256)
    fusion = _dense(512, 256)
    color = _conv(256, 128) + _conv(128, 64) + _conv(64, 64) + _conv(64, 32) + (9 * 32 * 2 + 2)
    classes = _dense(512, 256) + 256 * 205 + 205
    model = _abstract(
        lambda: Colorizer(paper.get_config("iizuka2016").model, classes=205, image_size=224, rngs=nnx.Rngs(0))
    )
    assert parameter_count(model) == low + global_ + mid + fusion + color + classes
    assert round(parameter_count(model) / 1e6, 1) == 42.4


def test_classifier_and_colorizer_share_their_parameter_paths() -> None:
    def paths(model: type, name: str) -> dict[str, tuple[int, ...]]:
        made = _abstract(lambda: model(_config(), classes=7, image_size=64, rngs=nnx.Rngs(0)))
        _, params, stats = Program.split(made)
        leaves = jax.tree_util.tree_flatten_with_path({"params": params[name], "stats": stats[name]})[0]
        return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}

    for name in SHARED:
        assert paths(Classifier, name) == paths(Colorizer, name)
        assert paths(Classifier, name)


@pytest.mark.parametrize(("stride", "side"), [(2, 32), (4, 16)])
def test_shapes(stride: int, side: int) -> None:
    config = _config(output_stride=stride)
    out = _abstract(lambda: Colorizer(config, classes=7, image_size=64, rngs=nnx.Rngs(0))(_l(size=64)))
    assert out.class_logits.shape == (2, 7)
    assert out.color is not None
    assert out.color.shape == (2, side, side, 313)
    assert out.color.dtype == out.class_logits.dtype == jnp.float32


def test_pooling_has_the_parameters_of_strides_and_other_features() -> None:
    def made(how: str) -> Classifier:
        return Classifier(_config(downsampling=how), classes=7, image_size=64, rngs=nnx.Rngs(0))

    assert parameter_count(_abstract(lambda: made("stride"))) == parameter_count(_abstract(lambda: made("pool")))
    x = _l(size=64) / 50 - 1
    for how in ("stride", "pool"):
        assert _abstract(lambda how=how: made(how).low_level(x)).shape == (2, 8, 8, 128)
    assert _abstract(lambda: made("pool").low_level.layers[0](x)).shape == (2, 64, 64, 16)
    features = np.random.default_rng(0).normal(size=(2, 64, 64, 16)).astype(np.float32)
    maxima = features.reshape(2, 32, 2, 32, 2, 16).max((2, 4))
    pool = _abstract(lambda: made("pool")).low_level.layers[1]
    assert np.array_equal(pool(jnp.asarray(features)), maxima)


def test_other_sizes_need_a_global_view_of_the_trained_size() -> None:
    model = _random_model(Colorizer, _config(), train=False)
    with pytest.raises(ValueError, match=r"4×4 map.*got 6×6.*global_l.*32×32"):
        model(_l(size=48))
    out = model(_l(size=48), global_l=_l())
    assert out.color is not None
    assert out.color.shape == (2, 24, 24, 313)
    # The class is the global view's, whatever the local one is.
    np.testing.assert_allclose(
        out.class_logits, model(100 - _l(size=48), global_l=_l()).class_logits, rtol=1e-5, atol=1e-5
    )
    assert not np.allclose(out.class_logits, model(_l(size=48), global_l=100 - _l()).class_logits, atol=1e-3)


def test_fusion_is_a_1x1_convolution_of_the_concatenation() -> None:
    fusion = networks.Fusion(width=0.25, norm=lambda _: _Identity(), dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    local = rng.normal(size=(2, 3, 5, 64)).astype(np.float32)
    vector = rng.normal(size=(2, 64)).astype(np.float32)
    kernel = np.concatenate([np.asarray(fusion.vector.kernel[...]), np.asarray(fusion.local.kernel[...])])
    expected = np.zeros((2, 3, 5, 64))
    for b in range(2):
        for y in range(3):
            for x in range(5):
                expected[b, y, x] = np.concatenate([vector[b], local[b, y, x]]) @ kernel
    np.testing.assert_allclose(fusion(jnp.asarray(local), jnp.asarray(vector)), np.maximum(expected, 0), atol=1e-4)


class _Identity(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def test_upsampling_repeats_pixels() -> None:
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2)
    assert np.array_equal(networks.upsample(jnp.asarray(x)), np.kron(x, np.ones((1, 2, 2, 1))))


def test_batch_norm_uses_the_batch_in_training_and_the_running_statistics_afterwards() -> None:
    block = networks.ConvBlock(
        3,
        8,
        norm=networks.norm_factory("batch", photos=0, dtype=jnp.float32, rngs=nnx.Rngs(0)),
        dtype=jnp.float32,
        rngs=nnx.Rngs(1),
    )
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
    y = np.asarray(block.conv(jnp.asarray(x)))
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    block.train()
    trained = block(jnp.asarray(x))
    np.testing.assert_allclose(trained, np.maximum((y - mean) / np.sqrt(var + 1e-5), 0), atol=2e-5)
    running_mean, running_var = 0.1 * mean, 0.9 + 0.1 * var
    block.eval()
    np.testing.assert_allclose(
        block(jnp.asarray(x)), np.maximum((y - running_mean) / np.sqrt(running_var + 1e-5), 0), atol=2e-5
    )


def test_group_norm_sees_each_photo_by_itself() -> None:
    model = _random_model(Classifier, _config(norm="group"))
    l = _l(3)
    np.testing.assert_allclose(model(l).class_logits[:1], model(l[:1]).class_logits, rtol=1e-4, atol=1e-5)


def test_photos_that_share_statistics_are_normalized_as_a_batch_of_their_own() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1, 2, (6, 4, 5, 3)), jnp.float32)
    scale, bias = (jnp.asarray(rng.uniform(0.5, 1.5, 3), jnp.float32) for _ in range(2))
    options: Any = {"momentum": 0.9, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}

    def trained(norm: nnx.BatchNorm, x: jax.Array) -> tuple[Any, ...]:
        assert norm.scale is not None
        assert norm.bias is not None
        norm.scale[...], norm.bias[...] = scale, bias
        graph, state = nnx.split(norm)

        def loss(x: jax.Array) -> tuple[jax.Array, Any]:
            merged = nnx.merge(graph, state, copy=True)
            y = merged(x)
            return (y**3).sum(), (y, merged.mean[...], merged.var[...])

        (_, (y, mean, var)), gradient = jax.value_and_grad(loss, has_aux=True)(x)
        return y, gradient, mean, var

    ours = networks.GhostBatchNorm(3, photos=2, **options)
    y, gradient, mean, var = trained(ours, x)
    alone = [trained(nnx.BatchNorm(3, **options), x[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(y, np.concatenate([a[0] for a in alone]), atol=1e-5)
    np.testing.assert_allclose(gradient, np.concatenate([a[1] for a in alone]), atol=1e-4)
    np.testing.assert_allclose(mean, np.mean([a[2] for a in alone], axis=0), rtol=1e-6)
    np.testing.assert_allclose(var, np.mean([a[3] for a in alone], axis=0), rtol=1e-6)

    with pytest.raises(ValueError, match=r"model\.norm_photos is 2, which does not divide a batch of 3 photos"):
        ours(x[:3])
    # A trained network normalizes any number of photos.
    assert nnx.view(ours, use_running_average=True)(x[:3]).shape == (3, 4, 5, 3)


def test_a_network_of_small_groups_has_the_parameters_of_another() -> None:
    def shapes(photos: int) -> Any:
        made = _abstract(lambda: Classifier(_config(norm_photos=photos), classes=7, image_size=32, rngs=nnx.Rngs(0)))
        return Program.split(made)[1:]

    assert shapes(8) == shapes(0)


def test_the_networks_that_a_row_leaves_out_have_no_parameters() -> None:
    def names(row: str) -> tuple[set[str], set[str]]:
        made = _abstract(lambda: Colorizer(_config(row), classes=7, image_size=64, rngs=nnx.Rngs(0)))
        params = Program.split(made)[1]
        return set(params), set(params["colorization"])

    assert names("full")[0] == {*SHARED, "mid_level", "fusion", "colorization"}
    assert names("no_fusion")[0] == {*SHARED, "mid_level", "colorization"}
    assert "attention" in names("full")[1]
    assert "attention" not in names("no_output_attention")[1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("norm", "layer", "model.norm is 'layer'; it must be 'batch' or 'group'"),
        ("norm_photos", -1, "model.norm_photos is -1"),
        ("head", "rgb", "model.head is 'rgb'"),
        ("output_stride", 3, "model.output_stride is 3"),
        ("output_attention", "some", "model.output_attention is 'some'"),
        ("patch_kernels", (3, 7), "model.patch_kernels is"),
        ("downsampling", "blur", "model.downsampling is 'blur'"),
        ("dtype", "float16", "model.dtype is 'float16'"),
        ("width", 0.3, "model.width is 0.3"),
        ("width", 0.125, "model.width is 0.125"),
    ],
)
def test_errors_name_the_field_and_the_value(field: str, value: Any, message: str) -> None:
    config = paper.get_config().unlock()
    config.model.width = 0.25
    with config.ignore_type():
        config.model[field] = value
    with pytest.raises(ValueError, match=message):
        _abstract(lambda: Colorizer(config.model, classes=7, image_size=64, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("size", [60, 24])
def test_image_sizes_that_the_strides_do_not_divide_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"data.image_size is {size}"):
        _abstract(lambda: Classifier(_config(), classes=7, image_size=size, rngs=nnx.Rngs(0)))


def _in_bfloat16(x: Any) -> np.ndarray:
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


def test_the_output_layers_sum_up_bfloat16_products_in_float32() -> None:
    """Sums near 16, which bfloat16 would round by up to 1/32."""
    options = {"outputs": 5, "output_stride": 4, "output_attention": "none", "output_gate": 0.0}

    def output_layer(network: Any, **options: Any) -> Any:
        rngs = nnx.Rngs(0)
        norm = networks.norm_factory("batch", photos=0, dtype=jnp.bfloat16, rngs=rngs)
        return network(width=0.25, norm=norm, dtype=jnp.bfloat16, rngs=rngs, **options).output

    dense = _abstract(lambda: output_layer(networks.Classification, classes=7))
    convolution = _abstract(lambda: output_layer(networks.Colorization, **options))
    rng = np.random.default_rng(0)
    for layer in (dense, convolution):
        assert layer.bias is not None
        layer.kernel = nnx.Param(jnp.asarray(rng.normal(size=layer.kernel.shape), jnp.float32))
        layer.bias = nnx.Param(jnp.asarray(rng.uniform(15.9, 16.1, layer.bias.shape), jnp.float32))
    vectors = rng.normal(size=(3, 64))
    expected = _in_bfloat16(vectors) @ _in_bfloat16(dense.kernel[...]) + np.asarray(dense.bias[...], np.float64)
    logits = dense(jnp.asarray(vectors, jnp.bfloat16))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    maps = rng.normal(size=(2, 4, 5, 8))
    padded = np.pad(_in_bfloat16(maps), [(0, 0), (1, 1), (1, 1), (0, 0)])
    kernel = _in_bfloat16(convolution.kernel[...])
    expected = sum(padded[:, y : y + 4, x : x + 5] @ kernel[y, x] for y in range(3) for x in range(3))
    logits = convolution(jnp.asarray(maps, jnp.bfloat16))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected + np.asarray(convolution.bias[...], np.float64), atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_returns_float32() -> None:
    config = _config(dtype="bfloat16")
    assert compute_dtype(config) == jnp.bfloat16
    features = _abstract(
        lambda: Classifier(config, classes=7, image_size=64, rngs=nnx.Rngs(0)).low_level(_l() / 50 - 1)
    )
    assert features.dtype == jnp.bfloat16
    # With the statistics of two photos BatchNorm would magnify every rounding.
    logits, reference = (_random_model(Classifier, c, train=False)(_l()).class_logits for c in (config, _config()))
    assert logits.dtype == jnp.float32
    assert 0 < float(jnp.abs(logits - reference).max()) < 0.05 * float(jnp.abs(reference).max())
