"""Checkpoints: what comes back is what was saved, and a graft that does not fit raises."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from colorjax.run import sharding
from colorjax.run.checkpoints import Checkpoints, TrainState, load_checkpoint
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
    return TrainState(jnp.asarray(step), made.params, made.stats, made.opt_state)


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
