"""Settings of all tests, and the fixtures that several folders share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from colorjax import data
from colorjax.model.program import init_model
from colorjax.run import sharding
from colorjax.run.checkpoints import Checkpoints
from colorjax.run.prior import load_prior
from colorjax.run.workdir import bind_config, checkpoint_dir, save_class_names
from colorjax.training.optimizer import init_state, make_optimizer
from configs import quickstart

# As an implicit [1, C] beside [B, H, W, C] is more often a mistake than meant.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the files that take longest, so that the other workers do not wait for them at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_runs.py", "test_data.py", "test_evaluate.py"))


@pytest.fixture(scope="session", autouse=True)
def _programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps compiled programs in one folder for all workers and their processes, since many tests use the same."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "programs"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        yield


@pytest.fixture(autouse=True)
def _commands_leave_no_handlers() -> Iterator[None]:
    """A command that runs in this process adds a log handler, which later tests must not meet."""
    yield
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h).__module__.startswith("colorjax.")]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a colorizer of 32 pixels, as a run on the sample writes it, without training.

    The attention's gates are open and the statistics are random, so that a test notices where one is left out.
    """
    config = quickstart.get_config().unlock()
    config.data.resolution = 40
    config.data.image_size = 32
    config.model.patch_kernels = (3, 3, 3)
    config.model.output_gate = 0.5
    config.lock()
    workdir = tmp_path_factory.mktemp("untrained")
    bind_config(config, workdir)
    info = data.dataset_info(config.data)
    save_class_names(workdir, tuple(info.class_names))
    params, stats = init_model(config, "joint", classes=len(info.class_names))
    rng = np.random.default_rng(0)
    stats = jax.tree.map(lambda x: x * rng.uniform(0.8, 1.2, x.shape).astype(x.dtype), stats)
    state = init_state(params, stats, make_optimizer(config, "joint"), sharding.make_mesh())
    with Checkpoints(checkpoint_dir(workdir, "joint")) as checkpoints:
        checkpoints.save(state)
    load_prior(config, workdir)  # counts it first
    return workdir
