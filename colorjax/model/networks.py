"""The paper's six networks, under the paper's names.

Layer sizes are Iizuka's (SIGGRAPH 2016, table 1), multiplied by `width`. All maps are channels-last. Every convolution
is 3×3 with zero padding 1, followed by a normalization and ReLU except at the output. Up-sampling is nearest-neighbor.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from colorjax.model.attention import PatchwiseAttentionBlock, SelfAttention
from colorjax.ops.convolution import halving_convolution, same_convolution
from colorjax.ops.products import float32_sums

NormFactory = Callable[[int], nnx.Module]
"""features -> a normalization over the last axis."""

_he = nnx.initializers.he_normal()


def norm_factory(kind: str, *, photos: int, dtype: DTypeLike, rngs: nnx.Rngs) -> NormFactory:
    """Makes the networks' normalizations: `batch` (Iizuka, SAN) or `group` (up to 32 groups, Wu & He 2018).

    Args:
        kind: `batch` or `group`.
        photos: how many photos share BatchNorm's statistics; 0 is all photos of the batch.
        dtype: of the result; statistics are float32.
        rngs: for the parameters.

    Raises:
        ValueError: if `kind` is another, or `photos` is negative.
    """
    if photos < 0:
        raise ValueError(f"model.norm_photos is {photos}; it must be 0, which is all of the batch, or more")
    if kind == "batch":
        # 0.9 averages over some ten steps, since the paper's joint stage has only 2,000.
        factory = partial(GhostBatchNorm, photos=photos) if photos else nnx.BatchNorm
        return partial(factory, momentum=0.9, dtype=dtype, rngs=rngs)
    if kind == "group":
        return lambda features: nnx.GroupNorm(
            features, num_groups=min(32, max(1, features // 4)), dtype=dtype, rngs=rngs
        )
    raise ValueError(f"model.norm is {kind!r}; it must be 'batch' or 'group'")


class GhostBatchNorm(nnx.BatchNorm):
    """BatchNorm in which each `photos` consecutive photos of a batch share statistics (Hoffer et al., NIPS 2017).

    Where the photos of one device are a multiple of them, no statistics cross devices but those that are kept: the
    running averages, which take the mean of the groups' means and variances.

    Raises:
        ValueError: when it trains, if `photos` does not divide the batch.
    """

    def __init__(self, num_features: int, *, photos: int, **options: Any):
        super().__init__(num_features, **options)
        self.photos = photos

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.use_running_average:
            return super().__call__(x)
        if len(x) % self.photos:
            raise ValueError(f"model.norm_photos is {self.photos}, which does not divide a batch of {len(x)} photos")
        groups = x.reshape(-1, self.photos, *x.shape[1:]).astype(jnp.float32)
        mean, square = (y.mean(tuple(range(1, y.ndim - 1)), keepdims=True) for y in (groups, groups**2))
        variance = jnp.maximum(square - mean**2, 0)
        for kept, new in ((self.mean, mean), (self.var, variance)):
            new = lax.stop_gradient(new.reshape(-1, self.num_features).mean(axis=0))
            kept[...] = self.momentum * kept[...] + (1 - self.momentum) * new
        assert self.scale is not None
        assert self.bias is not None
        scale, bias = (jnp.expand_dims(y[...], tuple(range(groups.ndim - 1))) for y in (self.scale, self.bias))
        normalized = (groups - mean) * (lax.rsqrt(variance + self.epsilon) * scale) + bias
        return normalized.reshape(x.shape).astype(self.dtype)


class ConvBlock(nnx.Module):
    """3×3 convolution, normalization, ReLU: [B, H, W, in] -> [B, H/stride, W/stride, out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        stride: int = 1,
        norm: NormFactory,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_features,
            out_features,
            (3, 3),
            strides=stride,
            padding=1,
            use_bias=False,  # the normalization has one
            kernel_init=_he,
            conv_general_dilated=halving_convolution if stride == 2 else same_convolution,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = norm(out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.norm(self.conv(x)))


class MaxPool(nnx.Module):
    """2×2 maxima: [B, H, W, C] -> [B, H/2, W/2, C]."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.max_pool(x, (2, 2), strides=(2, 2))


class LowLevelFeatures(nnx.Module):
    """Low-level features network: [B, H, W, 1] -> [B, H/8, W/8, 512·width].

    Three resolutions, each with two convolutions, of which the first halves the size. If `patch_kernels` is not empty,
    a patchwise self-attention block (SAN, [3] of the paper) with that resolution's kernel size follows them.
    """

    def __init__(
        self,
        *,
        width: float,
        downsampling: str,
        patch_kernels: Sequence[int],
        patch_relation_ratio: int,
        patch_output_ratio: int,
        patch_share: int,
        patch_relation_norm: Literal["before", "after"],
        norm: NormFactory,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if downsampling not in ("stride", "pool"):
            raise ValueError(f"model.downsampling is {downsampling!r}; it must be 'stride' or 'pool'")
        if patch_kernels and len(patch_kernels) != 3:
            raise ValueError(
                f"model.patch_kernels is {tuple(patch_kernels)}; it must name three sizes, one for each resolution"
            )
        block = partial(ConvBlock, norm=norm, dtype=dtype, rngs=rngs)
        layers: list[nnx.Module] = []
        features = 1
        for level, (first, second) in enumerate(((64, 128), (128, 256), (256, 512))):
            first, second = scaled(first, width), scaled(second, width)
            if downsampling == "stride":
                layers.append(block(features, first, stride=2))
            else:
                layers += [block(features, first), MaxPool()]
            layers.append(block(first, second))
            features = second
            if patch_kernels:
                layers.append(
                    PatchwiseAttentionBlock(
                        features,
                        kernel_size=patch_kernels[level],
                        relation_ratio=patch_relation_ratio,
                        output_ratio=patch_output_ratio,
                        share=patch_share,
                        relation_norm=patch_relation_norm,
                        norm=norm,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
        self.layers = nnx.List(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        return _chain(self.layers, x)


class GlobalFeatures(nnx.Module):
    """Global features network: [B, H/8, W/8, 512·width] -> the vectors [B, 512·width] and [B, 256·width].

    The first vector is for the classification network, the second for the fusion (Iizuka, figure 2). Because of the
    first fully connected layer the network takes one input size only.
    """

    def __init__(self, *, width: float, image_size: int, norm: NormFactory, dtype: DTypeLike, rngs: nnx.Rngs):
        block = partial(ConvBlock, norm=norm, dtype=dtype, rngs=rngs)
        dense = partial(nnx.Linear, use_bias=False, kernel_init=_he, dtype=dtype, rngs=rngs)
        c512, c1024, c256 = scaled(512, width), scaled(1024, width), scaled(256, width)
        self.map_size = image_size // 8
        end = -(-image_size // 32)
        self.convs = nnx.List(
            [
                block(c512, c512, stride=2),
                block(c512, c512),
                block(c512, c512, stride=2),
                block(c512, c512),
            ]
        )
        self.dense1, self.norm1 = dense(end * end * c512, c1024), norm(c1024)
        self.dense2, self.norm2 = dense(c1024, c512), norm(c512)
        self.dense3, self.norm3 = dense(c512, c256), norm(c256)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        size = self.map_size
        if x.shape[1:3] != (size, size):
            raise ValueError(
                f"the global features network takes a {size}×{size} map, got {x.shape[1]}×{x.shape[2]}: "
                f"give the Colorizer a `global_l` of {8 * size}×{8 * size} pixels, its training size"
            )
        x = _chain(self.convs, x)
        x = nnx.relu(self.norm1(self.dense1(x.reshape(x.shape[0], -1))))
        x = nnx.relu(self.norm2(self.dense2(x)))
        return x, self.for_fusion(x)

    def for_fusion(self, for_class: jax.Array) -> jax.Array:
        """The vector for the fusion, from the one for the classification."""
        return nnx.relu(self.norm3(self.dense3(for_class)))


class MidLevelFeatures(nnx.Module):
    """Mid-level features network: [B, H/8, W/8, 512·width] -> [B, H/8, W/8, 256·width]."""

    def __init__(self, *, width: float, norm: NormFactory, dtype: DTypeLike, rngs: nnx.Rngs):
        block = partial(ConvBlock, norm=norm, dtype=dtype, rngs=rngs)
        c512, c256 = scaled(512, width), scaled(256, width)
        self.layers = nnx.List([block(c512, c512), block(c512, c256)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return _chain(self.layers, x)


class Fusion(nnx.Module):
    """Fusion network: a map [B, h, w, 256·width] and a global vector [B, 256·width] -> the map's shape.

    A 1×1 convolution of the map concatenated with the vector at every pixel. It is computed as the sum of its two
    halves, so that the vector is multiplied once instead of at every pixel.
    """

    def __init__(self, *, width: float, norm: NormFactory, dtype: DTypeLike, rngs: nnx.Rngs):
        features = scaled(256, width)
        # Each half has half of the concatenation's fan-in, hence half of He's variance.
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        linear = partial(
            nnx.Linear,
            features,
            features,
            use_bias=False,
            kernel_init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.local, self.vector, self.norm = linear(), linear(), norm(features)

    def __call__(self, local: jax.Array, vector: jax.Array) -> jax.Array:
        return nnx.relu(self.norm(self.local(local) + self.vector(vector)[:, None, None, :]))


class Colorization(nnx.Module):
    """Colorization network: [B, H/8, W/8, 256·width] -> [B, H/stride, W/stride, outputs], float32.

    `output_attention` (`full`, `pooled` or `none`) is SAGAN's self-attention ([4] of the paper) before the output
    convolution. With `output_stride` 4 there is no second up-sampling.
    """

    def __init__(
        self,
        *,
        width: float,
        outputs: int,
        output_stride: int,
        output_attention: str,
        output_gate: float,
        norm: NormFactory,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if output_stride not in (2, 4):
            raise ValueError(f"model.output_stride is {output_stride}; it must be 2 or 4")
        if output_attention not in ("full", "pooled", "none"):
            raise ValueError(f"model.output_attention is {output_attention!r}; it must be 'full', 'pooled' or 'none'")
        block = partial(ConvBlock, norm=norm, dtype=dtype, rngs=rngs)
        c256, c128, c64, c32 = (scaled(n, width) for n in (256, 128, 64, 32))
        self.eighth = block(c256, c128)
        self.quarter = nnx.List([block(c128, c64), block(c64, c64)])
        self.last = block(c64, c32)
        self.upsample_last = output_stride == 2
        self.attention = (
            None
            if output_attention == "none"
            else SelfAttention(
                c32,
                pooled=output_attention == "pooled",
                gate_init=output_gate,
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.output = nnx.Conv(
            c32,
            outputs,
            (3, 3),
            padding=1,
            kernel_init=nnx.initializers.lecun_normal(),
            conv_general_dilated=float32_sums(lax.conv_general_dilated, factors=dtype),
            dtype=jnp.float32,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.attended(x)
        if self.attention is not None:
            x = self.attention(x)
        return self.output(x)

    def attended(self, x: jax.Array) -> jax.Array:
        """What the self-attention sees: [B, H/stride, W/stride, 32·width]."""
        x = upsample(self.eighth(x))
        x = _chain(self.quarter, x)
        return self.last(upsample(x) if self.upsample_last else x)


class Classification(nnx.Module):
    """Classification network: the global network's [B, 512·width] -> class logits [B, classes], float32."""

    def __init__(self, *, width: float, classes: int, norm: NormFactory, dtype: DTypeLike, rngs: nnx.Rngs):
        c512, c256 = scaled(512, width), scaled(256, width)
        self.dense = nnx.Linear(c512, c256, use_bias=False, kernel_init=_he, dtype=dtype, rngs=rngs)
        self.norm = norm(c256)
        self.output = nnx.Linear(
            c256,
            classes,
            dot_general=float32_sums(lax.dot_general, factors=dtype),
            dtype=jnp.float32,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(nnx.relu(self.norm(self.dense(x))))


def scaled(features: int, width: float) -> int:
    """`features`·`width`.

    Raises:
        ValueError: if that is not a whole number, or `width` is below 1/4.
    """
    n = features * width
    if n != int(n) or width < 0.25:
        raise ValueError(
            f"model.width is {width}, which makes {features} channels {n}; take a multiple of 1/8 from 1/4 on"
        )
    return int(n)


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbor, twofold: [B, H, W, C] -> [B, 2H, 2W, C]."""
    batch, height, width, channels = x.shape
    fourfold = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return fourfold.reshape(batch, 2 * height, 2 * width, channels)


def _chain(layers: Sequence[Callable[[jax.Array], jax.Array]], x: jax.Array) -> jax.Array:
    for layer in layers:
        x = layer(x)
    return x
