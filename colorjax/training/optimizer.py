"""The optimizer of a stage, the state before its first step, and the moving average of weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from colorjax.model.program import Tree
from colorjax.run.checkpoints import TrainState, Unaveraged
from colorjax.run.config import Config
from colorjax.run.sharding import replicated


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
    after = own.steps - own.warmup_steps
    if own.decay_steps and (own.schedule != "constant" or own.decay_steps > after):
        raise ValueError(
            f"{stage}.decay_steps is {own.decay_steps}; it is for the schedule 'constant', and at most the {after} "
            "steps after the warm-up"
        )
    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: (
            optax.linear_schedule(own.learning_rate, 0.0, own.decay_steps, after - own.decay_steps)
            if own.decay_steps
            else optax.constant_schedule(own.learning_rate)
        ),
        "cosine": lambda: optax.cosine_decay_schedule(own.learning_rate, after),
    }
    optimizers: dict[str, Callable[[Any], optax.GradientTransformation]] = {
        "adam": optax.adam,
        # Only kernels decay: a normalization's scale and bias, and the attention's gate, do not.
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
    """The state before the first step, whole on every device; arguments as of `initial_state`."""
    # A jitted copy, so that every buffer is the state's own and may be donated.
    copy = jax.jit(
        lambda params, stats: initial_state(params, stats, optimizer, average=average), out_shardings=replicated(mesh)
    )
    return copy(jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, stats))


def initial_state(
    params: Tree, stats: Tree, optimizer: optax.GradientTransformation, *, average: bool = False
) -> TrainState:
    """The state before the first step, as a pure function. The optimizer starts from `params` as they are given.

    Args:
        params, stats: of the model.
        optimizer: of the stage.
        average: whether the stage has `ema`.
    """
    opt_state: Any = optimizer.init(params)
    if average:
        opt_state = Unaveraged(jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, stats), opt_state)
    return TrainState(jnp.zeros((), jnp.int32), params, stats, opt_state)


def moving_average(before: Any, now: Any, *, decay: float, step: jax.Array) -> Any:
    """The exponential moving average after a step: of a tree, with the average before it and the values after it.

    The decay is min(decay, (1 + step) / (10 + step)), as in tf.train.ExponentialMovingAverage, so that the first steps
    do not hold on to the initial values.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, new: average + (1 - kept) * (new - average), before, now)
