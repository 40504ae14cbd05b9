"""softmax(q kᵀ) v in all its forms against a plain one that holds everything."""

import functools
import os
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colorjax.ops import softmax_attention
from colorjax.ops.cpu import emitter, llvm
from colorjax.ops.cpu import softmax_attention as cpu_attention
from colorjax.ops.softmax_attention import dot_product_attention, flash_attention


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(jnp.einsum("bnd,bmd->bnm", q, k), axis=-1) @ v


def _qkv(length: int = 37, keys: int = 29) -> tuple[jax.Array, ...]:
    # Scores of some ±20 make the softmax sharp enough for a wrong scale or maximum to show.
    q, k, v = _normal(0, 2, length, 4), _normal(1, 2, keys, 4), _normal(2, 2, keys, 6)
    return 3 * q, 2 * k, v, _normal(3, 2, length, 6)


def _attend_both_ways(attend, q, k, v, cotangent) -> tuple[jax.Array, ...]:
    def both_ways(q, k, v, cotangent):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(cotangent)

    # Run once, a program is not worth LLVM's optimization.
    run = jax.jit(both_ways, compiler_options={"xla_backend_optimization_level": 0})
    return run(q, k, v, cotangent)


@pytest.fixture(params=["llvm", "xla"])
def attend(request):
    """Both forms that a CPU can run."""
    return functools.partial(dot_product_attention, implementation=request.param)


