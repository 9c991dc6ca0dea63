"""An exported ONNX graph as a PyTorch module that ``torch.export`` can trace.

ExecuTorch's XNNPACK runs a subset of PyTorch's operators. Each operator outside the subset ends a
delegate call and copies its inputs and outputs. So the operators are written like this:

- LayerNormalization as two products with a vector (mean and variance) and elementwise operators;
  over the channels of an image between two transposes, as 1x1 convolutions without the transposes.
- Split as slices.
- Expand of a constant as a constant: the batch size is fixed.
- A matrix product of four-dimensional tensors as ``bmm`` on three dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from eomt_deploy.contract import INPUT, OUTPUTS
from eomt_deploy.errors import UsageError
from eomt_deploy.external_data import load_with_weights

Attributes = dict[str, Any]
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
"""Permutations from [B, C, H, W] to [B, H, W, C] and back."""


class OnnxNetwork(nn.Module):
    """The graph of an ``.onnx`` file in FP32 with a fixed batch size.

    Args:
        path: file that `eomt-deploy export` wrote.
        batch: batch size.
        rewrite: write the operators in the form that XNNPACK runs.

    Raises:
        ModelFileError: the file cannot be read.
        UsageError: the graph has an operator without a PyTorch form here.
    """

    def __init__(self, path: Path, batch: int, *, rewrite: bool) -> None:
        super().__init__()
        self.rewrite = rewrite
        graph = load_with_weights(path).graph
        self._constants: dict[str, Tensor] = {}
        for entry in graph.initializer:
            self._constants[entry.name] = torch.from_numpy(numpy_helper.to_array(entry).copy())
        sizes = [d.dim_value or batch for d in graph.input[0].type.tensor_type.shape.dim]
        self.example = torch.zeros(sizes, dtype=torch.uint8)
        self._nodes: list[tuple[onnx.NodeProto, Attributes]] = []
        for node in graph.node:
            if node.op_type not in OPERATORS:
                raise UsageError(
                    f"{path.name} has the operator {node.op_type}, which cannot be built for "
                    "ExecuTorch.",
                    fix="Export the checkpoint again without --attention fused."
                    if node.op_type == "Attention"
                    else "Export the checkpoint again with --precision fp32.",
                )
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if not self._fold(node, attributes):
                self._nodes.append((node, attributes))
        self._uses: dict[str, list[onnx.NodeProto]] = {}
        for node, _ in self._nodes:
            for name in node.input:
                self._uses.setdefault(name, []).append(node)
        self._makers = {node.output[0]: node for node, _ in self._nodes}
        self._add_buffers()

    def _fold(self, node: onnx.NodeProto, attributes: Attributes) -> bool:
        """Compute a node whose inputs are constant; the shape of the images is constant, too."""
        if node.op_type == "Shape" and node.input[0] == INPUT:
            values = [self.example]
        elif all(name in self._constants for name in node.input):
            values = [self._constants[name] for name in node.input]
        else:
            return False
        found = OPERATORS[node.op_type](values, attributes)
        for name, value in zip(node.output, _listed(found), strict=True):
            self._constants[name] = value
        return True

    def _add_buffers(self) -> None:
        """Register the constants that products and sums use. Sizes and axes become Python numbers:
        a traced tensor has no values."""
        self._buffers_of: dict[str, str] = {}
        self._numbers = {
            name: value.tolist()
            for name, value in self._constants.items()
            if not value.is_floating_point()
        }
        for node, _ in self._nodes:
            for name in node.input:
                value = self._constants.get(name)
                if value is not None and value.is_floating_point() and name not in self._buffers_of:
                    self._buffers_of[name] = f"constant_{len(self._buffers_of)}"
                    if self.rewrite and self._is_weight(name):
                        value = value.t().contiguous()
                    self.register_buffer(self._buffers_of[name], value)
        for node, attributes in self._nodes:
            if node.op_type == "LayerNormalization" and self.rewrite:
                self._add_statistics(node, attributes)

    def _is_weight(self, name: str) -> bool:
        """Whether a constant is the matrix of products only: XNNPACK takes it transposed, and as a
        constant, not as a transpose in the graph."""
        users = self._uses[name]
        return self._constants[name].ndim == 2 and all(
            node.op_type == "MatMul" and node.input[1] == name for node in users
        )

    def _add_statistics(self, node: onnx.NodeProto, attributes: Attributes) -> None:
        """Weights [1, D] whose product with D values is their mean, and epsilon as a bias."""
        width = self._constants[node.input[1]].numel()
        if not hasattr(self, f"mean_{width}"):
            mean = torch.full((1, width), 1 / width)
            self.register_buffer(f"mean_{width}", mean)
            self.register_buffer(f"channel_mean_{width}", mean[..., None, None])
        name = _epsilon_name(attributes)
        if not hasattr(self, name):
            self.register_buffer(name, torch.tensor([float(attributes["epsilon"])]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [B, Q, C+1] and mask logits [B, Q, H/4, W/4] of uint8 [B, H, W, 3]."""
        known: dict[str, Any] = {INPUT: images, **self._numbers}
        for name, buffer in self._buffers_of.items():
            known[name] = getattr(self, buffer)
        for node, attributes in self._nodes:
            if node.output[0] in known:  # computed with an earlier node
                continue
            found = self._rewritten(node, attributes, known) if self.rewrite else None
            if found is None:
                values = [known[name] for name in node.input]
                found = dict(
                    zip(node.output, _listed(OPERATORS[node.op_type](values, attributes)),
                        strict=True)
                )  # fmt: skip
            known |= found
        return known[OUTPUTS[0]], known[OUTPUTS[1]]

    def _rewritten(
        self, node: onnx.NodeProto, attributes: Attributes, known: dict[str, Any]
    ) -> dict[str, Any] | None:
        """The outputs of a node in the form that XNNPACK runs; None if it runs as it is."""
        if node.op_type == "MatMul":
            return self._product(node, known)
        if node.op_type == "Transpose" and list(attributes["perm"]) == TO_LAST:
            return self._channel_norm(node, known)
        if node.op_type == "LayerNormalization":
            values = [known[name] for name in node.input]
            return {node.output[0]: self._norm(values, attributes, F.linear)}
        return None

    def _product(self, node: onnx.NodeProto, known: dict[str, Any]) -> dict[str, Any] | None:
        """A product with a constant matrix and the sum with a bias as one linear layer; another
        product as ``bmm`` of three-dimensional tensors."""
        left, right = (known[name] for name in node.input)
        if node.input[1] in self._constants and self._is_weight(node.input[1]):
            users = self._uses.get(node.output[0], [])
            if len(users) == 1 and users[0].op_type == "Add":
                bias = next(name for name in users[0].input if name != node.output[0])
                if bias in self._constants and known[bias].ndim == 1:
                    found = F.linear(left, right, known[bias])
                    return {node.output[0]: found, users[0].output[0]: found}
            return {node.output[0]: F.linear(left, right)}
        if left.ndim == right.ndim >= 3:
            found = torch.bmm(left.flatten(0, -3), right.flatten(0, -3))
            return {node.output[0]: found.reshape(*left.shape[:-1], right.shape[-1])}
        return None

    def _norm(
        self, values: Sequence[Tensor], attributes: Attributes, product: Callable[..., Tensor]
    ) -> Tensor:
        """LayerNormalization of ``values``: x, weight and bias.

        Args:
            product: ``linear`` over the last dimension, or ``conv2d`` over the channels.
        """
        x, weight, bias = values
        mean = getattr(self, f"mean_{weight.numel()}")
        if product is F.conv2d:
            mean = getattr(self, f"channel_mean_{weight.numel()}")
            weight, bias = weight.reshape(1, -1, 1, 1), bias.reshape(1, -1, 1, 1)
        centred = x - product(x, mean)
        variance = product(centred * centred, mean, getattr(self, _epsilon_name(attributes)))
        return centred * variance.rsqrt() * weight + bias

    def _channel_norm(self, node: onnx.NodeProto, known: dict[str, Any]) -> dict[str, Any] | None:
        """Transpose, LayerNormalization over the last dimension and Transpose back, over the
        channels of the first form: the second and third transpose cost more than the rest."""
        chain = [node]
        for operator in ("LayerNormalization", "Transpose"):
            users = self._uses.get(chain[-1].output[0], [])
            if len(users) != 1 or users[0].op_type != operator:
                return None
            chain.append(users[0])
        norm, back = ({a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}
                      for n in chain[1:])  # fmt: skip
        if list(back["perm"]) != TO_FIRST:
            return None
        values = [known[name] for name in (node.input[0], *chain[1].input[1:])]
        found = self._norm(values, norm, F.conv2d)
        return {step.output[0]: found for step in chain}


