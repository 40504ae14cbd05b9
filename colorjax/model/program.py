"""A model as a pure function of its parameters and running statistics: built, initialized, called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from colorjax.model.colorizer import AttentionWeights, Classifier, Colorizer

Tree = dict[str, Any]
"""Nested dicts of arrays, keyed by the names of networks and layers."""

TEACHER_HEAD = "teacher"
"""Name of the head that predicts a teacher's features: trained with the model's parameters, but not part of it."""


@dataclass(frozen=True)
class Program:
    """An NNX model as a pure function of its parameters and running statistics."""

    graphdef: Any

    @classmethod
    def split(cls, model: nnx.Module) -> tuple["Program", Tree, Tree]:
        """Splits a model into the function, its parameters and its statistics."""
        graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        return cls(graphdef), _named(nnx.to_pure_dict(params)), _named(nnx.to_pure_dict(stats))

    def __call__(self, params: Tree, stats: Tree, *args: Any, train: bool, **kwargs: Any) -> tuple[Any, Tree]:
        """Returns the model's outputs and its statistics after the call, which change only if `train`."""
        model = self.merged(params, stats)
        if train:
            model.train()
        else:
            model.eval()
        outputs = model(*args, **kwargs)
        return outputs, _named(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def attention_weights(self, params: Tree, stats: Tree, l: jax.Array, *, x: Any, y: Any) -> AttentionWeights:
        """Where a Colorizer's attentions look from a place; arguments as of `Colorizer.attention_weights`."""
        model = self.merged(params, stats)
        assert isinstance(model, Colorizer)
        model.eval()
        return model.attention_weights(l, x=x, y=y)

    def merged(self, params: Tree, stats: Tree) -> nnx.Module:
        """The NNX model with these parameters, without the teacher's head, and these statistics."""
        params = {name: network for name, network in params.items() if name != TEACHER_HEAD}
        return nnx.merge(self.graphdef, _numbered(params), _numbered(stats))


def abstract_model(config: Any, stage: str, *, classes: int) -> tuple[Program, Tree, Tree]:
    """A stage's model, with shapes (jax.ShapeDtypeStruct) in place of parameters and statistics.

    Args:
        config: see configs/paper.py.
        stage: "pretrain" for a Classifier, "joint" for a Colorizer.
        classes: number of class labels.

    Raises:
        ValueError: if no such model can be built.
    """
    return Program.split(nnx.eval_shape(_constructor(config, stage, classes), jax.random.key(0)))


def build_program(config: Any, stage: str, *, classes: int) -> Program:
    """A stage's model as a function, without making any parameters; arguments and errors as `abstract_model`."""
    return abstract_model(config, stage, classes=classes)[0]


def init_model(config: Any, stage: str, *, classes: int) -> tuple[Tree, Tree]:
    """A stage's initial parameters and statistics, which depend on `config.seed` and the shapes alone."""
    construct = _constructor(config, stage, classes)
    # The key is an argument: with a constant, XLA would compute every random number while it compiles. The program runs
    # once, so optimizing it would take longer than it saves.
    initialize = jax.jit(
        lambda key: Program.split(construct(key))[1:],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return initialize(jax.random.key(config.seed))


def _constructor(config: Any, stage: str, classes: int) -> Callable[[jax.Array], nnx.Module]:
    model = Classifier if stage == "pretrain" else Colorizer
    size = config.data.image_size
    return lambda key: model(config.model, classes=classes, image_size=size, rngs=nnx.Rngs(key))


def _named(tree: dict) -> Tree:
    # NNX numbers a list's modules with integers, which Orbax would read back as strings.
    return {str(k): _named(v) if isinstance(v, dict) else v for k, v in tree.items()}


def _numbered(tree: Tree) -> dict:
    return {int(k) if k.isdigit() else k: _numbered(v) if isinstance(v, dict) else v for k, v in tree.items()}
