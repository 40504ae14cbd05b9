"""The jitted steps on real photographs: every ablation row, and evaluation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colorjax import data
from colorjax.data.batches import center_crop
from colorjax.model.colorizer import Colorizer
from colorjax.model.program import Program, build_program, init_model
from colorjax.run import compilation, sharding
from colorjax.run.checkpoints import TrainState
from colorjax.study import rows
from colorjax.training.optimizer import init_state, make_optimizer
from colorjax.training.step import ColorReference, augmentation_key, make_eval_step, make_train_step
from configs import paper


@pytest.fixture(autouse=True)
def _quick_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    # These programs run once or twice, so LLVM's optimization would take longer than it saves.
    monkeypatch.setattr(compilation, "compiler_options", lambda: {"xla_backend_optimization_level": 0})


def _config(row: str) -> Any:
    config = paper.get_config(row).unlock()
    config.data.update(source="sample", resolution=40, image_size=32)
    config.model.width = 0.25
    config.model.patch_kernels = (3, 5, 3)
    config.joint.update(batch_size=4, learning_rate=1e-3)
    return config.lock()


def _setup(config: Any) -> tuple[Any, TrainState, Any, Any]:
    mesh = sharding.make_mesh()
    optimizer = make_optimizer(config, "joint")
    program = build_program(config, "joint", classes=8)
    params, stats = init_model(config, "joint", classes=8)
    reference = ColorReference(jnp.full(313, 1 / 313), jnp.ones(313))
    step = make_train_step(program, optimizer, config, "joint", reference=reference, mesh=mesh)
    evaluation = make_eval_step(program, config, reference=reference, mesh=mesh)
    made = init_state(params, stats, optimizer, mesh, average=config.joint.ema > 0)
    return step, made, evaluation, mesh


def _batch(config: Any, mesh: Any) -> Any:
    return sharding.to_devices(next(data.train_batches(config.data, batch_size=4, seed=0)), mesh)


# What the row's loss does not reach.
_UNTRAINED = {
    "no_class_loss": {"classification"},
    "zhang2016_head": {"classification", "global_features"},
}


# Each row compiles a program.
# no_pretraining and no_rarity differ from full in what the step is given, not in the step.
_ROWS = [row for row in rows.ROWS if row not in ("no_pretraining", "no_rarity")]


@pytest.mark.parametrize("row", [pytest.param(row, marks=() if row == "full" else pytest.mark.slow) for row in _ROWS])
def test_a_row_takes_a_step(row: str) -> None:
    config = _config(row)
    step, before, _, mesh = _setup(config)
    start = jax.device_get(before.params)
    after, measured = step(before, _batch(config, mesh))
    means = {name: float(total / count) for name, (total, count) in jax.device_get(measured).items()}
    assert all(np.isfinite(value) for value in means.values())
    assert int(after.step) == 1
    # At the start a network knows nothing: its color cross-entropy is near that of a uniform answer.
    if config.model.head == "bins":
        assert means["color_ce"] == pytest.approx(np.log(313), rel=0.15)
    end = jax.device_get(after.params)
    untrained = {name for name in start if jax.tree.all(jax.tree.map(np.array_equal, start[name], end[name]))}
    assert untrained == _UNTRAINED.get(row, set())


@pytest.mark.slow
def test_an_average_follows_the_weights_and_changes_no_training() -> None:
    config = _config("no_output_attention").unlock()
    plain, current, _, mesh = _setup(config)
    config.joint.ema = 0.4
    averaging, averaged, _, _ = _setup(config)
    batch = _batch(config, mesh)
    expected = jax.device_get((current.params, current.stats))
    for step in range(5):
        current, _ = plain(current, batch)
        averaged, _ = averaging(averaged, batch)
        now = jax.device_get((current.params, current.stats))
        decay = min(0.4, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda e, n, d=decay: d * e + (1 - d) * n, expected, now)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(averaged.opt_state[:2]), now)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6),
        jax.device_get((averaged.params, averaged.stats)),
        expected,
    )


@pytest.mark.slow
def test_accumulation_changes_nothing_where_photos_are_normalized_alone() -> None:
    config = _config("group_norm").unlock()
    # Spectral normalization takes a step of its own with each microbatch.
    config.model.update(patch_attention=False, output_attention="none")
    # Adadelta, since Adam divides a gradient that is all rounding by its own size.
    config.joint.update(batch_size=8, optimizer="adadelta", learning_rate=0.01)
    runs = []
    for accumulate in (1, 4):
        config.joint.accumulate = accumulate
        step, state, _, mesh = _setup(config)
        means = []
        batches = data.train_batches(config.data, batch_size=8, seed=0)
        for _ in range(3):
            state, measured = step(state, sharding.to_devices(next(batches), mesh))
            means.append({name: float(total / count) for name, (total, count) in measured.items()})
        runs.append((means, jax.device_get(state.params)))
    (whole, a), (parts, b) = runs
    for x, y in zip(parts, whole, strict=True):
        for name in ("loss", "class_loss", "color_loss", "color_ce"):
            assert x[name] == pytest.approx(y[name], rel=1e-4), name
        assert x["gradient_norm"] == pytest.approx(y["gradient_norm"], rel=1e-3)
    # Adadelta's first steps move a parameter by some 1e-5 each; a few with hardly a gradient go by rounding.
    difference = np.concatenate([(x - y).ravel() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)])
    assert np.sqrt(np.mean(difference**2)) < 5e-7
    assert np.mean(np.abs(difference) < 1e-6) > 0.99


def test_every_stage_and_step_augments_with_a_key_of_its_own() -> None:
    def words(key: jax.Array) -> tuple[int, ...]:
        return tuple(jax.random.key_data(key).tolist())

    seed = jax.random.key(7)
    # Initialization takes the seed's key and what it folds into it, one number a parameter.
    initialization = {words(seed)} | {words(jax.random.fold_in(seed, i)) for i in range(500)}
    augmentation = [words(augmentation_key(7, stage, i)) for stage in ("pretrain", "joint") for i in range(50)]
    assert len(set(augmentation)) == len(augmentation)
    assert not initialization & set(augmentation)


def test_every_row_changes_the_configuration() -> None:
    full = paper.get_config().to_json()
    assert [row for row in rows.ROWS if paper.get_config(row).to_json() == full] == ["full"]
    with pytest.raises(ValueError, match="no ablation row 'no_such'; the rows are full, no_pretraining"):
        paper.get_config("no_such")


def test_the_paper_preset_has_the_papers_numbers() -> None:
    c = paper.get_config()
    assert (c.pretrain.batch_size, c.pretrain.steps) == (32, 2_000_000)
    assert (c.joint.batch_size, c.joint.steps) == (8, 2_000)
    assert (c.data.image_size, c.data.train_fraction) == (224, 0.8)
    assert c.augment.rotation > 0
    assert c.augment.scale[0] < 1 < c.augment.scale[1]


@pytest.mark.slow
def test_the_papers_joint_step_takes_less_than_6_gb() -> None:
    config = paper.get_config()
    model = nnx.eval_shape(
        lambda: Colorizer(config.model, classes=101, image_size=config.data.image_size, rngs=nnx.Rngs(0))
    )
    program, params, stats = Program.split(model)
    optimizer, mesh = make_optimizer(config, "joint"), sharding.make_mesh()
    reference = ColorReference(jnp.full(313, 1 / 313), jnp.ones(313))
    step = make_train_step(program, optimizer, config, "joint", reference=reference, mesh=mesh)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32)
    before = TrainState(count, params, stats, jax.eval_shape(optimizer.init, params))
    batch: Any = {
        "image": jax.ShapeDtypeStruct((8, 256, 256, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((8,), jnp.float32),
    }
    memory = step.lower(before, batch).compile().memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    # One N×N matrix of the 12,544 tokens would take 5 GB for the batch alone.
    assert held < 6e9
    assert memory.temp_size_in_bytes < 8 * 12544**2 * 4


def test_evaluation_does_not_see_padding() -> None:
    config = _config("full")
    _, made, evaluation, mesh = _setup(config)
    batch = next(data.train_batches(config.data, batch_size=4, seed=0))
    batch["mask"][3] = 0
    measured, photos = evaluation(made.params, made.stats, sharding.to_devices(batch, mesh))
    other = {**batch, "image": batch["image"].copy()}
    other["image"][3] = 255 - other["image"][3]
    again, others = evaluation(made.params, made.stats, sharding.to_devices(other, mesh))
    for name, (total, count) in measured.items():
        assert float(total) == float(again[name][0])
        assert float(count) == float(again[name][1])
    assert float(measured["accuracy"][1]) == 3
    assert np.array_equal(photos[:3], others[:3])
    assert not np.array_equal(photos[3], others[3])


def test_the_colored_photo_keeps_the_luminance() -> None:
    from skimage import color as reference

    config = _config("full")
    _, made, evaluation, mesh = _setup(config)
    batch = next(data.train_batches(config.data, batch_size=4, seed=0))
    photos = np.asarray(evaluation(made.params, made.stats, sharding.to_devices(batch, mesh))[1])
    true = np.asarray(center_crop(batch["image"], config.data.image_size))
    difference = np.abs(reference.rgb2lab(photos)[..., 0] - reference.rgb2lab(true)[..., 0])
    # But for what lies outside sRGB and for rounding to 8 bits.
    assert np.median(difference) < 0.3


def test_a_batch_that_does_not_divide_is_refused() -> None:
    config = _config("full").unlock()
    config.joint.accumulate = 3
    with pytest.raises(ValueError, match=r"joint\.batch_size is 4, which 1 device\(s\) × joint\.accumulate = 3"):
        _setup(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer", "sgd", "joint.optimizer is 'sgd'"),
        ("schedule", "step", "joint.schedule is 'step'"),
        ("decay_steps", 2_001, "joint.decay_steps is 2001; it is for the schedule 'constant'"),
        ("warmup_steps", 9000, "joint.warmup_steps is 9000, of 2000"),
    ],
)
def test_optimizer_errors(field: str, value: Any, message: str) -> None:
    config = paper.get_config().unlock()
    config.joint[field] = value
    with pytest.raises(ValueError, match=message):
        make_optimizer(config, "joint")


def test_a_constant_rate_warms_up_and_decays() -> None:
    config = paper.get_config().unlock()
    config.joint.update(learning_rate=0.5, steps=20, warmup_steps=4, decay_steps=5)
    optimizer = make_optimizer(config, "joint")
    params: Any = {"kernel": jnp.zeros(())}
    updates: Any
    opt_state, rates = optimizer.init(params), []
    for _ in range(20):
        # Adam's update at a constant gradient is the rate itself.
        updates, opt_state = optimizer.update({"kernel": jnp.ones(())}, opt_state, params)
        rates.append(-float(updates["kernel"]))
    expected = [0.5 * step / 4 for step in range(4)] + 11 * [0.5] + [0.5 * (5 - step) / 5 for step in range(5)]
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
