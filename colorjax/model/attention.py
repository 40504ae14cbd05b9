"""The two self-attentions: over the whole image (SAGAN) and over each pixel's patch (SAN).

Zhang, Goodfellow, Metaxas, Odena, *Self-Attention Generative Adversarial Networks*, and Zhao, Jia, Koltun, *Exploring
Self-attention for Image Recognition*: the paper's references [4] and [3].
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from colorjax.ops.patch_attention import patch_attention
from colorjax.ops.softmax_attention import dot_product_attention

Norm = Callable[[int], nnx.Module]
"""Makes a normalization over the last axis, given its number of features."""


class SpectralLinear(nnx.Module):
    """A linear map without bias whose kernel is divided by its largest singular value.

    Each call estimates that value by one power iteration, which starts from a vector u
    (brain-research/self-attention-gan ops.py, `spectral_normed_weight`). u is a `BatchStat`, so it is kept with the
    normalizations' statistics; after `model.eval()` it no longer changes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        init = nnx.initializers.glorot_uniform()
        self.kernel = nnx.Param(init(rngs.params(), (in_features, out_features), jnp.float32))
        self.u = nnx.BatchStat(jax.random.normal(rngs.params(), (out_features,), jnp.float32))
        self.dtype = dtype
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in_features] -> [..., out_features] of the module's dtype."""
        kernel = self.kernel[...]
        fixed = lax.stop_gradient(kernel)
        v = _unit(fixed @ self.u[...])
        u = _unit(v @ fixed)
        if not self.use_running_average:
            self.u[...] = u
        kernel = kernel / (v @ kernel @ u)
        return x.astype(self.dtype) @ kernel.astype(self.dtype)


def _unit(x: jax.Array) -> jax.Array:
    return x / (jnp.linalg.norm(x) + 1e-12)


