"""Quantisation to INT8 or FP8 with explicit Q/DQ nodes: choice of layers, and their scales.

Only the linear layers of the blocks are quantised. Patch embedding, heads and upscaling are small
or sensitive, and backends fuse attention only without Q/DQ nodes inside. Weights have one scale per
output channel (FP8: one in total), inputs one scale per tensor. Outputs stay float, so that bias,
GELU and residual fuse into the matrix product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import onnx_ir as ir
import torch

from eomt_deploy.exporting.calibration import (
    LARGEST_SCALE,
    NUMBERS,
    Activations,
    Array,
    Number,
    activation_range,
    linear_layers,
    smoothing_scales,
)
from eomt_deploy.exporting.config import Method
from eomt_deploy.exporting.lowering import add_constant
from eomt_deploy.exporting.roles import module_of
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.network.folds import smoothable

TOKENS_TRIED = 512
CLIPS_TRIED = np.geomspace(1, 0.02, 24)
"""Ranges that the search for the smallest output error may try, as fractions of the largest
input."""
COARSE = 4
"""The search first tries every fourth range, then those around the best one."""
MIN_SCALE = float(np.finfo(np.float16).smallest_subnormal) * 8
"""Minimum scale. Scales are FP16, as the graph around them; smaller ones are too coarse."""


@dataclass(frozen=True)
class Adjustment:
    """Change of a layer's inputs before quantisation: ``(x - center) * factor``.

    Both are [D] and exact in FP16. Weights and bias compensate for it, so that only the rounding
    changes.
    """

    center: Array
    factor: Array


@dataclass(frozen=True)
class QuantizedLayer:
    """One linear layer: ``y = (q(x) * input_scale) @ (weight * weight_scale) + bias``.

    Attributes:
        input_scale: scale of the input.
        weight: quantised weight, in the type of the format, [in, out].
        weight_scale: [out], or [] for a single scale.
        bias: [out], corrected for the mean error of quantisation.
        adjustment: change of the input before quantisation, if any.
    """

    input_scale: np.float32
    weight: np.ndarray
    weight_scale: Array
    bias: Array
    adjustment: Adjustment | None = None


def _adjust(activations: Activations, weight: Array, strength: float) -> Adjustment:
    """Centred inputs and SmoothQuant for a layer that follows GELU.

    GELU never returns less than -0.17, so almost half of a symmetric range would be unused. Scales
    cannot be folded into the layer before GELU. Subtraction and product fuse with GELU.

    Args:
        activations: inputs of the layer.
        weight: [in, out].
        strength: SmoothQuant strength, 0 (off) to 1.
    """
    center = _half(0.5 * activations.lowest + 0.5 * activations.highest)
    if not strength:
        return Adjustment(center, np.ones_like(center))
    scales = smoothing_scales(activations.centred(center), weight.T, strength)
    scales[~weight.any(1)] = LARGEST_SCALE  # unused inputs must not enlarge the range
    return Adjustment(center, _half(_inverse(scales)))


def _inverse(values: Array) -> Array:
    inverse: Array = np.float32(1) / values
    return inverse


def _half(values: Array) -> Array:
    """``values`` rounded to normal FP16 numbers; only exact zeros become zero."""
    largest, minimum = np.finfo(np.float16).max, np.finfo(np.float16).smallest_normal
    kept = np.where(values == 0, 0, np.sign(values) * np.clip(np.abs(values), minimum, largest))
    rounded: Array = kept.astype(np.float16).astype(np.float32)
    return rounded


def quantize_layers(
    model: EoMT,
    activations: Mapping[str, Activations],
    precision: str,
    method: Method,
    *,
    smooth: float = 0,
    correct_bias: bool = True,
) -> dict[str, QuantizedLayer]:
    """Scales, weights and biases of each linear layer of the blocks, by module name.

    Args:
        model: folded network.
        activations: inputs of each layer, from :func:`observe`.
        precision: ``int8`` or ``fp8``.
        method: calibration method.
        smooth: SmoothQuant strength for layers that follow GELU; the others are already smoothed
            in the network.
        correct_bias: correct the bias for the mean error of quantisation.
    """
    number = NUMBERS[precision]
    movable = smoothable(model)
    layers = {}
    for name, layer in linear_layers(model).items():
        weight, bias, inputs = layer.weight.numpy().T, layer.bias.numpy(), activations[name]
        adjustment = None
        # FP8 does not need it: its resolution is highest near 0, where most outputs of GELU are.
        if name not in movable and precision == "int8":
            adjustment = _adjust(inputs, weight, smooth)
            bias = bias + adjustment.center @ weight
            weight = weight / adjustment.factor[:, None]
            inputs = inputs.centred(adjustment.center).divided(_inverse(adjustment.factor))
        made = _quantized(weight, bias, inputs, number, method, correct_bias)
        layers[name] = replace(made, adjustment=adjustment)
    return layers


def _quantized(
    weight: Array,
    bias: Array,
    activations: Activations,
    number: Number,
    method: Method,
    correct_bias: bool,
) -> QuantizedLayer:
    per_channel = number.dtype == np.int8
    largest = np.abs(weight).max(0) if per_channel else np.abs(weight).max()
    weight_scale = _scale(largest, number)
    stored = number.rounded(weight / weight_scale)
    if method == "output":
        largest_input = _smallest_output_error(activations, weight, stored * weight_scale, number)
    else:
        largest_input = activation_range(activations, method, number)
    input_scale = _scale(np.float32(largest_input), number)
    if correct_bias:
        x = activations.samples
        seen = number.rounded(x / input_scale) * input_scale
        error = torch.from_numpy(seen) @ torch.from_numpy(stored * weight_scale)
        error -= torch.from_numpy(x) @ torch.from_numpy(np.ascontiguousarray(weight))
        bias = bias - error.mean(0).numpy()
    return QuantizedLayer(np.float32(input_scale), stored.astype(number.dtype), weight_scale, bias)


def _smallest_output_error(
    activations: Activations, weight: Array, restored: Array, number: Number
) -> float:
    """The range of the inputs with the smallest error of the layer's outputs.

    The mean error is ignored, because the bias is corrected for it. A few tokens of a Vision
    Transformer have extremely large values. Whether it is better to clip or to keep them depends on
    the weights, so the error is measured after the layer.
    """
    full_range = float(activations.largest.max())
    samples: Array = activations.samples[:: -(-len(activations.samples) // TOKENS_TRIED)]
    wanted = torch.from_numpy(samples) @ torch.from_numpy(np.ascontiguousarray(weight))
    weights = torch.from_numpy(restored)

    @cache
    def error(index: int) -> float:
        scale = _scale(np.float32(CLIPS_TRIED[index] * full_range), number)
        seen = torch.from_numpy(number.rounded(samples / scale) * scale)
        return float((seen @ weights - wanted).var(0, correction=0).sum())

    last = len(CLIPS_TRIED) - 1
    coarse = min((*range(0, last, COARSE), last), key=error)
    near = range(max(0, coarse - COARSE + 1), min(last, coarse + COARSE - 1) + 1)
    return float(CLIPS_TRIED[min(near, key=error)] * full_range)


def _scale(largest: Array | np.float32, number: Number) -> Array:
    """Scale for the magnitude ``largest``, rounded up to FP16, so that it is not clipped."""
    wanted = np.maximum(np.asarray(largest, np.float32) / number.largest, MIN_SCALE)
    half = wanted.astype(np.float16)
    half = np.where(half.astype(np.float32) < wanted, np.nextafter(half, np.float16(np.inf)), half)
    scale: Array = half.astype(np.float32)
    return scale


def insert_qdq(
    model: ir.Model, layers: Mapping[str, QuantizedLayer], chosen: Iterable[str]
) -> ir.Model:
    """A copy of an annotated FP32 graph in which the chosen layers are quantised."""
    model = model.clone()
    graph = model.graph
    wanted = set(chosen)
    for node in list(graph):
        name = module_of(node)
        if name not in wanted:
            continue
        layer = layers[name]
        if node.op_type == "MatMul":
            _quantize_matmul(graph, node, name, layer)
        elif node.op_type == "Add":
            for index, value in enumerate(node.inputs):
                if value is not None and value.is_initializer():
                    node.replace_input_with(
                        index, add_constant(graph, f"{name}.bias.corrected", layer.bias)
                    )
    return model


def _quantize_matmul(graph: ir.Graph, node: ir.Node, name: str, layer: QuantizedLayer) -> None:
    x, weight = node.inputs
    assert x is not None  # MatMul has both
    assert weight is not None
    if layer.adjustment:
        x = _adjusted(graph, node, x, name, layer.adjustment)
    scale = add_constant(graph, f"{name}.input_scale", np.asarray(layer.input_scale))
    zero = add_constant(graph, f"{name}.input_zero", np.zeros((), layer.weight.dtype))
    quantize = _node(node, "QuantizeLinear", [x, scale, zero], f"{name}.input", zero.dtype)
    restore = _node(
        node, "DequantizeLinear", [quantize.outputs[0], scale, zero], f"{name}.input", x.dtype
    )
    stored = add_constant(graph, f"{name}.weight.quantized", layer.weight)
    weight_scale = add_constant(graph, f"{name}.weight_scale", layer.weight_scale)
    weight_zero = add_constant(
        graph, f"{name}.weight_zero", np.zeros(layer.weight_scale.shape, layer.weight.dtype)
    )
    attributes = {"axis": 1} if layer.weight_scale.ndim else {}
    weights = _node(
        node,
        "DequantizeLinear",
        [stored, weight_scale, weight_zero],
        f"{name}.weight",
        weight.dtype,
        attributes,
    )
    for new, shape in ((quantize, x.shape), (restore, x.shape), (weights, weight.shape)):
        new.outputs[0].shape = shape
    graph.insert_before(node, [quantize, restore, weights])
    node.replace_input_with(0, restore.outputs[0])
    node.replace_input_with(1, weights.outputs[0])


def _adjusted(
    graph: ir.Graph, owner: ir.Node, x: ir.Value, name: str, adjustment: Adjustment
) -> ir.Value:
    steps = {"Sub": (f"{name}.input_center", adjustment.center)}
    if (adjustment.factor != 1).any():
        steps["Mul"] = (f"{name}.input_factor", adjustment.factor)
    for operator, (constant, values) in steps.items():
        inputs = [x, add_constant(graph, constant, values)]
        node = _node(owner, operator, inputs, f"{name}.input", x.dtype)
        node.outputs[0].shape = x.shape
        graph.insert_before(owner, node)
        x = node.outputs[0]
    return x


def _node(
    owner: ir.Node,
    operator: str,
    inputs: list[ir.Value],
    stem: str,
    dtype: ir.DataType | None,
    attributes: Mapping[str, int] | None = None,
) -> ir.Node:
    assert dtype is not None  # every tensor of a traced graph has its type
    node = ir.node(operator, inputs, attributes or {}, name=f"{stem}/{operator}")
    node.metadata_props.update(owner.metadata_props)
    node.outputs[0].name = f"{stem}/{operator}"
    node.outputs[0].type = ir.TensorType(dtype)
    return node