def _epsilon_name(attributes: Attributes) -> str:
    return f"epsilon_{float(attributes['epsilon']):.0e}".replace("-", "_")


def _listed(found: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [found] if isinstance(found, Tensor) else found


def _sizes(value: Tensor | list[int]) -> list[int]:
    return value.tolist() if isinstance(value, Tensor) else value


def _reshape(values: Sequence[Tensor], _: Attributes) -> Tensor:
    return values[0].reshape(_sizes(values[1]))


def _expand(values: Sequence[Tensor], _: Attributes) -> Tensor:
    shape = np.broadcast_shapes(tuple(values[0].shape), tuple(_sizes(values[1])))
    return values[0].expand(shape).contiguous()


def _split(values: Sequence[Tensor], attributes: Attributes) -> list[Tensor]:
    axis = attributes.get("axis", 0)
    size = values[0].shape[axis]
    parts = (
        _sizes(values[1])
        if len(values) > 1
        else [-(-size // attributes["num_outputs"])] * attributes["num_outputs"]
    )
    ends = [min(size, sum(parts[: i + 1])) for i in range(len(parts))]
    return [
        values[0].narrow(axis, start, end - start)
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _slice(values: Sequence[Tensor], _: Attributes) -> Tensor:
    starts, ends = _sizes(values[1]), _sizes(values[2])
    axes = _sizes(values[3]) if len(values) > 3 else list(range(len(starts)))
    steps = _sizes(values[4]) if len(values) > 4 else [1] * len(starts)
    index = [slice(None)] * values[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return values[0][tuple(index)]


def _layer_norm(values: Sequence[Tensor], attributes: Attributes) -> Tensor:
    x, weight, bias = values
    return F.layer_norm(x, weight.shape, weight, bias, float(attributes["epsilon"]))


def _conv(values: Sequence[Tensor], attributes: Attributes) -> Tensor:
    bias = values[2] if len(values) > 2 else None
    pads = attributes.get("pads", [0, 0, 0, 0])
    return F.conv2d(
        values[0], values[1], bias, attributes["strides"], pads[:2],
        attributes["dilations"], attributes["group"],
    )  # fmt: skip


def _conv_transpose(values: Sequence[Tensor], attributes: Attributes) -> Tensor:
    bias = values[2] if len(values) > 2 else None
    return F.conv_transpose2d(values[0], values[1], bias, attributes["strides"])


def _gelu(values: Sequence[Tensor], attributes: Attributes) -> Tensor:
    approximate = attributes.get("approximate", b"none").decode()
    return F.gelu(values[0], approximate=approximate)


def _cast(values: Sequence[Tensor], attributes: Attributes) -> Tensor:
    return values[0].to(TYPES[attributes["to"]])


def _unsqueeze(values: Sequence[Tensor], _: Attributes) -> Tensor:
    found = values[0]
    for axis in sorted(_sizes(values[1])):
        found = found.unsqueeze(axis)
    return found


def _shape(values: Sequence[Tensor], attributes: Attributes) -> Tensor:
    sizes = list(values[0].shape)
    return torch.tensor(sizes[attributes.get("start", 0) : attributes.get("end")])


TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
}
OPERATORS: dict[str, Callable[[Sequence[Tensor], Attributes], Tensor | Sequence[Tensor]]] = {
    "Add": lambda v, _: v[0] + v[1],
    "Cast": _cast,
    "Concat": lambda v, a: torch.cat(list(v), a["axis"]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": lambda v, _: v[0] / v[1],
    "Expand": _expand,
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda v, _: v[0] @ v[1],
    "Mul": lambda v, _: v[0] * v[1],
    "Neg": lambda v, _: -v[0],
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda v, _: v[0].sigmoid(),
    "Slice": _slice,
    "Softmax": lambda v, a: v[0].softmax(a.get("axis", -1)),
    "Split": _split,
    "Sub": lambda v, _: v[0] - v[1],
    "Transpose": lambda v, a: v[0].permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}
"""The operators of exported FP32 models: (inputs, attributes) -> outputs."""
