"""The paper's model in PyTorch, to compare joint steps: the same six networks, parameters and loss.

Only what configs/paper.py chooses is here: strided down-sampling, BatchNorm, γ normalized before the patch is gathered,
attention over all output pixels, 313 bins. The modules have the names of colorjax.networks', so that `load` carries
colorjax's parameters over by path.
"""

# The peers' packages need not be installed.
# pyright: reportMissingImports=false

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorjax.color import NUM_BINS
from colorjax.model.networks import scaled


def patch_sum(values: Tensor, weights: Tensor, *, kernel_size: int) -> Tensor:
    """The patch sum in PyTorch, over `F.unfold`ed patches, channels first (see colorjax.ops.patch_sum).

    Args:
        values: [B, C, H, W].
        weights: [B, k², G, H·W].
        kernel_size: k, odd.

    Returns:
        [B, C, H, W].
    """
    batch, channels, height, width = values.shape
    groups = weights.shape[2]
    reach = kernel_size // 2
    patches = F.unfold(F.pad(values, (reach,) * 4, mode="reflect"), kernel_size)
    patches = patches.view(batch, channels // groups, groups, kernel_size**2, height * width)
    return (weights.transpose(1, 2)[:, None] * patches).sum(dim=3).view_as(values)


class ConvBlock(nn.Module):
    def __init__(self, in_features: int, out_features: int, *, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_features, out_features, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class PatchwiseSelfAttention(nn.Module):
    def __init__(self, features: int, *, kernel_size: int, share: int):
        super().__init__()
        self.relation, inner = features // 16, features // 4
        groups = inner // share
        self.kernel_size = kernel_size
        self.phi = nn.Conv2d(features, self.relation, 1)
        self.psi = nn.Conv2d(features, self.relation, 1)
        self.beta = nn.Conv2d(features, inner, 1)
        self.phi_norm = nn.BatchNorm2d(self.relation)
        self.psi_norm = nn.BatchNorm2d(self.relation)
        self.gamma_in = nn.Conv2d(self.relation * (kernel_size**2 + 1), groups, 1, bias=False)
        self.gamma_norm = nn.BatchNorm2d(groups)
        self.gamma_out = nn.Conv2d(groups, kernel_size**2 * groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        phi, psi = F.relu(self.phi_norm(self.phi(x))), F.relu(self.psi_norm(self.psi(x)))
        k, reach = self.kernel_size, self.kernel_size // 2
        # Without unfolding, as in colorjax: PyTorch gets the better form.
        kernel = self.gamma_in.weight[:, self.relation :, 0, 0].view(-1, k, k, self.relation).permute(0, 3, 1, 2)
        near = F.conv2d(phi, self.gamma_in.weight[:, : self.relation])
        hidden = near + F.conv2d(F.pad(psi, (reach,) * 4, mode="reflect"), kernel)
        weights = self.gamma_out(F.relu(self.gamma_norm(hidden)))
        weights = weights.reshape(x.shape[0], k * k, -1, x.shape[2] * x.shape[3])
        return patch_sum(self.beta(x), weights, kernel_size=k)


class PatchwiseAttentionBlock(nn.Module):
    def __init__(self, features: int, *, kernel_size: int, share: int = 8):
        super().__init__()
        self.norm_in = nn.BatchNorm2d(features)
        self.attention = PatchwiseSelfAttention(features, kernel_size=kernel_size, share=share)
        self.norm_out = nn.BatchNorm2d(features // 4)
        self.expand = nn.Conv2d(features // 4, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.attention(F.relu(self.norm_in(x)))
        return x + self.expand(F.relu(self.norm_out(out)))


class LowLevelFeatures(nn.Module):
    def __init__(self, *, width: float, patch_kernels: Sequence[int]):
        super().__init__()
        layers, features = [], 1
        for (first, second), kernel_size in zip(((64, 128), (128, 256), (256, 512)), patch_kernels, strict=True):
            first, second = scaled(first, width), scaled(second, width)
            layers += [ConvBlock(features, first, stride=2), ConvBlock(first, second)]
            layers.append(PatchwiseAttentionBlock(second, kernel_size=kernel_size))
            features = second
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return _chain(self.layers, x)


class GlobalFeatures(nn.Module):
    def __init__(self, *, width: float, image_size: int):
        super().__init__()
        c512, c1024, c256 = scaled(512, width), scaled(1024, width), scaled(256, width)
        end = -(-image_size // 32)
        self.convs = nn.ModuleList([ConvBlock(c512, c512, stride=stride) for stride in (2, 1, 2, 1)])
        self.dense1, self.norm1 = nn.Linear(end * end * c512, c1024, bias=False), nn.BatchNorm1d(c1024)
        self.dense2, self.norm2 = nn.Linear(c1024, c512, bias=False), nn.BatchNorm1d(c512)
        self.dense3, self.norm3 = nn.Linear(c512, c256, bias=False), nn.BatchNorm1d(c256)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Flattened with the channels last, as in colorjax.
        x = _chain(self.convs, x).permute(0, 2, 3, 1).flatten(1)
        x = F.relu(self.norm1(self.dense1(x)))
        x = F.relu(self.norm2(self.dense2(x)))
        return x, F.relu(self.norm3(self.dense3(x)))


class MidLevelFeatures(nn.Module):
    def __init__(self, *, width: float):
        super().__init__()
        c512, c256 = scaled(512, width), scaled(256, width)
        self.layers = nn.ModuleList([ConvBlock(c512, c512), ConvBlock(c512, c256)])

    def forward(self, x: Tensor) -> Tensor:
        return _chain(self.layers, x)


class Fusion(nn.Module):
    def __init__(self, *, width: float):
        super().__init__()
        features = scaled(256, width)
        self.local = nn.Conv2d(features, features, 1, bias=False)
        self.vector = nn.Linear(features, features, bias=False)
        self.norm = nn.BatchNorm2d(features)

    def forward(self, local: Tensor, vector: Tensor) -> Tensor:
        return F.relu(self.norm(self.local(local) + self.vector(vector)[:, :, None, None]))


class SpectralLinear(nn.Module):
    """A 1×1 map divided by its largest singular value, from one power iteration each call."""

    u: Tensor

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(in_features, out_features))
        nn.init.xavier_uniform_(self.kernel)
        self.register_buffer("u", torch.randn(out_features))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            v = F.normalize(self.kernel @ self.u, dim=0)
            u = F.normalize(v @ self.kernel, dim=0)
            if self.training:
                self.u.copy_(u)
        return x @ (self.kernel / (v @ self.kernel @ u))


class SelfAttention(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        inner = max(1, features // 8)
        self.query, self.key = SpectralLinear(features, inner), SpectralLinear(features, inner)
        self.value, self.output = SpectralLinear(features, features // 2), SpectralLinear(features // 2, features)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        q, k, v = self.query(tokens), self.key(tokens), self.value(tokens)
        # PyTorch's flash kernels need equal head sizes. With an explicit scale, zero-padding q and k is exact.
        pad = (0, v.shape[-1] - q.shape[-1])
        attended = F.scaled_dot_product_attention(F.pad(q, pad), F.pad(k, pad), v, scale=1.0)
        return x + self.gate * self.output(attended)[:, 0].transpose(1, 2).reshape(x.shape)


class Colorization(nn.Module):
    def __init__(self, *, width: float):
        super().__init__()
        c256, c128, c64, c32 = (scaled(n, width) for n in (256, 128, 64, 32))
        self.eighth = ConvBlock(c256, c128)
        self.quarter = nn.ModuleList([ConvBlock(c128, c64), ConvBlock(c64, c64)])
        self.last = ConvBlock(c64, c32)
        self.attention = SelfAttention(c32)
        self.output = nn.Conv2d(c32, NUM_BINS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.eighth(x), scale_factor=2, mode="nearest")
        x = F.interpolate(_chain(self.quarter, x), scale_factor=2, mode="nearest")
        return self.output(self.attention(self.last(x)))


class Classification(nn.Module):
    def __init__(self, *, width: float, classes: int):
        super().__init__()
        self.dense = nn.Linear(scaled(512, width), scaled(256, width), bias=False)
        self.norm = nn.BatchNorm1d(scaled(256, width))
        self.output = nn.Linear(scaled(256, width), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.relu(self.norm(self.dense(x))))


class Colorizer(nn.Module):
    """All six networks, like colorjax.model.colorizer.Colorizer under configs/paper.py."""

    def __init__(self, *, classes: int, image_size: int, width: float = 1.0, patch_kernels: Sequence[int] = (3, 7, 7)):
        super().__init__()
        self.low_level = LowLevelFeatures(width=width, patch_kernels=patch_kernels)
        self.global_features = GlobalFeatures(width=width, image_size=image_size)
        self.classification = Classification(width=width, classes=classes)
        self.mid_level = MidLevelFeatures(width=width)
        self.fusion = Fusion(width=width)
        self.colorization = Colorization(width=width)

    def forward(self, l: Tensor) -> tuple[Tensor, Tensor]:
        """L, float32 [B, 1, H, W], 0…100 -> class logits [B, classes] and color logits [B, 313, H/2, W/2]."""
        low = self.low_level(l / 50 - 1)
        for_class, vector = self.global_features(low)
        return self.classification(for_class), self.colorization(self.fusion(self.mid_level(low), vector))


def loss(class_logits: Tensor, color_logits: Tensor, labels: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Loss (1), averaged over the photos.

    Args:
        class_logits: [B, classes].
        color_logits: [B, 313, h, w].
        labels: int64 [B].
        targets: [B, 313, h, w], soft, each sums to 1.
        weight: [B, h, w], v, 0 where a pixel does not count.
    """
    color_logits = color_logits.float()
    cross_entropy = color_logits.logsumexp(dim=1) - (targets * color_logits).sum(dim=1)
    class_loss = F.cross_entropy(class_logits.float(), labels, reduction="sum")
    return (class_loss + (weight * cross_entropy).sum()) / len(labels)


@torch.no_grad()
def load(model: nn.Module, params: Any, stats: Any) -> None:
    """Copies colorjax's parameters and statistics, nested dicts with the same names, into the model.

    Raises:
        ValueError: if a name is missing on either side.
    """
    names = {"scale": "weight", "mean": "running_mean", "var": "running_var", "kernel": "weight"}
    there = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    given: dict[str, np.ndarray] = {}

    def collect(tree: Any, path: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                collect(value, (*path, name))
                continue
            plain = ".".join((*path, name))
            given[plain if plain in there or name not in names else ".".join((*path, names[name]))] = np.asarray(value)

    collect(params, ())
    collect(stats, ())
    counters = {name for name in there if name.endswith("num_batches_tracked")}
    if different := set(given) ^ (set(there) - counters):
        raise ValueError(f"these are on one side only: {', '.join(sorted(different))}")
    for name, value in given.items():
        target = there[name]
        if not name.endswith(".kernel") and value.ndim > 1:
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        # A 1×1 convolution in channels-last layout is a matrix.
        target.copy_(torch.tensor(value).reshape(target.shape))


def _chain(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x
