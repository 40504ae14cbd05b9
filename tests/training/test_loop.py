"""The start of a training, and the loop, which keeps the devices busy: what it does while a step runs."""

import itertools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colorjax import data
from colorjax.data.batches import DatasetInfo, RowSource
from colorjax.run import compilation, sharding
from colorjax.run.checkpoints import TrainState, load_checkpoint
from colorjax.run.workdir import checkpoint_dir
from colorjax.training import loop
from colorjax.training.loop import train
from configs import quickstart

STEPS, BATCH = 6, 2


def _small() -> Any:
    """A configuration that traces quickly, unlocked."""
    config = quickstart.get_config().unlock()
    config.data.update(resolution=40, image_size=32)
    config.model.patch_kernels = (3, 3, 3)
    return config


class _Rows:
    """A split that counts the batches that were asked of it."""

    def __init__(self) -> None:
        self._read = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return 100

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._changed:
            self._read += 1
            self._changed.notify_all()
        return np.zeros((len(indices), 8, 8, 3), np.uint8), np.zeros(len(indices), np.int32)

    def reads_reach(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._read >= count, timeout=20)


def _without_a_model(
    monkeypatch: pytest.MonkeyPatch, make_step: Callable[..., Any], rows: _Rows, *, save_every: int = STEPS
) -> Any:
    """The configuration of a pretraining that takes its steps from `make_step`, with a tiny state."""

    def evaluate(*args: Any) -> Any:
        return {"loss": (jnp.ones(()), jnp.ones(()))}, None

    info = DatasetInfo("rows", ("a",), {"train": 100, "validation": 100})
    source = RowSource(info, {"train": rows, "validation": _Rows()})
    monkeypatch.setattr(data, "open_source", lambda config: source)
    monkeypatch.setattr(loop, "make_train_step", make_step)
    monkeypatch.setattr(loop, "make_eval_step", lambda *args, **kwargs: _Uncompiled(evaluate))
    monkeypatch.setattr(loop, "abstract_model", lambda *args, **kwargs: (None, None, None))
    monkeypatch.setattr(loop, "init_model", lambda *args, **kwargs: ({"w": jnp.ones(2)}, {"s": jnp.ones(1)}))
    monkeypatch.setattr(loop, "_check_stage", lambda *args, **kwargs: None)
    config = quickstart.get_config().unlock()
    config.stage = "pretrain"
    config.pretrain.update(steps=STEPS, batch_size=BATCH, save_every=save_every)
    return config.lock()


class _Pending:
    """A number that a step will have: whoever reads it waits, as for a device."""

    def __init__(self, wait: Any) -> None:
        self._wait = wait

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        self._wait()
        return np.ones((), np.float32)


class _Uncompiled:
    """Stands for a jitted step: `lower` and `compile` give the function itself."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self._step = step

    def lower(self, *args: Any) -> "_Uncompiled":
        return self

    def compile(self) -> Callable[..., Any]:
        return self._step


def test_the_next_batch_is_read_and_sent_while_a_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_rows, events = _Rows(), []
    send = sharding.to_devices

    def sent(batch: Any, mesh: Any) -> Any:
        events.append(("sent", sum(name == "sent" for name, _ in events) + 1))
        return send(batch, mesh)

    def make_step(*args: Any, **kwargs: Any) -> Any:
        counter = itertools.count(1)

        def step(before: TrainState, batch: Any) -> Any:
            number = next(counter)
            events.append(("started", number))

            def wait() -> None:
                # The step ends when the batch after the next one has been read, which is never if reading waits for it.
                reading = number == STEPS or train_rows.reads_reach(number + 2)
                assert reading, f"nobody read while step {number} ran"
                events.append(("ended", number))

            after = TrainState(before.step + 1, before.params, before.stats, before.opt_state)
            total = (_Pending(wait), jnp.ones(()))
            return after, {"loss": total, "gradient_norm": (jnp.ones(()), jnp.ones(()))}

        return _Uncompiled(step)

    monkeypatch.setattr(sharding, "to_devices", sent)
    train(_without_a_model(monkeypatch, make_step, train_rows), tmp_path)
    at = {event: place for place, event in enumerate(events)}
    for step in range(1, STEPS):
        # The device has its next work before anybody waits for what it does.
        assert at["sent", step + 1] < at["started", step + 1] < at["ended", step]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_step(*args: Any, **kwargs: Any) -> Any:
        def step(before: TrainState, batch: Any) -> Any:
            loss = jnp.where(before.step == 2, jnp.nan, 1.0)
            params = jax.tree.map(lambda x: x * loss, before.params)
            after = TrainState(before.step + 1, params, before.stats, before.opt_state)
            return after, {"loss": (loss, jnp.ones(())), "gradient_norm": (jnp.ones(()), jnp.ones(()))}

        return _Uncompiled(step)

    config = _without_a_model(monkeypatch, make_step, _Rows(), save_every=1)
    with pytest.raises(FloatingPointError, match=r"pretrain: the loss of step 3 is nan; lower pretrain\.learning_rate"):
        train(config, tmp_path)
    step, params, _ = load_checkpoint(checkpoint_dir(tmp_path, "pretrain"))
    assert step == 2
    assert np.array_equal(params["w"], [1, 1])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("joint.schedule", "cosin", "joint.schedule is 'cosin'; it must be one of constant, cosine"),
        ("model.head", "rgb", "model.head is 'rgb'"),
        ("joint.log_every", 0, "joint.log_every is 0; it must be 1 or more"),
        ("joint.accumulate", 3, "joint.batch_size is 16, which 1 device(s) × joint.accumulate = 3 do not divide"),
        ("joint.ema", 1.0, "joint.ema is 1.0"),
        ("loss.pixels", "median", "loss.pixels is 'median'"),
        ("joint.carried", ("low_level", "mid_level"), "joint.carried is ('low_level', 'mid_level')"),
        ("augment.scale", (1.5, 0.5), "augment.scale is (1.5, 0.5)"),
    ],
)
def test_a_joint_stage_that_cannot_run_is_refused_before_the_pretraining(
    tmp_path: Path, field: str, value: Any, message: str
) -> None:
    config = _small()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=re.escape(message)):
        train(config.lock(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_url_is_no_workdir() -> None:
    with pytest.raises(ValueError, match=r"gs://bucket/run is a URL"):
        train(quickstart.get_config(), "gs://bucket/run")
    assert not Path("gs:").exists()


def test_compiled_programs_are_kept_where_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, shortest = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        compilation.keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        compilation.keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "colorjax")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)
