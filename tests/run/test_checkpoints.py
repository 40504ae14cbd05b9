"""Checkpoints: what comes back is what was saved, and a graft that does not fit raises."""

import logging
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as v0
import pytest
from jax.experimental import multihost_utils

from colorjax.run import checkpoints as module
from colorjax.run import sharding
from colorjax.run.checkpoints import Checkpoints, TrainState, load_checkpoint, require_space, set_aside_damaged
from colorjax.run.trees import graft
from colorjax.training.optimizer import init_state


def _tree(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "low_level": {"layers": {"0": {"kernel": array(3, 4), "bias": array(4)}, "10": {"kernel": array(2)}}},
        "global_features": {"kernel": array(5)},
        "fusion": {"kernel": array(6, 2)},
    }


def _state(seed: int, step: int = 0) -> TrainState:
    made = init_state(_tree(seed), _tree(seed + 1), optax.adam(1e-3), sharding.make_mesh())
    return TrainState(jnp.asarray(step), made.params, made.stats, jax.tree.map(lambda x: x + seed, made.opt_state))


def _equal(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (3, 7, 11):
        checkpoints.save(_state(step, step))
    checkpoints.wait()
    assert checkpoints.latest_step() == 11
    assert _equal(checkpoints.restore(_state(0)), _state(11, 11))
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["11", "7"]
    step, params, stats = load_checkpoint(tmp_path / "checkpoints")
    assert step == 11
    assert _equal(params, _tree(11))
    assert _equal(stats, _tree(12))
    assert isinstance(params["low_level"]["layers"]["10"]["kernel"], np.ndarray)


def test_a_model_without_statistics_is_saved_too(tmp_path: Path) -> None:
    made = init_state(_tree(0), {}, optax.adam(1e-3), sharding.make_mesh())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(made)
    checkpoints.wait()
    assert _equal(checkpoints.restore(made), made)
    checkpoints.close()
    assert load_checkpoint(tmp_path)[2] == {}


def test_saving_does_not_take_part_in_the_agreement_on_where_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Processes agree on a number ahead of their last question; Orbax's own, the step, is behind the training loop's.
    asked: list[int] = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(_state(0, 4))
    checkpoints.wait()
    checkpoints.close()
    assert load_checkpoint(tmp_path)[0] == 4
    assert asked == []


def test_a_saving_that_was_cut_off_is_not_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(_state(3, 3))
    checkpoints.close()
    # How Orbax names a checkpoint that it is still writing.
    (tmp_path / "9.orbax-checkpoint-tmp-12" / "params").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 3
    assert _equal(checkpoints.restore(_state(0)), _state(3, 3))
    checkpoints.close()


def test_loading_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "9.orbax-checkpoint-tmp-12").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        load_checkpoint(tmp_path)


def _save(directory: Path, *steps: int) -> None:
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(_state(step, step))


