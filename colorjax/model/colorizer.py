"""The two models of the paper's two stages.

`Classifier` has three of the six networks, `Colorizer` all of them. Both name the networks alike, so a parameter has
the same path in both (`low_level/…`), and pretrained parameters are carried over by path (training/pretrained.py).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from colorjax.color import NUM_BINS
from colorjax.model import networks
from colorjax.model.attention import PatchwiseAttentionBlock
from colorjax.ops.dispatch import fastest_dtype

SHARED = ("low_level", "global_features", "classification")
"""The networks of both models: those that the joint stage can take from pretraining."""

UNUSED_BY_CLASSIFIER = ("global_features.dense3", "global_features.norm3")
"""Layers of those networks that only the fusion uses: the Classifier has them but does not train them."""

_HINT_STEP = 0.02  # as a share of the length of the vector that a class hint moves
_HINT_CERTAINTY = 0.9  # the class's probability at which the vector stops


class Outputs(NamedTuple):
    """A model's outputs for a batch, float32.

    Attributes:
        class_logits: [B, classes].
        color: [B, h, w, 313] logits of the ab bins, or [B, h, w, 2] ab (regression); None from the Classifier.
        vector: [B, 512·width], the global vector, from which the class is predicted.
    """

    class_logits: jax.Array
    color: jax.Array | None
    vector: jax.Array | None = None


class AttentionWeights(NamedTuple):
    """Where a Colorizer's attentions look from one place, float32.

    Attributes:
        patches: [B, k, k] for each of the three resolutions, from the finest: the patchwise attention's weights, of
            either sign, as their mean over the weight channels; () without patchwise attention.
        output: [B, h, w], those of the self-attention at the output, which sum to 1; None without it.
    """

    patches: tuple[jax.Array, ...]
    output: jax.Array | None


class Classifier(nnx.Module):
    """Low-level, global and classification network: stage 1."""

    def __init__(
        self,
        config: Any,
        *,
        classes: int,
        image_size: int,
        rngs: nnx.Rngs,
    ):
        """Args:
        config: the `model` section of the configuration.
        classes: number of class labels.
        image_size: side in pixels of the square photos that it is trained on: a multiple of 8, at least 32.
        rngs: source of the initial parameters.

        Raises:
            ValueError: if a field of the configuration or `image_size` has a value that no model can have.
        """
        if image_size % 8 or image_size < 32:
            raise ValueError(f"data.image_size is {image_size}; it must be a multiple of 8, at least 32")
        dtype = compute_dtype(config)
        norm = networks.norm_factory(config.norm, photos=config.norm_photos, dtype=dtype, rngs=rngs)
        common = {"width": config.width, "norm": norm, "dtype": dtype, "rngs": rngs}
        self.low_level = networks.LowLevelFeatures(
            downsampling=config.downsampling,
            patch_kernels=tuple(config.patch_kernels) if config.patch_attention else (),
            patch_relation_ratio=config.patch_relation_ratio,
            patch_output_ratio=config.patch_output_ratio,
            patch_share=config.patch_share,
            patch_relation_norm=config.patch_relation_norm,
            **common,
        )
        self.global_features = networks.GlobalFeatures(image_size=image_size, **common)
        self.classification = networks.Classification(classes=classes, **common)

    def __call__(self, l: jax.Array) -> Outputs:
        """l: float32 [B, image_size, image_size, 1], 0…100."""
        for_class, _ = self.global_features(self.low_level(_normalized(l)))
        return Outputs(self.classification(for_class), None, for_class.astype(jnp.float32))


class Colorizer(Classifier):
    """All six networks: stage 2, and prediction."""

    def __init__(
        self,
        config: Any,
        *,
        classes: int,
        image_size: int,
        rngs: nnx.Rngs,
    ):
        """Arguments and errors as `Classifier`."""
        super().__init__(config, classes=classes, image_size=image_size, rngs=rngs)
        if config.head not in ("bins", "ab"):
            raise ValueError(f"model.head is {config.head!r}; it must be 'bins' or 'ab'")
        dtype = compute_dtype(config)
        norm = networks.norm_factory(config.norm, photos=config.norm_photos, dtype=dtype, rngs=rngs)
        common = {"width": config.width, "norm": norm, "dtype": dtype, "rngs": rngs}
        self.regression = config.head == "ab"
        self.mid_level = networks.MidLevelFeatures(**common)
        self.fusion = networks.Fusion(**common) if config.fusion else None
        self.colorization = networks.Colorization(
            outputs=2 if self.regression else NUM_BINS,
            output_stride=config.output_stride,
            output_attention=config.output_attention,
            output_gate=config.output_gate,
            **common,
        )

    def __call__(self, l: jax.Array, *, global_l: jax.Array | None = None, hint: jax.Array | None = None) -> Outputs:
        """Predicts color and class of a batch.

        Args:
            l: float32 [B, H, W, 1], 0…100; H and W multiples of 8.
            global_l: float32 [B, image_size, image_size, 1], the input of the global network in place of `l`. Required
                if `l` has another size. That of another photo transfers its style (Iizuka, section 6.3).
            hint: int32 [B]: classes, towards which the global features are moved before the fusion.

        Raises:
            ValueError: if `global_l` is missing or has another size.
        """
        low = self.low_level(_normalized(l))
        global_low = low if global_l is None else self.low_level(_normalized(global_l))
        for_class, vector = self.global_features(global_low)
        if hint is not None:
            for_class = self._moved(for_class, hint)
            vector = self.global_features.for_fusion(for_class)
        color = self.colorization(self._fused(low, vector))
        # Iizuka's sigmoid output, 0…1, means ab of −128…128.
        color = 256 * (nnx.sigmoid(color) - 0.5) if self.regression else color
        return Outputs(self.classification(for_class), color, for_class.astype(jnp.float32))

    def attention_weights(self, l: jax.Array, *, x: jax.Array, y: jax.Array) -> AttentionWeights:
        """Where the attentions look from a place; it has the same meaning at every resolution.

        Args:
            l: float32 [B, image_size, image_size, 1], 0…100.
            x, y: floating [], of the place, in 0…1 from the left and from the top.
        """

        def place(features: jax.Array) -> tuple[jax.Array, jax.Array]:
            height, width = features.shape[1:3]
            row, column = (jnp.floor(part * size).astype(jnp.int32) for part, size in ((y, height), (x, width)))
            return jnp.minimum(row, height - 1), jnp.minimum(column, width - 1)

        features, patches = _normalized(l), []
        for layer in self.low_level.layers:
            if isinstance(layer, PatchwiseAttentionBlock):
                row, column = place(features)
                weights = layer.attention.weights(layer.attended(features))
                patches.append(weights[:, row, column].mean(axis=-1))
            features = layer(features)
        output = None
        if self.colorization.attention is not None:
            _, vector = self.global_features(features)
            attended = self.colorization.attended(self._fused(features, vector))
            row, column = place(attended)
            output = self.colorization.attention.weights(attended, row=row, column=column)
        return AttentionWeights(tuple(patches), output)

    def _fused(self, low: jax.Array, vector: jax.Array) -> jax.Array:
        local = self.mid_level(low)
        return self.fusion(local, vector) if self.fusion else local

    def _moved(self, for_class: jax.Array, hint: jax.Array) -> jax.Array:
        """Moves the vector for the classification until the network predicts `hint`, at most by the vector's length.

        It goes down the gradient of the class loss, in steps of a fixed share of the vector's length, and stays in the
        range of ReLU.
        """

        def log_probability(x: jax.Array) -> jax.Array:
            scores = jax.nn.log_softmax(self.classification(x))
            return jnp.take_along_axis(scores, hint[:, None], axis=-1)[:, 0]

        length = jnp.linalg.norm(for_class, axis=-1, keepdims=True)

        def step(_: int, x: jax.Array) -> jax.Array:
            value, pull = jax.vjp(log_probability, x)
            (gradient,) = pull(jnp.ones_like(value))
            # Components that ReLU keeps at 0 use up nothing of the step.
            gradient = jnp.where((x > 0) | (gradient > 0), gradient, 0)
            norm = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
            moved = nnx.relu(x + _HINT_STEP * length * gradient / jnp.maximum(norm, 1e-12))
            return jnp.where(value[:, None] < math.log(_HINT_CERTAINTY), moved, x)

        return jax.lax.fori_loop(0, round(1 / _HINT_STEP), step, for_class)


def compute_dtype(config: Any) -> jnp.dtype:
    """The dtype of activations that the `model` section asks for; parameters, logits and losses are float32.

    Raises:
        ValueError: if `config.dtype` is not "float32", "bfloat16" or "auto".
    """
    if config.dtype not in ("float32", "bfloat16", "auto"):
        raise ValueError(f"model.dtype is {config.dtype!r}; it must be float32, bfloat16 or auto")
    return fastest_dtype() if config.dtype == "auto" else jnp.dtype(config.dtype)


def parameter_count(model: nnx.Module) -> int:
    """The number of trained scalars."""
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _normalized(l: jax.Array) -> jax.Array:
    return l / 50 - 1