@pytest.mark.parametrize("block_size", [1, 8, 37, 128])
def test_blockwise_attention_and_gradients_equal_plain_softmax(block_size):
    arrays = _qkv()
    blockwise = functools.partial(dot_product_attention, block_size=block_size, implementation="xla")
    ours = _attend_both_ways(blockwise, *arrays)
    for found, expected in zip(ours, _attend_both_ways(_softmax_attention, *arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_attention_gradient_equals_finite_differences(attend):
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in _qkv(9, 7))

    def value(q, k, v):
        scores = np.einsum("bnd,bmd->bnm", q, k)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return ((weights / weights.sum(-1, keepdims=True)) @ v * cotangent).sum()

    _, *gradients = _attend_both_ways(functools.partial(attend, block_size=4), *_qkv(9, 7))
    rng = np.random.default_rng(0)
    for index, gradient in enumerate(gradients):
        step = rng.normal(size=gradient.shape)
        ends = []
        for sign in (1, -1):
            moved = [q, k, v]
            moved[index] = moved[index] + sign * 1e-5 * step
            ends.append(value(*moved))
        slope = (ends[0] - ends[1]) / 2e-5
        assert (np.asarray(gradient) * step).sum() == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_attention_survives_scores_that_overflow_exp(attend):
    q, k = jnp.full((1, 3, 2), 30.0), jnp.stack([jnp.full((1, 2), x) for x in (30.0, -30.0)], 1)
    v = jnp.asarray([[[1.0], [5.0]]])
    out, d_q, d_k, d_v = _attend_both_ways(attend, q, k, v, jnp.ones((1, 3, 1)))
    np.testing.assert_allclose(out, 1)
    np.testing.assert_allclose(d_v, [[[3.0], [0.0]]])
    assert not d_q.any()
    assert not d_k.any()


def test_bfloat16_attention_keeps_a_float32_softmax(attend):
    arrays = [x.astype(jnp.bfloat16) for x in _qkv()]
    ours = _attend_both_ways(functools.partial(attend, block_size=8), *arrays)
    exact = [x.astype(jnp.float32) for x in arrays]
    for found, expected in zip(ours, _attend_both_ways(_softmax_attention, *exact), strict=True):
        assert found.dtype == jnp.bfloat16
        error = np.abs(np.asarray(found, np.float32) - np.asarray(expected)).max()
        assert error < 0.02 * np.abs(expected).max()


# 6 values make one head of 8; 300 make three of 104, the last of which is mostly filled up.
@pytest.mark.parametrize(("features", "values"), [(4, 6), (4, 300), (19, 16)])
def test_heads_of_flash_attention_change_nothing(features, values):
    q, k, v = (_normal(i, 2, *shape) for i, shape in enumerate([(13, features), (9, features), (9, values)]))
    arrays = (q, 2 * k, v, _normal(3, 2, 13, values))
    ours = _attend_both_ways(functools.partial(flash_attention, implementation="xla"), *arrays)
    for found, expected in zip(ours, _attend_both_ways(_softmax_attention, *arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_cudnn_takes_two_byte_floats_on_the_gpus_that_have_it(monkeypatch):
    taken = []

    def flash(q, k, v, *, implementation):
        taken.append((q.dtype.name, implementation))
        return v

    def attend(capability, dtype, features=4):
        taken.clear()
        device = types.SimpleNamespace(**({"compute_capability": capability} if capability else {}))
        monkeypatch.setattr(jax, "devices", lambda: [device])
        q, v = jnp.zeros((1, 3, features), dtype), jnp.zeros((1, 3, 2), dtype)
        traced = jax.jit(lambda q, v: dot_product_attention(q, q, v)).trace(q, v)
        # For the GPU alone, whatever device is at hand.
        on = {name: "exponential" in traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "tpu")}
        assert on == {"cuda": not taken, "tpu": True}
        return list(taken)

    monkeypatch.setattr(softmax_attention, "flash_attention", flash)
    assert attend("9.0", jnp.bfloat16) == [("bfloat16", "cudnn")]
    assert attend("8.0", jnp.float16) == [("float16", "cudnn")]
    # float32, an older GPU, an AMD GPU, a CPU, too many features: the blockwise softmax.
    for case in [("9.0", jnp.float32), ("7.5", jnp.bfloat16), ("gfx942", jnp.bfloat16), ("", jnp.bfloat16)]:
        assert attend(*case) == [], case
    assert attend("9.0", jnp.bfloat16, features=136) == []
    q, v = jnp.zeros((1, 3, 2)), jnp.zeros((1, 3, 2))
    assert dot_product_attention(q, q, v, implementation="cudnn") is v


@pytest.mark.parametrize("keys", [12544, 3136])
def test_attention_never_holds_all_scores(keys, attend):
    shapes = [(8, 12544, 4), (8, keys, 4), (8, keys, 16), (8, 12544, 16)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def both(q, k, v, cotangent):
        return jax.vjp(attend, q, k, v)[1](cotangent)

    analysis = jax.jit(both).lower(*arrays).compile().memory_analysis()
    assert analysis is not None
    # All scores of the batch would be 12544 · keys · 8 · 4 bytes: 5.0 or 1.3 GB.
    assert analysis.temp_size_in_bytes < 200e6


def test_attention_refuses_shapes_that_do_not_fit():
    q, k, v = jnp.zeros((1, 4, 3)), jnp.zeros((1, 5, 3)), jnp.zeros((1, 5, 2))
    for wrong in [(q, k, v[:, :4]), (q[..., :2], k, v), (q[0], k, v), (q, k[:, :0], v[:, :0])]:
        with pytest.raises(ValueError, match="must be"):
            dot_product_attention(*wrong)
    with pytest.raises(ValueError, match="block_size"):
        dot_product_attention(q, k, v, block_size=0)


# The kernels for CPUs


def _by_hand(q, k, v, cotangent) -> tuple[np.ndarray, ...]:
    """The result and the gradients in float64."""
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    scores = q @ k.swapaxes(1, 2)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    d_p = cotangent @ v.swapaxes(1, 2)
    d_s = p * (d_p - (p * d_p).sum(-1, keepdims=True))
    return p @ v, d_s @ k, d_s.swapaxes(1, 2) @ q, p.swapaxes(1, 2) @ cotangent


def _assert_by_hand(arrays) -> None:
    ours = _attend_both_ways(dot_product_attention, *arrays)
    for found, expected in zip(ours, _by_hand(*arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))


# Less than a vector, more than a chunk of 256 queries, keys that fill none of eight chunks evenly, and 2,100 queries of
# 20 features, which are more than the scratch holds at a time.
@pytest.mark.parametrize(
    ("batch", "length", "keys", "features", "values"),
    [
        (1, 1, 1, 1, 1),
        (2, 3, 5, 2, 3),
        (3, 300, 70, 4, 16),
        (1, 530, 530, 1, 4),
        (2, 16, 257, 5, 32),
        (1, 2100, 40, 20, 2),
    ],
)
def test_kernels_equal_float64(batch, length, keys, features, values):
    shapes = [(batch, length, features), (batch, keys, features), (batch, keys, values), (batch, length, values)]
    _assert_by_hand([_normal(i, *shape) for i, shape in enumerate(shapes)])


@pytest.mark.parametrize("lanes", [4, 8])
def test_kernels_of_other_processors_vectors_equal_float64(lanes, monkeypatch):
    for module in (emitter, llvm, cpu_attention):
        monkeypatch.setattr(module, "lanes", lambda: lanes)
    _assert_by_hand([_normal(i, 2, *shape) for i, shape in enumerate([(37, 4), (29, 4), (29, 6), (37, 6)])])


def test_kernels_follow_a_maximum_that_rises_from_key_to_key():
    # Each key's score is 12 above the one before, for some queries, and falls by as much for others.
    q = jnp.linspace(-4, 4, 40).reshape(1, 40, 1)
    k = 3 * jnp.arange(12.0).reshape(1, 12, 1)
    _assert_by_hand([q, k, _normal(0, 1, 12, 3), _normal(1, 1, 40, 3)])


def test_kernels_survive_keys_that_all_score_low():
    # Zeros fill the last vector of keys up, and would weigh exp(900) times what the real ones do.
    q, k = jnp.full((1, 5, 1), 30.0), jnp.full((1, 3, 1), -30.0) - jnp.arange(3.0).reshape(1, 3, 1) / 30
    _assert_by_hand([q, k, _normal(0, 1, 3, 2), _normal(1, 1, 5, 2)])


def test_kernels_may_be_mapped():
    arrays = [jnp.stack([x, 2 * x]) for x in _qkv()]
    both_ways = jax.vmap(lambda q, k, v, cotangent: jax.vjp(dot_product_attention, q, k, v)[1](cotangent))
    mapped = jax.jit(both_ways)(*arrays)
    for i in range(2):
        for found, expected in zip(mapped, _by_hand(*(x[i] for x in arrays))[1:], strict=True):
            np.testing.assert_allclose(found[i], expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_kernels_hide_no_number_that_is_none(value):
    q, k, v, cotangent = _qkv()
    out, d_q, d_k, d_v = _attend_both_ways(dot_product_attention, q.at[1, 5, 2].set(value), k, v, cotangent)
    assert not np.isfinite(out[1, 5]).any()
    assert np.isfinite(np.delete(out, 5, axis=1)).all()
    for gradient in (d_k, d_v):
        assert np.isfinite(gradient[0]).all()
        assert not np.isfinite(gradient[1]).any()
    assert not np.isfinite(d_q[1, 5]).any()


@pytest.mark.slow
def test_kernels_give_the_same_bits_on_one_core(tmp_path):
    program = textwrap.dedent(
        """
        import os, sys
        if sys.argv[2] == "one":
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import jax, numpy as np
        from colorjax.ops.softmax_attention import dot_product_attention
        arrays = [jax.random.normal(jax.random.key(i), (2, 700, n)) for i, n in enumerate((4, 4, 16, 16))]

        @jax.jit
        def both_ways(q, k, v, cotangent):
            out, pull = jax.vjp(dot_product_attention, q, k, v)
            return out, *pull(cotangent)

        np.savez(sys.argv[1], *both_ways(*arrays))
        """
    )
    # The second process finds the first one's program on disk, and compiles the kernels that it calls.
    for cores in ("all", "one"):
        command = [sys.executable, "-c", program, str(tmp_path / f"{cores}.npz"), cores]
        done = subprocess.run(command, env=_env(tmp_path / "cache"), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert any((tmp_path / "cache").iterdir())
    with np.load(tmp_path / "all.npz") as all_cores, np.load(tmp_path / "one.npz") as one:
        assert len(one.files) == 4
        for name in one.files:
            np.testing.assert_array_equal(all_cores[name], one[name])


def _env(cache: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": ":".join(p for p in sys.path if p),
    }


def test_kernels_may_be_called_from_several_threads():
    arrays = _qkv(260, 31)
    expected = _attend_both_ways(dot_product_attention, *arrays)
    found = []
    # A jit of its own each, so that they trace at the same time.
    threads = [
        threading.Thread(target=lambda: found.append(_attend_both_ways(dot_product_attention, *arrays)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for ours in found:
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_only_cpus_take_the_kernels():
    arrays = _qkv()
    attend = jax.jit(lambda *x: jax.vjp(dot_product_attention, *x[:3])[1](x[3]))
    traced = attend.trace(*arrays)
    kernels = {
        p: traced.lower(lowering_platforms=(p,)).as_text().count("colorjax_attention") for p in ("cpu", "cuda", "tpu")
    }
    assert kernels == {"cpu": 2, "cuda": 0, "tpu": 0}

    def counted(q, k, v) -> int:
        return jax.jit(dot_product_attention).lower(q, k, v).as_text().count("colorjax_attention")

    q, k, v, _ = arrays
    assert counted(q, k, v) == 1
    wide = jnp.zeros((2, 29, 33))  # more sums than a processor has registers
    assert counted(q, k, wide) == 0
    with pytest.raises(ValueError, match=r'implementation="llvm" does not take \(2, 37, 4\), \(2, 29, 33\)'):
        dot_product_attention(q, k, wide, implementation="llvm")
