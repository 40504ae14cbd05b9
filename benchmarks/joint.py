"""The joint step that several tables time."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import attention
from colorjax import data
from colorjax.model.program import build_program, init_model
from colorjax.run import sharding
from colorjax.training.optimizer import init_state, make_optimizer
from colorjax.training.step import ColorReference, make_train_step
from configs import food64, paper


def config(*, batch: int, pack: str = "", size: int = 224, width: float = 1.0) -> Any:
    """The paper's configuration on a pack of 256-pixel photos, or on the offline sample."""
    c = paper.get_config().unlock()
    c.joint.batch_size = batch
    c.data.image_size = size
    c.data.resolution = round(size * 8 / 7)
    c.data.source, c.data.dir = ("packed", pack) if pack else ("sample", "")
    c.model.width = width
    return c.lock()


def small_config(*, batch: int, size: int = 64) -> Any:
    """A quarter of the width, whose step takes a CPU less than a second."""
    c = food64.get_config().unlock()
    c.joint.batch_size = batch
    c.data.image_size = size
    c.data.resolution = round(size * 8 / 7)
    c.data.source, c.data.dir = "sample", ""
    return c.lock()


@dataclasses.dataclass
class JointStep:
    """A compiled joint step and its state.

    Attributes:
        config: of the step.
        mesh: where it runs.
        compiled: the program.
        current: the train state, which every call replaces.
        flops: of one step, see `make`.
    """

    config: Any
    mesh: Any
    compiled: Any
    current: Any
    flops: float

    @classmethod
    def make(cls, config: Any) -> "JointStep":
        """Compiles the step.

        Its FLOPs are XLA's count before optimization, plus the output attention's by `attention.flops`, since XLA
        counts the body of a loop once and a call of cuDNN not at all.
        """
        mesh = sharding.make_mesh()
        classes = len(data.dataset_info(config.data).class_names)
        program = build_program(config, "joint", classes=classes)
        params, stats = init_model(config, "joint", classes=classes)
        optimizer = make_optimizer(config, "joint")
        current = init_state(params, stats, optimizer, mesh)
        reference = ColorReference(jnp.full(313, 1 / 313), jnp.ones(313))
        step: Any = make_train_step(program, optimizer, config, "joint", reference=reference, mesh=mesh)
        photos = next(cls.batches(config, mesh))
        lowered = step.lower(current, photos)
        side = config.data.image_size // config.model.output_stride
        flops = lowered.cost_analysis()["flops"] + attention.flops(
            config.joint.batch_size, side**2, width=config.model.width, backward=True
        )
        return cls(config, mesh, lowered.compile(), current, flops)

    @staticmethod
    def batches(config: Any, mesh: Any) -> Iterator[Any]:
        """Training batches on the devices."""
        batches = data.train_batches(
            config.data,
            batch_size=config.joint.batch_size,
            seed=0,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return (sharding.to_devices(batch, mesh) for batch in batches)

    def one_batch(self) -> Iterator[Any]:
        """The first training batch, repeated."""
        return itertools.repeat(next(self.batches(self.config, self.mesh)))

    def running(self, batches: Iterator[Any], *, steps: int = 1) -> Callable[[], Any]:
        """A function that trains a number of steps, each dispatched before the previous one is done, as in
        colorjax.training."""

        def run() -> Any:
            unread = measured = None
            for _ in range(steps):
                self.current, measured = self.compiled(self.current, next(batches))
                jax.block_until_ready(unread)
                unread = measured
            return self.current, measured

        return run
