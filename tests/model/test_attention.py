"""Both self-attentions against plain forms that hold everything."""

import functools
import itertools
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colorjax.model.attention import (
    PatchwiseAttentionBlock,
    PatchwiseSelfAttention,
    SelfAttention,
    SpectralLinear,
    unfold,
)


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _module(kind: Any, *args: Any, norm: Any = None, **options: Any) -> Any:
    """A module with numpy's random parameters: to compile each initializer would take longer than most tests.

    Scales and biases are away from the ones and zeros of an initialization, so that none can be forgotten.
    """

    def construct() -> nnx.Module:
        rngs = nnx.Rngs(0)
        norms = {"norm": functools.partial(norm, rngs=rngs)} if norm else {}
        return kind(*args, **options, **norms, rngs=rngs)

    graph, state = nnx.split(nnx.eval_shape(construct))
    rng = np.random.default_rng(3)

    def numbers(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        scale = leaf.shape[0] ** -0.5 if len(leaf.shape) > 1 else 0.3
        return jnp.asarray(rng.normal(len(leaf.shape) == 1, scale, leaf.shape), leaf.dtype)

    return nnx.merge(graph, jax.tree.map(numbers, state))


_batch_norm = nnx.BatchNorm
_group_norm = functools.partial(nnx.GroupNorm, num_groups=1)

_call = nnx.jit(lambda module, x: module(x))


# SpectralLinear


def test_spectral_norm_converges_to_the_largest_singular_value():
    linear = _module(SpectralLinear, 12, 5)
    for _ in range(200):
        normalized = _call(linear, jnp.eye(12))
    kernel = np.asarray(linear.kernel[...])
    largest = np.linalg.svd(kernel, compute_uv=False)[0]
    np.testing.assert_allclose(normalized, kernel / largest, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.svd(normalized, compute_uv=False)[0], 1, rtol=1e-5)


def test_spectral_norm_gradient_holds_u_and_v_fixed():
    linear = _module(SpectralLinear, 6, 4)
    x, cotangent = _normal(1, 3, 6), _normal(2, 3, 4)
    kernel, u = np.asarray(linear.kernel[...], np.float64), np.asarray(linear.u[...], np.float64)
    v = kernel @ u / np.linalg.norm(kernel @ u)
    u = v @ kernel / np.linalg.norm(v @ kernel)
    gradient = nnx.jit(nnx.grad(lambda linear: (linear(x) * cotangent).sum()))(linear)
    # d/dW (x W / (vᵀ W u)) · c, by the quotient rule.
    sigma = v @ kernel @ u
    through = np.asarray(x, np.float64).T @ np.asarray(cotangent, np.float64)
    expected = through / sigma - (through * kernel).sum() / sigma**2 * np.outer(v, u)
    np.testing.assert_allclose(gradient["kernel"][...], expected, atol=1e-4)


# SelfAttention


def _svd_normalized(linear: SpectralLinear) -> np.ndarray:
    kernel = np.asarray(linear.kernel[...], np.float64)
    return kernel / np.linalg.svd(kernel, compute_uv=False)[0]


@pytest.mark.parametrize("pooled", [False, True])
def test_self_attention_is_the_written_out_block(pooled):
    block = _module(SelfAttention, 16, pooled=pooled)
    block.gate[...] = jnp.float32(0.7)
    x = _normal(5, 2, 4, 6, 16)
    for _ in range(100):  # until the power iterations have converged
        out = _call(block, x)
    maps = [_svd_normalized(m) for m in (block.query, block.key, block.value, block.output)]
    expected = np.asarray(x, np.float64).copy()
    for b in range(2):
        image = np.asarray(x[b], np.float64)
        query, key, value = (image @ m for m in maps[:3])
        if pooled:
            key, value = (
                np.stack([[y[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max((0, 1)) for c in range(3)] for r in range(2)])
                for y in (key, value)
            )
        scores = query.reshape(-1, 2) @ key.reshape(-1, 2).T
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        attended = weights @ value.reshape(-1, 8)
        expected[b] += 0.7 * (attended @ maps[3]).reshape(4, 6, 16)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_self_attention_starts_as_the_identity_and_its_gate_learns():
    block = _module(SelfAttention, 8)
    block.gate[...] = jnp.float32(0)
    x = _normal(0, 1, 4, 4, 8)
    np.testing.assert_array_equal(_call(block, x), x)
    gradient = nnx.jit(nnx.grad(lambda block: (block(x) ** 2).sum()))(block)
    assert gradient["gate"][...] != 0
    assert gradient["gate"][...].shape == ()


def test_only_training_stores_the_power_iteration():
    block = _module(SelfAttention, 8)
    x = _normal(0, 1, 4, 4, 8)
    start = np.asarray(block.query.u[...])
    block.eval()
    first = _call(block, x)
    np.testing.assert_array_equal(_call(block, x), first)
    np.testing.assert_array_equal(block.query.u[...], start)
    block.train()
    _call(block, x)
    assert not np.array_equal(block.query.u[...], start)
    assert set(nnx.state(block, nnx.BatchStat)) == {"query", "key", "value", "output"}
    assert set(nnx.state(block, nnx.Param)) == {"query", "key", "value", "output", "gate"}


def test_self_attention_of_few_features_and_in_bfloat16():
    def block(**options: Any) -> SelfAttention:
        return SelfAttention(4, gate_init=0.25, dtype=jnp.bfloat16, rngs=nnx.Rngs(0), **options)

    made = nnx.eval_shape(block)
    assert made.query.kernel.shape == (4, 1)
    assert made.query.kernel.dtype == jnp.float32
    assert nnx.eval_shape(lambda: block()(jnp.zeros((2, 4, 4, 4)))).dtype == jnp.bfloat16
    assert jax.jit(lambda: block().gate[...])() == 0.25
    with pytest.raises(ValueError, match="features must be at least 2"):
        SelfAttention(1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="5×4"):
        nnx.eval_shape(lambda: block(pooled=True)(jnp.zeros((1, 5, 4, 4))))


# PatchwiseSelfAttention


PATCHWISE: dict[str, Any] = {"kernel_size": 3, "relation_features": 3, "out_features": 8, "share": 4}


def _patchwise(**changes: Any) -> PatchwiseSelfAttention:
    return _module(PatchwiseSelfAttention, 10, **PATCHWISE | {"norm": _batch_norm} | changes)


def _normalized(x: np.ndarray, norm: nnx.Module) -> np.ndarray:
    assert isinstance(norm, nnx.BatchNorm)
    axes = tuple(range(x.ndim - 1))
    assert norm.scale is not None
    assert norm.bias is not None
    scale, bias = np.asarray(norm.scale[...]), np.asarray(norm.bias[...])
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + norm.epsilon) * scale + bias


def _linear(x: np.ndarray, linear: nnx.Linear) -> np.ndarray:
    out = x @ np.asarray(linear.kernel[...], np.float64)
    return out if linear.bias is None else out + np.asarray(linear.bias[...], np.float64)


def _patches(x: np.ndarray, kernel_size: int) -> np.ndarray:
    """[B, H, W, C] -> [B, H, W, k², C], numpy's own reflection."""
    reach = kernel_size // 2
    padded = np.pad(x, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="reflect")
    out = np.zeros((*x.shape[:3], kernel_size**2, x.shape[3]))
    for y, z in np.ndindex(x.shape[1:3]):
        patch = padded[:, y : y + kernel_size, z : z + kernel_size]
        out[:, y, z] = patch.reshape(x.shape[0], kernel_size**2, -1)
    return out


@pytest.mark.parametrize("relation_norm", ["before", "after"])
def test_patchwise_attention_is_the_written_out_form(relation_norm):
    attention = _patchwise(relation_norm=relation_norm)
    x = _normal(0, 2, 5, 4, 10)
    image = np.asarray(x, np.float64)
    phi, psi, beta = (_linear(image, m) for m in (attention.phi, attention.psi, attention.beta))
    if relation_norm == "before":
        phi = np.maximum(_normalized(phi, attention.phi_norm), 0)
        psi = np.maximum(_normalized(psi, attention.psi_norm), 0)
    relation = np.concatenate([phi, _patches(psi, 3).reshape(2, 5, 4, -1)], axis=-1)
    if relation_norm == "after":
        relation = np.maximum(_normalized(relation, attention.relation_norm), 0)
    hidden = _normalized(_linear(relation, attention.gamma_in), attention.gamma_norm)
    weights = _linear(np.maximum(hidden, 0), attention.gamma_out).reshape(2, 5, 4, 9, 2)
    values = _patches(beta, 3)
    expected = np.zeros((2, 5, 4, 8))
    for c, j in itertools.product(range(8), range(9)):
        expected[..., c] += weights[..., j, c % 2] * values[..., j, c]
    np.testing.assert_allclose(_call(attention, x), expected, atol=1e-4)


def test_the_joint_linear_equals_the_unfolded_one_with_its_gradients():
    attention = _patchwise(kernel_size=5)
    phi, psi, cotangent = _normal(0, 2, 6, 7, 3), _normal(1, 2, 6, 7, 3), _normal(2, 2, 6, 7, 2)

    def plain(attention, phi, psi):
        return attention.gamma_in(jnp.concatenate([phi, unfold(psi, kernel_size=5)], axis=-1))

    def joint(attention, phi, psi):
        return attention._joint_linear(phi, psi)

    @nnx.jit
    def both_ways(attention, phi, psi):
        found = []
        for form in (joint, plain):

            def loss(attention, phi, psi, form=form):
                out = form(attention, phi, psi)
                return (out * cotangent).sum(), out

            (state, *rest), out = nnx.grad(loss, argnums=(0, 1, 2), has_aux=True)(attention, phi, psi)
            found.append([out, state["gamma_in"]["kernel"][...], *rest])
        return found

    for ours, unfolded in zip(*both_ways(attention, phi, psi), strict=True):
        np.testing.assert_allclose(ours, unfolded, atol=1e-3)


@pytest.mark.parametrize("norm", [_batch_norm, _group_norm])
def test_patchwise_block_is_residual_and_trains_every_parameter(norm):
    block = _module(PatchwiseAttentionBlock, 64, kernel_size=3, norm=norm)
    x, target = _normal(0, 2, 6, 6, 64), _normal(1, 2, 6, 6, 64)

    @nnx.jit
    def run(block):
        def loss(block):
            out = block(x)
            return ((out - target) ** 2).sum(), out

        return nnx.grad(loss, has_aux=True)(block)

    gradient, out = run(block)
    assert np.abs(out - x).max() > 0.01
    for parameter in (block.expand.kernel, block.expand.bias):
        parameter[...] = jnp.zeros_like(parameter[...])
    np.testing.assert_array_equal(run(block)[1], x)
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(gradient)):
        # A bias before a batch normalization cancels; every other parameter counts.
        cancels = norm is _batch_norm and jax.tree_util.keystr(path).endswith(("['phi']['bias']", "['psi']['bias']"))
        assert cancels or np.abs(leaf).max() > 1e-6, path


