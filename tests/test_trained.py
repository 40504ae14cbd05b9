"""A run's colorizer, loaded by its path."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from colorjax import checkpointing, state, trained
from colorjax.config import claim
from colorjax.models import SHARED
from configs import quickstart


def test_a_run_is_loaded_by_its_path(tmp_path: Path) -> None:
    config = quickstart.get_config()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        trained.load_trained(tmp_path)
    claim(config, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint directory .*joint"):
        trained.load_trained(tmp_path)
    params = {"low_level": {"0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}}
    stats = {"low_level": {"0": {"mean": np.ones(3, np.float32)}}}
    checkpoints = checkpointing.Checkpoints(tmp_path / "joint" / "checkpoints")
    checkpoints.save(state.init_state(params, stats, optax.adam(1e-3), state.make_mesh()))
    checkpoints.close()
    with pytest.raises(FileNotFoundError, match=r"classes\.json is missing"):
        trained.load_trained(tmp_path)
    trained.save_class_names(tmp_path, ("pie", "soup"))

    got = trained.load_trained(str(tmp_path))
    assert got.class_names == ("pie", "soup")
    assert got.step == 0
    assert got.config.to_json() == config.to_json()
    for mine, theirs in ((got.params, params), (got.stats, stats)):
        assert jax.tree.all(jax.tree.map(lambda a, b: isinstance(a, np.ndarray) and np.array_equal(a, b), mine, theirs))


def test_other_classes_than_the_run_began_with_are_refused(tmp_path: Path) -> None:
    trained.save_class_names(tmp_path, ("pie", "soup"))
    trained.save_class_names(tmp_path, ("pie", "soup"))
    with pytest.raises(ValueError, match=r"2 there, 3 now, differing in \['cake'\]"):
        trained.save_class_names(tmp_path, ("cake", "pie", "soup"))
    with pytest.raises(ValueError, match="their order"):
        trained.save_class_names(tmp_path, ("soup", "pie"))
    assert json.loads((tmp_path / "classes.json").read_text()) == ["pie", "soup"]


def test_a_whole_model_is_loaded_by_its_path(untrained: Path) -> None:
    got = trained.load_trained(untrained)
    assert got.params.keys() > {*SHARED, "colorization"}
    assert len(got.class_names) == 8