class SelfAttention(nnx.Module):
    """Self-attention over all pixels: SAGAN's block (brain-research/self-attention-gan non_local.py).

    x + gate · output(softmax(query(x) key(x)ᵀ) value(x)). All four maps are 1×1, spectrally normalized and without
    bias; the scores are not scaled.
    """

    def __init__(
        self,
        features: int,
        *,
        pooled: bool = False,
        gate_init: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the four maps and the gate.

        Args:
            features: C, at least 2. Queries and keys have max(1, C // 8) features, values C // 2.
            pooled: max-pools keys and values 2×2, as SAGAN's code does (its paper does not).
            gate_init: the initial value of the learned gate; with 0 the block starts as the identity.
            dtype: of the computation; parameters are float32.
            rngs: source of the initial parameters.

        Raises:
            ValueError: if features < 2.
        """
        if features < 2:
            raise ValueError(f"features must be at least 2 to halve them, got {features}")
        inner = max(1, features // 8)
        self.query = SpectralLinear(features, inner, dtype=dtype, rngs=rngs)
        self.key = SpectralLinear(features, inner, dtype=dtype, rngs=rngs)
        self.value = SpectralLinear(features, features // 2, dtype=dtype, rngs=rngs)
        self.output = SpectralLinear(features // 2, features, dtype=dtype, rngs=rngs)
        self.gate = nnx.Param(jnp.asarray(gate_init, jnp.float32))
        self.pooled = pooled
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C] of the module's dtype.

        Raises:
            ValueError: if pooled and H or W is odd.
        """
        batch, height, width, channels = x.shape
        q, k, v = (y.reshape(batch, -1, y.shape[-1]) for y in self._projected(x))
        out = dot_product_attention(q, k, v).reshape(batch, height, width, channels // 2)
        return x.astype(self.dtype) + self.gate[...].astype(self.dtype) * self.output(out)

    def weights(self, x: jax.Array, *, row: ArrayLike, column: ArrayLike) -> jax.Array:
        """How much one pixel looks at each other one: float32 [B, H, W], half as high and wide if pooled; it sums to 1.

        Args:
            x: [B, H, W, C].
            row, column: of the pixel that looks.

        Raises:
            ValueError: as `__call__`.
        """
        query, key, _ = self._projected(x)
        scores = jnp.einsum("bc,bhwc->bhw", query[:, row, column], key, preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores, axis=(1, 2))

    def _projected(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query, key and value: [B, H, W, features] each; key and value half as high and wide if pooled."""
        height, width = x.shape[1:3]
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.pooled:
            if height % 2 or width % 2:
                raise ValueError(
                    f"pooled keys need an even height and width, got {height}×{width}: resize, or use pooled=False"
                )
            key, value = _pool(key), _pool(value)
        return query, key, value


def _pool(x: jax.Array) -> jax.Array:
    """2×2 max-pooling: [B, H, W, C] -> [B, H / 2, W / 2, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


class PatchwiseSelfAttention(nnx.Module):
    """Self-attention over the k×k patch around each pixel, with weights computed from the whole patch.

    SAN's patchwise attention (Zhao et al. 2020, section 3.2; hszhao/SAN model/san.py, `SAM`):
    y_i = Σ_j γ([φ(x_i), ψ(x_{i+1}), …, ψ(x_{i+k²})])_j ∘ β(x_{i+j}), without softmax and without
    position code. `share` value channels use the same weight: channel c takes c mod (out / share).
    """

    def __init__(
        self,
        features: int,
        *,
        kernel_size: int,
        relation_features: int,
        out_features: int,
        share: int = 8,
        relation_norm: Literal["before", "after"] = "before",
        norm: Norm,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes φ, ψ, β and γ = gamma_in, norm, ReLU, gamma_out.

        Args:
            features: C of the input.
            kernel_size: k, odd.
            relation_features: of φ and ψ (SAN: C / 16).
            out_features: of β and of the result (SAN: C / 4); a multiple of share.
            share: how many value channels share a weight.
            relation_norm: "before" normalizes φ and ψ before the patch is gathered, so that γ's first map is a
                convolution and no patch is ever unfolded; "after" normalizes [φ, ψ over the patch], each offset of the
                patch separately, as SAN's code does.
            norm: makes a normalization, given its number of features.
            dtype: of the computation; parameters are float32.
            rngs: source of the initial parameters.

        Raises:
            ValueError: if k is even, out_features is not a multiple of share, a size is not
                positive, or relation_norm is unknown.
        """
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        if relation_features < 1:
            raise ValueError(f"relation_features must be positive, got {relation_features}")
        if share < 1 or out_features < 1 or out_features % share:
            raise ValueError(
                f"out_features = {out_features} is not a positive multiple of share = {share}: change one of them"
            )
        if relation_norm not in ("before", "after"):
            raise ValueError(f'relation_norm must be "before" or "after", got {relation_norm!r}')
        offsets, groups = kernel_size**2, out_features // share
        linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.phi = linear(features, relation_features)
        self.psi = linear(features, relation_features)
        self.beta = linear(features, out_features)
        if relation_norm == "before":
            self.phi_norm = norm(relation_features)
            self.psi_norm = norm(relation_features)
        else:
            self.relation_norm = norm(relation_features * (offsets + 1))
        self.gamma_in = linear(relation_features * (offsets + 1), groups, use_bias=False)
        self.gamma_norm = norm(groups)
        self.gamma_out = linear(groups, offsets * groups)
        self.kernel_size = kernel_size
        self.normalized_before = relation_norm == "before"
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, out_features] of the module's dtype.

        Raises:
            ValueError: if H or W is not larger than k // 2, which the reflection needs.
        """
        # gamma_out is applied inside the sum, so that the weights need not be written to memory.
        kernel, bias = self.gamma_out.kernel, self.gamma_out.bias
        assert bias is not None
        hidden, values = self._hidden(x), self.beta(x)
        return patch_attention(hidden, kernel[...], bias[...], values, kernel_size=self.kernel_size)

    def weights(self, x: jax.Array) -> jax.Array:
        """The weights of each pixel's patch, of either sign: float32 [B, H, W, k, k, out_features / share].

        Raises:
            ValueError: as `__call__`.
        """
        weights = self.gamma_out(self._hidden(x)).astype(jnp.float32)
        return weights.reshape(*x.shape[:3], self.kernel_size, self.kernel_size, -1)

    def _hidden(self, x: jax.Array) -> jax.Array:
        """What gamma_out makes the weights of: [B, H, W, out_features / share] of the module's dtype."""
        phi, psi = self.phi(x), self.psi(x)
        if self.normalized_before:
            hidden = self._joint_linear(nnx.relu(self.phi_norm(phi)), nnx.relu(self.psi_norm(psi)))
        else:
            relation = jnp.concatenate([phi, unfold(psi, kernel_size=self.kernel_size)], axis=-1)
            hidden = self.gamma_in(nnx.relu(self.relation_norm(relation)))
        return nnx.relu(self.gamma_norm(hidden)).astype(self.dtype)

    def _joint_linear(self, phi: jax.Array, psi: jax.Array) -> jax.Array:
        """gamma_in on [φ, ψ over the patch], without unfolding: a 1×1 and a k×k convolution."""
        size, relation = self.kernel_size, phi.shape[-1]
        kernel = self.gamma_in.kernel[...].astype(self.dtype)
        near, patch = kernel[:relation], kernel[relation:]
        padded = _reflect(psi.astype(self.dtype), size)
        around = lax.conv_general_dilated(
            padded,
            patch.reshape(size, size, relation, -1),
            window_strides=(1, 1),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return phi.astype(self.dtype) @ near + around


def _reflect(x: jax.Array, kernel_size: int) -> jax.Array:
    reach = kernel_size // 2
    if any(side <= reach for side in x.shape[1:3]):  # one by one, as symbolic sizes have no least
        raise ValueError(
            f"reflection by {reach} pixels needs a larger image than {x.shape[1]}×{x.shape[2]}: "
            f"use a smaller kernel_size than {kernel_size}"
        )
    return jnp.pad(x, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="reflect")


def unfold(x: jax.Array, *, kernel_size: int) -> jax.Array:
    """The k×k patch around each pixel, padded by reflection.

    Args:
        x: [B, H, W, C].
        kernel_size: k, odd.

    Returns:
        [B, H, W, k² · C], offset by offset (row-major), the channels within.
    """
    height, width = x.shape[1:3]
    padded = _reflect(x, kernel_size)
    return jnp.concatenate(
        [padded[:, dy : dy + height, dx : dx + width] for dy in range(kernel_size) for dx in range(kernel_size)],
        axis=-1,
    )


class PatchwiseAttentionBlock(nnx.Module):
    """SAN's bottleneck: x + expand(ReLU(norm(attention(ReLU(norm(x)))))) (model/san.py)."""

    def __init__(
        self,
        features: int,
        *,
        kernel_size: int,
        relation_ratio: int = 16,
        output_ratio: int = 4,
        share: int = 8,
        relation_norm: Literal["before", "after"] = "before",
        norm: Norm,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the attention and the layers around it.

        Args:
            features: C of input and result; a multiple of relation_ratio and of output_ratio · share.
            kernel_size, share, relation_norm, norm, dtype, rngs: as in `PatchwiseSelfAttention`.
            relation_ratio: C divided by the features of φ and ψ.
            output_ratio: C divided by the features of β.

        Raises:
            ValueError: if C is not such a multiple.
        """
        for name, divisor in (
            ("relation_ratio", relation_ratio),
            ("output_ratio · share", output_ratio * share),
        ):
            if divisor < 1 or features < 1 or features % divisor:
                raise ValueError(
                    f"features = {features} is not a positive multiple of {name} = {divisor}: "
                    "choose another width or a smaller ratio or share"
                )
        inner = features // output_ratio
        self.norm_in = norm(features)
        self.attention = PatchwiseSelfAttention(
            features,
            kernel_size=kernel_size,
            relation_features=features // relation_ratio,
            out_features=inner,
            share=share,
            relation_norm=relation_norm,
            norm=norm,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm_out = norm(inner)
        self.expand = nnx.Linear(inner, features, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C] of the module's dtype."""
        out = self.attention(self.attended(x))
        return x.astype(self.dtype) + self.expand(nnx.relu(self.norm_out(out)))

    def attended(self, x: jax.Array) -> jax.Array:
        """What the attention sees: ReLU(norm(x))."""
        return nnx.relu(self.norm_in(x))