def test_patchwise_block_of_the_narrowest_width_in_bfloat16():
    def block() -> PatchwiseAttentionBlock:
        norm = functools.partial(nnx.BatchNorm, rngs=nnx.Rngs(0))
        return PatchwiseAttentionBlock(32, kernel_size=7, norm=norm, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

    attention = nnx.eval_shape(block).attention
    assert attention.phi.kernel.shape == (32, 2)
    assert attention.gamma_out.kernel.shape == (1, 49)
    assert attention.gamma_out.kernel.dtype == jnp.float32
    out = nnx.eval_shape(lambda: block()(jnp.zeros((1, 8, 8, 32))))
    assert out.shape == (1, 8, 8, 32)
    assert out.dtype == jnp.bfloat16


def test_wrong_widths_name_the_value_and_the_remedy():
    options = {"norm": _batch_norm, "rngs": nnx.Rngs(0)}
    with pytest.raises(ValueError, match=r"features = 40 .*relation_ratio = 16.*choose"):
        PatchwiseAttentionBlock(40, kernel_size=3, **options)
    with pytest.raises(ValueError, match=r"features = 48 .*= 32.*choose"):
        PatchwiseAttentionBlock(48, kernel_size=3, **options)
    with pytest.raises(ValueError, match=r"out_features = 6 .* share = 4: change"):
        _patchwise(out_features=6)
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        _patchwise(kernel_size=4)
    with pytest.raises(ValueError, match="relation_features must be positive"):
        _patchwise(relation_features=0)
    with pytest.raises(ValueError, match="'between'"):
        _patchwise(relation_norm="between")
    with pytest.raises(ValueError, match="larger image than 3×8"):
        _call(_patchwise(kernel_size=7), jnp.zeros((1, 3, 8, 10)))


# Several devices


@pytest.mark.slow
def test_four_devices_compute_what_one_does():
    program = textwrap.dedent(
        """
        import jax, jax.numpy as jnp, numpy as np
        from flax import nnx
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from colorjax.model.attention import PatchwiseAttentionBlock, SelfAttention

        class Both(nnx.Module):
            def __init__(self, rngs):
                norm = lambda n: nnx.BatchNorm(n, rngs=rngs)
                self.patchwise = PatchwiseAttentionBlock(32, kernel_size=3, norm=norm, rngs=rngs)
                self.whole = SelfAttention(32, gate_init=0.5, rngs=rngs)

            def __call__(self, x):
                return self.whole(self.patchwise(x))

        graph, *trees = nnx.split(nnx.eval_shape(lambda: Both(nnx.Rngs(0))), nnx.Param, ...)
        rng = np.random.default_rng(0)
        params, rest = jax.tree.map(lambda x: np.asarray(rng.normal(0, 0.2, x.shape), np.float32), trees)

        @jax.jit
        def step(params, rest, x):
            def loss(params):
                # Variables of this trace, as those of the outer one must not be updated.
                model = nnx.merge(graph, params, jax.tree.map(lambda x: x, rest))
                out = model(x)
                return (out**2).mean(), (out, nnx.state(model, nnx.BatchStat))
            return jax.value_and_grad(loss, has_aux=True)(params)

        assert jax.device_count() == 4
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        x = rng.normal(size=(8, 12, 12, 32)).astype(np.float32)
        one = step(params, rest, x)
        everywhere = NamedSharding(mesh, P())
        sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
        compiled = step.lower(*jax.device_put((params, rest), everywhere), sharded).compile()
        four = compiled(*jax.device_put((params, rest), everywhere), sharded)
        assert four[0][1][0].sharding.spec[0] == "data", four[0][1][0].sharding
        # Neither the images nor the k² weights of each pixel may be gathered.
        assert "all-gather" not in compiled.as_text()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "PATH": "/usr/bin:/bin",
            "JAX_PLATFORMS": "cpu",
            # Unoptimized code compiles in two thirds of the time, and is partitioned alike.
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
            "PYTHONPATH": ":".join(p for p in sys.path if p),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
