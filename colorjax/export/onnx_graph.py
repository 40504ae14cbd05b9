"""A colorizer as an ONNX graph: the six networks written operator by operator, for any batch and any size.

Maps are channels-first inside, as ONNX has them; inputs and outputs are channels-last, as everywhere else here. A layer
that this module does not know is an error, and so is a parameter that no operator uses: a graph that lacks a part of
the model is never written.
"""

import json
from typing import Any

import numpy as np
import onnx
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from colorjax import color
from colorjax.model.attention import PatchwiseAttentionBlock, PatchwiseSelfAttention, SelfAttention, SpectralLinear
from colorjax.model.colorizer import Colorizer
from colorjax.model.networks import Classification, Colorization, ConvBlock, Fusion, GlobalFeatures, MaxPool
from colorjax.run.trained import Trained

_OPSET = 18
_IR_VERSION = 8  # the file format that came with this opset, so that a runtime of its time reads it
_TO_THE_END = np.iinfo(np.int64).max


def build(trained: Trained, *, least_temperature: float) -> onnx.ModelProto:
    """The graph, checked, with the weights inside as float32.

    Inputs:
        l: float32 [B, H, W, 1], 0…100; H and W multiples of 8.
        global_l: float32 [B, S, S, 1]: the same photos at the size S that the model was trained on, or those whose
            style is wanted.
        temperature: float32 [], of the annealed mean; a regression ignores it.
    Outputs:
        ab: float32 [B, H/stride, W/stride, 2].
        class_logits: float32 [B, classes].
    The model's metadata holds `image_size`, which is S, and `class_names`, a list in JSON.

    Args:
        trained: the colorizer.
        least_temperature: lower temperatures are raised to it.

    Raises:
        NotImplementedError: if the model has a part that this module cannot write.
    """
    graph = _Graph(trained, least_temperature)
    size = trained.config.data.image_size
    graph.colorizer("l", "global_l", "temperature")
    if unused := sorted(name for leaf, name in graph.names.items() if leaf not in graph.taken):
        raise NotImplementedError(f"these parameters have no place in the ONNX graph: {unused}")

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "colorizer",
            [
                value("l", "batch", "height", "width", 1),
                value("global_l", "batch", size, size, 1),
                value("temperature"),
            ],
            [
                value("ab", "batch", "ab_height", "ab_width", 2),
                value("class_logits", "batch", len(trained.class_names)),
            ],
            list(graph.weights.values()) + list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="colorjax",
    )
    helper.set_model_props(model, {"image_size": str(size), "class_names": json.dumps(trained.class_names)})
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """The graph as it grows: methods take and return the names of tensors."""

    def __init__(self, trained: Trained, least_temperature: float):
        model: Any = trained.program().merged(trained.params, trained.stats)
        model.eval()
        self.model: Colorizer = model
        self.least_temperature = least_temperature
        self.decoder = trained.decoder()
        self.names = {
            id(leaf): ".".join(str(part) for part in path)
            for path, leaf in nnx.iter_graph(self.model)
            if isinstance(leaf, nnx.Variable)
        }
        self.taken: set[int] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.constants: dict[Any, onnx.TensorProto] = {}

    def add(self, op: str, *inputs: str, outputs: int | str = 1, **attributes: Any) -> Any:
        """Appends an operator; the name of its output, or a list of as many as `outputs` asks for."""
        base = f"{op}_{len(self.nodes)}"
        named = [outputs] if isinstance(outputs, str) else [f"{base}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, named, name=base, **attributes))
        return named[0] if len(named) == 1 else named

    def weight(self, variable: Any, array: np.ndarray | None = None, *, part: str = "") -> str:
        """A parameter, or an array computed from it, under the parameter's name."""
        self.taken.add(id(variable))
        name = self.names[id(variable)] + part
        if name not in self.weights:
            array = np.asarray(variable[...]) if array is None else array
            self.weights[name] = numpy_helper.from_array(np.array(array, np.float32, order="C"), name)
        return name

    def floats(self, *values: float, shape: tuple[int, ...] = ()) -> str:
        return self._constant(np.asarray(values, np.float32).reshape(shape))

    def ints(self, *values: int) -> str:
        return self._constant(np.asarray(values, np.int64))

    def _constant(self, array: np.ndarray) -> str:
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        return self.constants[key].name

    # The six networks.

    def colorizer(self, l: str, global_l: str, temperature: str) -> None:
        model = self.model
        low = self.low_level(l)
        for_class, vector = self.global_features(model.global_features, self.low_level(global_l))
        x = self.chain(model.mid_level.layers, low)
        if model.fusion is not None:
            x = self.fusion(model.fusion, x, vector)
        else:
            self.unread(model.global_features.dense3, model.global_features.norm3)
        x = self.add("Transpose", self.colorization(model.colorization, x), perm=(0, 2, 3, 1))
        if model.regression:
            x = self.add("Sub", self.add("Sigmoid", x), self.floats(0.5))
            self.add("Mul", x, self.floats(256.0 * self.decoder.saturation), outputs="ab")
        else:
            if self.decoder.adjustment.any():
                x = self.add("Add", x, self.floats(*self.decoder.adjustment, shape=(color.NUM_BINS,)))
            divisor = self.add("Max", temperature, self.floats(self.least_temperature))
            shares = self.add("Softmax", self.add("Div", x, divisor), axis=-1)
            bins = self.decoder.saturation * color.ab_bins()
            self.add("MatMul", shares, self.floats(*bins.ravel(), shape=bins.shape), outputs="ab")
        self.classification(model.classification, for_class)

    def low_level(self, l: str) -> str:
        x = self.add("Sub", self.add("Div", l, self.floats(50.0)), self.floats(1.0))
        return self.chain(self.model.low_level.layers, self.add("Transpose", x, perm=(0, 3, 1, 2)))

    def global_features(self, module: GlobalFeatures, x: str) -> tuple[str, str]:
        x = self.add("Transpose", self.chain(module.convs, x), perm=(0, 2, 3, 1))
        x = self.add("Flatten", x, axis=1)
        x = self.relu(self.norm(module.norm1, self.dense(module.dense1, x), rank=2))
        x = self.relu(self.norm(module.norm2, self.dense(module.dense2, x), rank=2))
        return x, self.relu(self.norm(module.norm3, self.dense(module.dense3, x), rank=2))

    def fusion(self, module: Fusion, local: str, vector: str) -> str:
        vector = self.add("Unsqueeze", self.dense(module.vector, vector), self.ints(2, 3))
        x = self.add("Add", self.pointwise(module.local, local), vector)
        return self.relu(self.norm(module.norm, x))

    def colorization(self, module: Colorization, x: str) -> str:
        x = self.upsample(self.conv_block(module.eighth, x))
        x = self.chain(module.quarter, x)
        x = self.conv_block(module.last, self.upsample(x) if module.upsample_last else x)
        if module.attention is not None:
            x = self.self_attention(module.attention, x)
        return self.conv(module.output, x)

    def classification(self, module: Classification, x: str) -> None:
        x = self.relu(self.norm(module.norm, self.dense(module.dense, x), rank=2))
        self.dense(module.output, x, outputs="class_logits")

    # Their layers.

    def chain(self, layers: Any, x: str) -> str:
        known = {
            ConvBlock: self.conv_block,
            PatchwiseAttentionBlock: self.patchwise_block,
            MaxPool: lambda _, x: self.add("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2)),
        }
        for layer in layers:
            if type(layer) not in known:
                raise NotImplementedError(f"no ONNX operators are known for {type(layer).__name__}")
            x = known[type(layer)](layer, x)
        return x

    def conv_block(self, module: ConvBlock, x: str) -> str:
        return self.relu(self.norm(module.norm, self.conv(module.conv, x)))

    def conv(self, module: nnx.Conv, x: str) -> str:
        if module.padding != 1 or module.kernel_size != (3, 3) or module.feature_group_count != 1:
            raise NotImplementedError("a convolution that is not 3×3 with padding 1")
        kernel = self.weight(module.kernel, np.asarray(module.kernel[...]).transpose(3, 2, 0, 1))
        bias = [] if module.bias is None else [self.weight(module.bias)]
        strides = (module.strides,) * 2 if isinstance(module.strides, int) else module.strides
        return self.add("Conv", x, kernel, *bias, kernel_shape=(3, 3), pads=(1,) * 4, strides=strides)

    def pointwise(self, module: nnx.Linear | SpectralLinear, x: str) -> str:
        """A linear map of a map's channels."""
        kernel = self.weight(module.kernel, self.kernel(module).T[:, :, None, None])
        bias = getattr(module, "bias", None)
        return self.add("Conv", x, kernel, *([] if bias is None else [self.weight(bias)]), kernel_shape=(1, 1))

    def dense(self, module: nnx.Linear, x: str, *, outputs: int | str = 1) -> str:
        """A linear map of a vector."""
        bias = [] if module.bias is None else [self.weight(module.bias)]
        return self.add("Gemm", x, self.weight(module.kernel), *bias, outputs=outputs)

    def kernel(self, module: nnx.Linear | SpectralLinear) -> np.ndarray:
        kernel = np.asarray(module.kernel[...], np.float64)
        if isinstance(module, SpectralLinear):
            self.taken.add(id(module.u))  # the norm is a constant once training is over
            v = kernel @ np.asarray(module.u[...], np.float64)
            v /= np.linalg.norm(v) + 1e-12
            u = v @ kernel
            kernel /= v @ kernel @ (u / (np.linalg.norm(u) + 1e-12))
        return kernel

    def norm(self, module: Any, x: str, *, rank: int = 4) -> str:
        if isinstance(module, nnx.BatchNorm):
            inputs: Any = (module.scale, module.bias, module.mean, module.var)
            return self.add("BatchNormalization", x, *map(self.weight, inputs), epsilon=module.epsilon)
        if not isinstance(module, nnx.GroupNorm):
            raise NotImplementedError(f"no ONNX operators are known for {type(module).__name__}")
        groups, ones = module.num_groups, (-1,) + (1,) * (rank - 2)
        grouped = self.add("Reshape", x, self.ints(0, groups, -1))
        unit, zero = self.floats(*[1.0] * groups, shape=(groups,)), self.floats(*[0.0] * groups, shape=(groups,))
        grouped = self.add("InstanceNormalization", grouped, unit, zero, epsilon=module.epsilon)
        x = self.add("Reshape", grouped, self.add("Shape", x))
        parameters: Any = (module.scale, module.bias)
        scale, bias = (self.weight(p, np.asarray(p[...]).reshape(ones)) for p in parameters)
        return self.add("Add", self.add("Mul", x, scale), bias)

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def upsample(self, x: str) -> str:
        scales = self.floats(1, 1, 2, 2, shape=(4,))
        rule = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.add("Resize", x, "", scales, mode="nearest", **rule)

    def unread(self, *modules: nnx.Module) -> None:
        """Marks parameters that this model has and does not use."""
        for module in modules:
            for _, leaf in nnx.iter_graph(module):
                self.taken.add(id(leaf))

    # The attentions.

    def patchwise_block(self, module: PatchwiseAttentionBlock, x: str) -> str:
        out = self.patchwise(module.attention, self.relu(self.norm(module.norm_in, x)))
        return self.add("Add", x, self.pointwise(module.expand, self.relu(self.norm(module.norm_out, out))))

    def patchwise(self, module: PatchwiseSelfAttention, x: str) -> str:
        size = module.kernel_size
        phi, psi = self.pointwise(module.phi, x), self.pointwise(module.psi, x)
        if module.normalized_before:
            phi, psi = self.relu(self.norm(module.phi_norm, phi)), self.relu(self.norm(module.psi_norm, psi))
        padded = self.reflect(psi, size)
        if module.normalized_before:
            # γ's first map, of φ and of the patch of ψ, as a 1×1 and a k×k convolution.
            kernel, features = np.asarray(module.gamma_in.kernel[...]), module.phi.out_features
            near = kernel[:features].T[:, :, None, None]
            patch = kernel[features:].reshape(size, size, features, -1).transpose(3, 2, 0, 1)
            near = self.weight(module.gamma_in.kernel, near, part=".near")
            patch = self.weight(module.gamma_in.kernel, patch, part=".patch")
            hidden = self.add(
                "Add",
                self.add("Conv", phi, near, kernel_shape=(1, 1)),
                self.add("Conv", padded, patch, kernel_shape=(size, size)),
            )
        else:
            around = [self.shifted(padded, offset, size, axes=(2, 3)) for offset in range(size * size)]
            joined = self.add("Concat", phi, *around, axis=1)
            hidden = self.pointwise(module.gamma_in, self.relu(self.norm(module.relation_norm, joined)))
        hidden = self.relu(self.norm(module.gamma_norm, hidden))
        weights = self.pointwise(module.gamma_out, hidden)
        return self.patch_sum(self.pointwise(module.beta, x), weights, module)

    def patch_sum(self, values: str, weights: str, module: PatchwiseSelfAttention) -> str:
        """ops.patch_sum: channel c of the values takes weight channel c mod G."""
        size, channels = module.kernel_size, module.beta.out_features
        groups = module.gamma_in.out_features
        padded = self.reflect(values, size)
        spatial = self.add("Shape", padded, start=2)
        shape = self.add("Concat", self.ints(0, channels // groups, groups), spatial, axis=0)
        padded = self.add("Reshape", padded, shape)
        weights = self.add("Unsqueeze", weights, self.ints(1))
        each = (
            [weights] if size == 1 else self.add("Split", weights, outputs=size * size, axis=2, num_outputs=size * size)
        )
        total = ""
        for offset, weight in enumerate(each):
            product = self.add("Mul", weight, self.shifted(padded, offset, size, axes=(3, 4)))
            total = self.add("Add", total, product) if total else product
        return self.add("Reshape", total, self.add("Shape", values))

    def reflect(self, x: str, size: int) -> str:
        reach = size // 2
        return self.add("Pad", x, self.ints(0, 0, reach, reach, 0, 0, reach, reach), mode="reflect")

    def shifted(self, padded: str, offset: int, size: int, *, axes: tuple[int, int]) -> str:
        """The part of a padded map that lies under one offset of the patch; offsets run row by row."""
        starts = divmod(offset, size)
        # From the end, so that the map's own size is never needed.
        ends = [start + 1 - size or _TO_THE_END for start in starts]
        return self.add("Slice", padded, self.ints(*starts), self.ints(*ends), self.ints(*axes))

    def self_attention(self, module: SelfAttention, x: str) -> str:
        query, key, value = (self.pointwise(m, x) for m in (module.query, module.key, module.value))
        if module.pooled:
            key, value = (self.add("MaxPool", y, kernel_shape=(2, 2), strides=(2, 2)) for y in (key, value))
        keys = self.add("Reshape", key, self.ints(0, 0, -1))
        values = self.add("Transpose", self.add("Reshape", value, self.ints(0, 0, -1)), perm=(0, 2, 1))
        # Row by row of the photo, [H, B, W, D], so that only a row's scores are in memory at once.
        rows = self.add("Transpose", query, perm=(2, 0, 3, 1))
        body = helper.make_graph(
            [
                helper.make_node("MatMul", ["row", keys], ["scores"]),
                helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
                helper.make_node("MatMul", ["shares", values], ["attended"]),
            ],
            "attention_of_a_row",
            [helper.make_tensor_value_info("row", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info("attended", TensorProto.FLOAT, None)],
        )
        attended = self.add("Scan", rows, body=body, num_scan_inputs=1)
        attended = self.add("Transpose", attended, perm=(1, 3, 0, 2))
        return self.add("Add", x, self.add("Mul", self.pointwise(module.output, attended), self.weight(module.gate)))
