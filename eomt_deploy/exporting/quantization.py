"""Explicit Q/DQ: which layers run in INT8 or FP8, and with which scales.

Only the linear layers of the blocks are quantised. Patch embedding, heads, upscaling and the
attention products stay high: they are small, sensitive, or (attention) fused by the run-time only
as long as nothing stands between them. Weights have a scale per output channel (FP8: one), inputs
one each. Outputs stay float, so that bias, GELU and residual fuse into the matrix product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from eomt_deploy.exporting.calibration import (
    NUMBERS,
    Activations,
    Array,
    Number,
    activation_range,
    linear_layers,
)
from eomt_deploy.exporting.config import Method
from eomt_deploy.exporting.lowering import add_constant
from eomt_deploy.exporting.roles import module_of
from eomt_deploy.network.eomt import EoMT

TOKENS_TRIED = 512
CLIPS_TRIED = np.geomspace(1, 0.02, 24)
"""Shares of the largest input that the search for the least output error tries."""
LEAST_SCALE = float(np.finfo(np.float16).smallest_subnormal) * 8
"""Scales are FP16 like the graph around them; below this they are too coarse to be one."""


@dataclass(frozen=True)
class QuantizedLayer:
    """One linear layer: ``y = (q(x) * input_scale) @ (weight * weight_scale) + bias``.

    Attributes:
        input_scale: of its input.
        weight: in the format's type, [in, out].
        weight_scale: [out], or [] for one scale.
        bias: [out], corrected for the mean error of weights and inputs.
    """

    input_scale: np.float32
    weight: np.ndarray
    weight_scale: Array
    bias: Array


def quantize_layers(
    model: EoMT,
    activations: Mapping[str, Activations],
    precision: str,
    method: Method,
    *,
    correct_bias: bool = True,
) -> dict[str, QuantizedLayer]:
    """Scales, weights and biases of every linear layer of the blocks, by module name."""
    number = NUMBERS[precision]
    return {
        name: _quantized(
            layer.weight.numpy().T,
            layer.bias.numpy(),
            activations[name],
            number,
            method,
            correct_bias,
        )
        for name, layer in linear_layers(model).items()
    }


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
        largest_input = _least_output_error(activations, weight, stored * weight_scale, number)
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


def _least_output_error(
    activations: Activations, weight: Array, restored: Array, number: Number
) -> float:
    """The clip of the inputs that changes the layer's outputs least, their mean apart (the bias
    takes it).

    A few tokens of a Vision Transformer carry enormous values. Whether clipping them ruins the
    result, and whether keeping them does, only the weights that they meet can tell.
    """
    whole = float(activations.largest.max())
    samples: Array = activations.samples[:: max(1, len(activations.samples) // TOKENS_TRIED)]
    wanted = torch.from_numpy(samples) @ torch.from_numpy(np.ascontiguousarray(weight))
    weights = torch.from_numpy(restored)
    errors = []
    for clip in CLIPS_TRIED:
        scale = _scale(np.float32(clip * whole), number)
        seen = torch.from_numpy(number.rounded(samples / scale) * scale)
        errors.append(float((seen @ weights - wanted).var(0, correction=0).sum()))
    return float(CLIPS_TRIED[int(np.argmin(errors))] * whole)


def _scale(largest: Array | np.float32, number: Number) -> Array:
    """Scale for a magnitude, rounded up to what FP16 holds, so that nothing more is clipped."""
    wanted = np.maximum(np.asarray(largest, np.float32) / number.largest, LEAST_SCALE)
    half = wanted.astype(np.float16)
    half = np.where(half.astype(np.float32) < wanted, np.nextafter(half, np.float16(np.inf)), half)
    scale: Array = half.astype(np.float32)
    return scale


def insert_qdq(
    model: ir.Model, layers: Mapping[str, QuantizedLayer], chosen: Iterable[str]
) -> ir.Model:
    """A copy of an annotated FP32 graph with the chosen layers quantised."""
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