def _damage(checkpoint: Path, damage: Callable[[Path], object]) -> None:
    """Damages the files that hold the parameters; small arrays lie in one or another."""
    files = [path for path in (checkpoint / "params").rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        damage(path)


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


_DAMAGES: dict[str, Callable[[Path], object]] = {
    "a file deleted": Path.unlink,
    "a file emptied": lambda path: path.write_bytes(b""),
    "a file halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a bit flipped": _flip_bit,
    "the shapes lost": lambda path: (
        next(folder for folder in path.parents if folder.name == "params") / "_METADATA"
    ).write_bytes(b""),
}


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=() if name == "a bit flipped" else pytest.mark.slow) for name in _DAMAGES]
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _save(tmp_path, 3, 7)
    _damage(tmp_path / "7", _DAMAGES[damage])
    step, params, stats = load_checkpoint(tmp_path)
    assert step == 3
    assert _equal((params, stats), (_tree(3), _tree(4)))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "the checkpoint of step 7 is damaged" in warning
    assert "steps 4 to 7 are lost" in warning
    assert "\n" not in warning

    # Training goes on from it, and comes to step 7 again.
    set_aside_damaged(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
        assert _equal(checkpoints.restore(_state(0)), _state(3, 3))
        checkpoints.save(_state(7, 7))
    assert _equal(load_checkpoint(tmp_path)[1], _tree(7))
    assert (tmp_path / "7.damaged").is_dir()


def test_a_directory_without_a_good_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    _save(tmp_path, 3, 7)
    for step in (3, 7):
        _damage(tmp_path / str(step), _DAMAGES["a file emptied"])
    for load in (load_checkpoint, set_aside_damaged):
        with pytest.raises(ValueError, match="no checkpoint is whole; step 7: ") as error:
            load(tmp_path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) - len(str(tmp_path)) <= 300


@pytest.mark.parametrize("item", ["params", "stats", "opt_state"])
def test_every_array_has_a_checksum(tmp_path: Path, item: str) -> None:
    _save(tmp_path, 3)
    _save(tmp_path / "other", 4)
    set_aside_damaged(tmp_path)
    shutil.rmtree(tmp_path / "3" / item)
    shutil.copytree(tmp_path / "other" / "4" / item, tmp_path / "3" / item)
    with pytest.raises(ValueError, match=rf"{item}\..* differs from its checksum"):
        set_aside_damaged(tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = _state(1, 1)
    params = state.params | {"fusion": {"kernel": jnp.asarray([1.0, np.nan])}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(TrainState(state.step, params, state.stats, state.opt_state))
    with pytest.raises(ValueError, match=r"params\.fusion\.kernel holds values that are not finite"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    state = _state(5, 5)
    items = {"params": state.params, "stats": {"step": state.step, "stats": state.stats}, "opt_state": state.opt_state}
    with v0.CheckpointManager(tmp_path, item_names=tuple(items)) as manager:
        manager.save(5, args=v0.args.Composite(**{name: v0.args.StandardSave(x) for name, x in items.items()}))
    step, params, stats = load_checkpoint(tmp_path)
    assert (step, _equal((params, stats), (_tree(5), _tree(6)))) == (5, True)
    set_aside_damaged(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert _equal(checkpoints.restore(_state(0)), state)


def test_another_models_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    other = _tree(0)
    other["fusion"] = {"bias": np.zeros(2, np.float32)}
    like = init_state(other, _tree(1), optax.adam(1e-3), sharding.make_mesh())
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"missing: params\.fusion\.bias; not in"),
    ):
        checkpoints.restore(like)


@contextmanager
def _no_file_over(size: int) -> Iterator[None]:
    """Writing fails in the middle, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails_keeps_the_last_checkpoint_and_the_next_one_tries_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = {"noise": np.random.default_rng(0).normal(size=50_000)}
    large = [
        TrainState(state.step, state.params, noise, state.opt_state)
        for state in (_state(1, 1), _state(2, 2), _state(3, 3))
    ]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(large[0])
    checkpoints.wait()
    with _no_file_over(100_000):
        checkpoints.save(large[1])  # the run goes on
        with pytest.raises(OSError, match="the checkpoint of step 2 is not saved: File too large"):
            checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert _equal(load_checkpoint(tmp_path)[1], _tree(1))
    checkpoints.save(large[2])
    checkpoints.close()
    assert load_checkpoint(tmp_path)[0] == 3
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert warning.endswith("that of step 1 is the newest. The next save tries again.")
    assert capfd.readouterr().err.count("\n") <= 1


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    state = jax.eval_shape(lambda: _state(1))
    with pytest.raises(OSError, match=rf"a checkpoint takes 0 MB, and the disk of {tmp_path}/new has 0 MB left"):
        require_space(tmp_path / "new", state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(_state(1, 1))
    assert not any(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"the checkpoint of step 1 is not saved: .* left"):
        checkpoints.close()


def test_an_error_in_the_block_is_not_hidden_by_a_failed_save(tmp_path: Path) -> None:
    state = _state(1, 1)  # compiles, and keeps its programs in files

    def fail() -> None:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state)
            raise KeyError("first")

    with _no_file_over(100), pytest.raises(KeyError, match="first"):
        fail()


@pytest.mark.timeout(60)
def test_a_save_is_not_waited_for_when_another_host_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NeverSaved:
        def result(self) -> None:
            assert end.wait(60)

    end = threading.Event()
    monkeypatch.setattr(module.ocp, "save_checkpointables_async", lambda *args, **kwargs: NeverSaved())
    lost = "UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:13202"
    with pytest.raises(ValueError, match="closed by peer"), Checkpoints(tmp_path) as checkpoints:  # noqa: PT012
        checkpoints.save(_state(1, 1))
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        raise ValueError(lost)
    assert checkpoints.saving()
    end.set()
    assert not sharding.is_lost_host(ValueError("joint.batch_size is 6"))
    assert not sharding.is_lost_host(OSError(lost))
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    assert not sharding.is_lost_host(ValueError(lost))


def test_a_graft_takes_the_named_networks_and_leaves_the_others() -> None:
    target, source = _tree(0), _tree(1)
    grafted = graft(target, source, networks=("low_level", "global_features"), what="parameters")
    assert _equal(grafted["low_level"], source["low_level"])
    assert _equal(grafted["global_features"], source["global_features"])
    assert _equal(grafted["fusion"], target["fusion"])


def test_a_graft_that_does_not_fit_lists_both_sides() -> None:
    target, source = _tree(0), _tree(1)
    del source["low_level"]["layers"]["10"]
    source["low_level"]["layers"]["2"] = {"kernel": np.zeros(2)}
    source["global_features"]["kernel"] = np.zeros(9)
    with pytest.raises(ValueError, match="do not fit") as error:
        graft(target, source, networks=("low_level", "global_features"), what="parameters")
    assert str(error.value).endswith(
        "missing: low_level.layers.10.kernel; not in the model: low_level.layers.2.kernel; "
        "of another shape: global_features.kernel (model (5,), given (9,))"
    )


def test_a_missing_network_does_not_pass_for_one_without_statistics() -> None:
    source = _tree(1)
    del source["global_features"]
    with pytest.raises(ValueError, match=r"global_features\.kernel"):
        graft(_tree(0), source, networks=("global_features",), what="statistics")
    target = _tree(0)
    del target["global_features"]
    with pytest.raises(ValueError, match=r"global_features\.kernel"):
        graft(target, _tree(1), networks=("global_features",), what="statistics")
