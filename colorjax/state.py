"""What is trained and where it lies: the mesh, the functional form of a model, the optimizer, the train state."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from colorjax.config import Config

Tree = dict[str, Any]
"""Nested dicts of arrays, keyed by the names of networks and layers."""

TEACHER_HEAD = "teacher"
"""Where the parameters of a joint stage with a teacher have the head that predicts its features. No model has it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, hence all that a checkpoint holds.

    Attributes:
        step: int32 scalar, the number of steps done.
        params: what is evaluated and handed on, float32: the trained parameters, or with `ema` their moving average.
        stats: running statistics: of BatchNorm, and the vectors of spectral normalisation; averaged likewise.
        opt_state: the optimizer's; with `ema` an Unaveraged.
    """

    step: jax.Array
    params: Tree
    stats: Tree
    opt_state: Any


class Unaveraged(NamedTuple):
    """What a stage with `ema` trains, of which the state's own `params` and `stats` are the average."""

    params: Tree
    stats: Tree
    opt_state: Any


@dataclass(frozen=True)
class Program:
    """An NNX model as a pure function of its parameters and statistics, traced once and never mutated."""

    graphdef: Any

    @classmethod
    def split(cls, model: nnx.Module) -> tuple["Program", Tree, Tree]:
        """The function, the parameters and the statistics of a model."""
        graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        return cls(graphdef), _named(nnx.to_pure_dict(params)), _named(nnx.to_pure_dict(stats))

    def __call__(self, params: Tree, stats: Tree, *args: Any, train: bool, **kwargs: Any) -> tuple[Any, Tree]:
        """The model's outputs, and the statistics after the call: changed if `train`."""
        model = self.merged(params, stats)
        if train:
            model.train()
        else:
            model.eval()
        outputs = model(*args, **kwargs)
        return outputs, _named(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def merged(self, params: Tree, stats: Tree) -> nnx.Module:
        """The model itself, with these parameters and statistics."""
        own = {name: network for name, network in params.items() if name != TEACHER_HEAD}
        return nnx.merge(self.graphdef, _numbered(own), _numbered(stats))


def make_mesh() -> Mesh:
    """All devices of all hosts in one axis, `data`."""
    devices = jax.devices()
    # jax.make_mesh defaults to Explicit axes, which refuse what BatchNorm does to a sharded batch.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: the state."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Split along the first axis: a batch. Statistics over a batch are then global by construction."""
    return NamedSharding(mesh, PartitionSpec("data"))


def compiler_options() -> dict[str, str]:
    """What XLA is told when it compiles a step."""
    if jax.default_backend() != "cpu":
        return {}
    # Of its YNNPACK fusions those of products and reductions are worth a quarter of the joint step. That of
    # convolutions would take their filter gradients as well, at a half to a fifth of the speed of XLA's own.
    return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def keep_compiled_programs() -> None:
    """Lets compiled programs outlive the process, so that the next one starts in seconds. For the commands.

    They lie where JAX_COMPILATION_CACHE_DIR says ("" is nowhere), else in the user's cache directory. What they are
    found by holds the program, the versions and the processor's features, so a wrong one is not taken.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(RuntimeError):  # a user without a home directory keeps none
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(caches / "colorjax"))
        # A photo's way through the network has many small programs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        # JAX asks for the directory once, at the first program, which may have been before.
        compilation_cache.reset_cache()


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """This host's share of a batch (a tree of numpy arrays) as global arrays, split over all devices."""
    sharding = by_batch(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array split by_batch that lie on this host's devices, in order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def make_optimizer(config: Config, stage: str) -> optax.GradientTransformation:
    """The optimizer of a stage.

    Args:
        config: see configs/paper.py.
        stage: pretrain or joint.

    Raises:
        ValueError: for an unknown name, or a warm-up or decay longer than the stage.
    """
    own = config[stage]
    if not 0 <= own.warmup_steps < max(own.steps, 1):
        raise ValueError(f"{stage}.warmup_steps is {own.warmup_steps}, of {own.steps} steps in all")
    if own.decay_steps and (own.schedule != "constant" or own.decay_steps > own.steps - own.warmup_steps):
        raise ValueError(
            f"{stage}.decay_steps is {own.decay_steps}; it is for the schedule 'constant', and at most the "
            f"{own.steps - own.warmup_steps} steps after the warm-up"
        )
    after = own.steps - own.warmup_steps
    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.linear_schedule(
            own.learning_rate,
            0.0 if own.decay_steps else own.learning_rate,
            own.decay_steps,
            after - own.decay_steps,
        ),
        "cosine": lambda: optax.cosine_decay_schedule(own.learning_rate, after),
    }
    optimizers: dict[str, Callable[[Any], optax.GradientTransformation]] = {
        "adam": optax.adam,
        # Only kernels decay: a normalisation's scale and bias, and the attention's gate, do not.
        "adamw": lambda rate: optax.adamw(
            rate,
            weight_decay=own.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
        "adadelta": optax.adadelta,
    }
    for field, known in (("schedule", schedules), ("optimizer", optimizers)):
        if own[field] not in known:
            raise ValueError(f"{stage}.{field} is {own[field]!r}; it must be one of {', '.join(known)}")
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, own.learning_rate, own.warmup_steps),
            schedules[own.schedule](),
        ],
        [own.warmup_steps],
    )
    optimizer = optimizers[own.optimizer](schedule)
    if own.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(own.clip_norm), optimizer)
    return optimizer


def init_state(
    params: Tree, stats: Tree, optimizer: optax.GradientTransformation, mesh: Mesh, *, average: bool = False
) -> TrainState:
    """The state before the first step, whole on every device. The optimizer starts from `params` as they are given.

    Args:
        params, stats: of the model.
        optimizer: of the stage.
        mesh: the devices.
        average: whether the stage has `ema`.
    """

    # A jitted copy, so that every buffer is the state's own and may be donated.
    def make(params: Tree, stats: Tree) -> TrainState:
        opt_state: Any = optimizer.init(params)
        if average:
            opt_state = Unaveraged(jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, stats), opt_state)
        return TrainState(jnp.zeros((), jnp.int32), params, stats, opt_state)

    jitted = jax.jit(make, out_shardings=replicated(mesh))
    return jitted(jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, stats))


def moving_average(before: Any, now: Any, *, decay: float, step: jax.Array) -> Any:
    """The exponential moving average after a step: of a tree, with the average before it and the values after it.

    The decay is min(decay, (1 + step) / (10 + step)), as in tf.train.ExponentialMovingAverage, so that the first steps
    do not hold on to the initial values.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, new: average + (1 - kept) * (new - average), before, now)


def _named(tree: dict) -> Tree:
    # NNX numbers a list's modules with integers, which Orbax would read back as strings.
    return {str(k): _named(v) if isinstance(v, dict) else v for k, v in tree.items()}


def _numbered(tree: Tree) -> dict:
    return {int(k) if k.isdigit() else k: _numbered(v) if isinstance(v, dict) else v for k, v in tree.items()}
