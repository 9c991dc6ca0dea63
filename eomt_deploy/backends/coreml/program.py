"""An exported ONNX graph as a program in MIL, the language of Core ML.

Each operator becomes one MIL operation of the same meaning, with two differences: a product with a
constant matrix becomes ``linear``, so that its weights can be stored smaller, and the input is an
image, as Core ML's Vision framework delivers it, not a uint8 tensor. The types stay as they are in
the graph: the precision was chosen, and checked, at the export.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import numpy.typing as npt
import onnx
from coremltools.converters import mil
from coremltools.converters.mil.mil import types
from onnx import numpy_helper

from eomt_deploy.backends.coreml.config import PALETTE_BITS
from eomt_deploy.backends.coreml.weights import palettized, quantized
from eomt_deploy.contract import INPUT, OUTPUTS
from eomt_deploy.errors import UsageError
from eomt_deploy.external_data import load_with_weights
from eomt_deploy.spec import ModelSpec

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
mb = mil.Builder
TARGET = ct.target.iOS18
"""The first version with several palettes per matrix. It is also macOS 15."""
TO_LAST = (0, 2, 3, 1)
"""Permutation from [B, C, H, W] to [B, H, W, C]."""
FLOATS = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}


def make_program(path: Path, spec: ModelSpec, weights: str) -> Any:
    """The program of an ``.onnx`` file, for one image.

    Args:
        path: file that `eomt-deploy export` wrote.
        spec: its description.
        weights: one of :data:`~eomt_deploy.backends.coreml.config.WEIGHTS`.

    Returns:
        a ``coremltools.converters.mil.Program``. Its input ``images`` is FP32 [1, 3, H, W], RGB,
        0-255; its outputs are those of the graph.

    Raises:
        ModelFileError: the file cannot be read.
        UsageError: the graph has an operator that has no translation here.
    """
    graph = load_with_weights(path).graph
    shape = (1, 3, *spec.image_size)

    @mb.program(  # type: ignore[untyped-decorator]
        input_specs=[mb.TensorSpec(shape, dtype=types.fp32)], opset_version=TARGET
    )
    def program(images: Any) -> tuple[Any, ...]:
        return _Translation(graph, images, weights, path.name).outputs()

    inputs = program.functions["main"].inputs
    assert list(inputs) == [INPUT]  # the parameter above has this name
    return program


class _Translation:
    """The values of a graph by name: arrays if they are constant, otherwise MIL variables."""

    def __init__(self, graph: onnx.GraphProto, images: Any, weights: str, name: str) -> None:
        self._graph, self._weights, self._file = graph, weights, name
        self._values: dict[str, Any] = {
            entry.name: numpy_helper.to_array(entry) for entry in graph.initializer
        }
        self._images = images
        self._values[INPUT] = mb.transpose(x=images, perm=TO_LAST)
        self._matrices: dict[str, Any] = {}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for used in node.input:
                self._users.setdefault(used, []).append(node)

    def outputs(self) -> tuple[Any, ...]:
        """Translate all nodes.

        Raises:
            UsageError: an operator has no translation.
        """
        for node in self._graph.node:
            if node.output[0] in self._values:  # translated with an earlier node
                continue
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            found = self._translate(node, attributes)
            results = found if isinstance(found, list | tuple) else [found]
            self._values |= dict(zip(node.output, results, strict=True))
        return tuple(self._values[name] for name in OUTPUTS)

    def _translate(self, node: onnx.NodeProto, attributes: Attributes) -> Any:
        values = [self._values[name] for name in node.input]
        constant = all(isinstance(value, np.ndarray) for value in values)
        if node.op_type == "Shape" or (constant and node.op_type in FOLDED):
            shape = [value.shape for value in values]
            return FOLDED[node.op_type](shape if node.op_type == "Shape" else values, attributes)
        name = re.sub(r"\W", "_", node.output[0])
        if node.op_type == "MatMul" and isinstance(values[1], np.ndarray) and values[1].ndim == 2:
            return self._linear(node, values[0])
        if node.op_type == "Cast" and node.input[0] == INPUT:
            # The transpose comes last, so that MIL removes it with the opposite one that follows.
            cast = OPERATORS["Cast"]([self._images], attributes, name)
            return mb.transpose(x=cast, perm=TO_LAST)
        if node.op_type not in OPERATORS:
            raise UsageError(
                f"{self._file} has the operator {node.op_type}, which cannot be built for Core ML.",
                fix="Export the checkpoint again without --attention fused."
                if node.op_type == "Attention"
                else "Export the checkpoint again with --precision fp32 or fp16.",
            )
        return OPERATORS[node.op_type](values, attributes, name)

    def _linear(self, node: onnx.NodeProto, x: Any) -> Any:
        """A product with a constant matrix, together with the bias that is added to it."""
        product = node.output[0]
        users = self._users.get(product, [])
        bias = {}
        if len(users) == 1 and users[0].op_type == "Add":
            other = self._values.get(next(n for n in users[0].input if n != product))
            if isinstance(other, np.ndarray) and other.ndim == 1:
                bias, product = {"bias": other}, users[0].output[0]
        weight = self._matrix(node.input[1])
        name = re.sub(r"\W", "_", product)
        self._values[product] = mb.linear(x=x, weight=weight, **bias, name=name)
        return self._values[product]

    def _matrix(self, name: str) -> Any:
        """The constant matrix [D_in, D_out] of a product, as weights [D_out, D_in]."""
        if name not in self._matrices:
            weight = np.ascontiguousarray(self._values[name].T)
            self._matrices[name] = _stored(weight, self._weights, re.sub(r"\W", "_", name))
        return self._matrices[name]


def _stored(weight: Array, weights: str, name: str) -> Any:
    """Weights as they are stored: an array, or an operation that Core ML computes at load time."""
    if weights == "int8":
        data, scale = quantized(weight)
        return mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=name)
    if weights in PALETTE_BITS:
        bits = PALETTE_BITS[weights]
        indices, palettes = palettized(weight, bits)
        kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
        return mb.constexpr_lut_to_dense(indices=indices.astype(kind), lut=palettes, name=name)
    return weight


def _concat(values: Sequence[Any], attributes: Attributes, name: str) -> Any:
    listed = [mb.const(val=v) if isinstance(v, np.ndarray) else v for v in values]
    return mb.concat(values=listed, axis=attributes["axis"], name=name)


def _conv(operation: Any, values: Sequence[Any], attributes: Attributes, name: str) -> Any:
    """``mb.conv`` or ``mb.conv_transpose``."""
    bias = {"bias": values[2]} if len(values) > 2 else {}
    return operation(
        x=values[0], weight=values[1], **bias, strides=attributes["strides"], pad_type="custom",
        pad=_pads(attributes), dilations=attributes["dilations"], groups=attributes["group"],
        name=name,
    )  # fmt: skip


def _pads(attributes: Attributes) -> list[int]:
    """ONNX lists the pads of all starts, then of all ends; MIL lists both of each axis."""
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return [top, bottom, left, right]


def _gelu(values: Sequence[Any], attributes: Attributes, name: str) -> Any:
    exact = attributes.get("approximate", b"none") == b"none"
    return mb.gelu(x=values[0], mode="EXACT" if exact else "TANH_APPROXIMATION", name=name)


def _layer_norm(values: Sequence[Any], attributes: Attributes, name: str) -> Any:
    x, gamma, beta = values
    # MIL compares the type of epsilon with that of the weights.
    epsilon = gamma.dtype.type(attributes["epsilon"])
    return mb.layer_norm(x=x, axes=[-1], gamma=gamma, beta=beta, epsilon=epsilon, name=name)


def _reshape(values: Sequence[Any], _: Attributes, name: str) -> Any:
    # Our exports set `allowzero`, so that only -1 has a special meaning, as in MIL.
    return mb.reshape(x=values[0], shape=values[1].astype(np.int32), name=name)


def _slice(values: Sequence[Any], _: Attributes, name: str) -> Any:
    x, starts, ends = values[:3]
    axes = values[3] if len(values) > 3 else np.arange(len(starts))
    steps = values[4] if len(values) > 4 else np.ones(len(starts), np.int64)
    begin, end, stride = [0] * x.rank, list(x.shape), [1] * x.rank
    for axis, first, last, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise UsageError(
                "The graph has a Slice that goes backwards, which cannot be built for Core ML.",
                fix="Export the checkpoint again with this version.",
            )
        begin[axis], end[axis], stride[axis] = slice(first, last, step).indices(x.shape[axis])
    return mb.slice_by_index(x=x, begin=begin, end=end, stride=stride, name=name)


def _split(values: Sequence[Any], attributes: Attributes, name: str) -> Any:
    axis = attributes.get("axis", 0)
    if len(values) > 1:
        return mb.split(x=values[0], split_sizes=values[1].astype(np.int32), axis=axis, name=name)
    count, size = attributes["num_outputs"], values[0].shape[axis]
    each = -(-size // count)  # the last one is smaller if they are not equal
    sizes = [each] * (count - 1) + [size - each * (count - 1)]
    return mb.split(x=values[0], split_sizes=sizes, axis=axis, name=name)


def _elementwise(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda values, _, name: operation(x=values[0], y=values[1], name=name)


OPERATORS: Mapping[str, Callable[[Sequence[Any], Attributes, str], Any]] = {
    "Add": _elementwise(mb.add),
    "Cast": lambda v, a, name: mb.cast(x=v[0], dtype=FLOATS[a["to"]], name=name),
    "Concat": _concat,
    "Conv": partial(_conv, mb.conv),
    "ConvTranspose": partial(_conv, mb.conv_transpose),
    "Div": _elementwise(mb.real_div),
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
    "MatMul": _elementwise(mb.matmul),
    "Mul": _elementwise(mb.mul),
    "Reshape": _reshape,
    "Sigmoid": lambda v, _, name: mb.sigmoid(x=v[0], name=name),
    "Slice": _slice,
    "Softmax": lambda v, a, name: mb.softmax(x=v[0], axis=a.get("axis", -1), name=name),
    "Split": _split,
    "Sub": _elementwise(mb.sub),
    "Transpose": lambda v, a, name: mb.transpose(x=v[0], perm=a["perm"], name=name),
}
"""The operators of exported FP32 and FP16 models: (inputs, attributes, name) -> outputs."""
FOLDED: Mapping[str, Callable[[Sequence[Any], Attributes], Any]] = {
    "Concat": lambda v, a: np.concatenate(v, a["axis"]),
    "Expand": lambda v, _: v[0] * np.ones(v[1], v[0].dtype),
    "Shape": lambda v, a: np.array(v[0][a.get("start", 0) : a.get("end")], np.int64),
}
"""The operators whose inputs are constant because the batch size is fixed. The input of ``Shape``
is a shape."""
