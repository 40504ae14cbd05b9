"""What the joint stage takes over from a classifier, and from a whole colorizer."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from colorjax.model.program import Tree, init_model
from colorjax.run import sharding
from colorjax.run.checkpoints import Checkpoints
from colorjax.run.trained import Trained, load_trained, save_trained
from colorjax.run.trees import flatten
from colorjax.run.workdir import checkpoint_dir
from colorjax.training.optimizer import init_state, make_optimizer
from colorjax.training.pretrained import graft_pretrained

# The layers of the shared networks that only the fusion reads, so that a classifier does not train them.
UNTRAINED = ("global_features.dense3.", "global_features.norm3.")
SHARED = ("low_level.", "global_features.", "classification.")


@pytest.fixture(scope="module")
def colorizer(untrained: Path) -> Trained:
    return load_trained(untrained)


@pytest.fixture
def config(colorizer: Trained) -> Any:
    return colorizer.config.copy_and_resolve_references().unlock()


def _taken(start: Tree, grafted: Tree) -> set[str]:
    """The paths whose values are not the initial ones any more."""
    before, after = flatten(start), flatten(grafted)
    assert before.keys() == after.keys()
    return {path for path in before if not np.array_equal(before[path], after[path])}


def _with_values(tree: Tree, value: float) -> Tree:
    """The same shapes, all of one value, which no initialization has."""
    return jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), tree)


def test_a_classifier_gives_what_it_has_trained(colorizer: Trained, config: Any, tmp_path: Path) -> None:
    params, stats = colorizer.params, colorizer.stats
    trained, running = init_model(config, "pretrain", classes=len(colorizer.class_names))
    optimizer = make_optimizer(config, "pretrain")
    state = init_state(_with_values(trained, 0.625), _with_values(running, 0.625), optimizer, sharding.make_mesh())
    with Checkpoints(checkpoint_dir(tmp_path, "pretrain")) as checkpoints:
        checkpoints.save(state)
    config.joint.init_from = str(tmp_path)
    grafted = graft_pretrained(config, tmp_path / "run", params, stats)
    for before, after in zip((params, stats), grafted, strict=True):
        shared = {path for path in flatten(before) if path.startswith(SHARED)}
        assert _taken(before, after) == {path for path in shared if not path.startswith(UNTRAINED)}
    assert all((x == 0.625).all() for x in jax.tree.leaves(grafted[0]["low_level"]))


def test_a_colorizer_gives_the_other_layers_too(colorizer: Trained, config: Any, tmp_path: Path) -> None:
    params, stats = (_with_values(tree, 0.625) for tree in (colorizer.params, colorizer.stats))
    save_trained(dataclasses.replace(colorizer, params=params, stats=stats), tmp_path / "exported")
    config.joint.init_from = str(tmp_path / "exported")
    grafted, _ = graft_pretrained(config, tmp_path / "run", colorizer.params, colorizer.stats)
    assert _taken(colorizer.params, grafted) == {path for path in flatten(params) if path.startswith(SHARED)}
    assert (grafted["global_features"]["dense3"]["kernel"] == 0.625).all()


def test_a_missing_pretraining_is_refused_with_what_to_do(colorizer: Trained, config: Any, tmp_path: Path) -> None:
    config.joint.init_from = str(tmp_path)
    with pytest.raises(ValueError, match=r"there is no checkpoint directory .*stage=pretrain.*joint\.init_from"):
        graft_pretrained(config, tmp_path / "run", colorizer.params, colorizer.stats)
