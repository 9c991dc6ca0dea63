"""Conversion of an FP32 graph to FP16 or BF16.

Each node that computes runs in the half type, or in FP32 if its role or a measured range requires
it. Casts are inserted only between the two. LayerNormalization keeps ``stash_type = 1``, so that
its statistics are FP32 for all input types.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from eomt_deploy.backends.emulation.engine import FLOAT, LAYOUT, NUMPY, converted
from eomt_deploy.exporting.roles import Role, rename, role_of
from eomt_deploy.precision import PRECISIONS

ALWAYS_HIGH: dict[str, frozenset[Role]] = {
    # TensorRT has no BF16 kernels for transposed convolutions: the build fails.
    "bf16": frozenset({"transposed_conv"}),
}
BFLOAT16_OPSET = 22
"""First opset whose Conv supports bfloat16. Our other operators are the same in 20 to 22."""


@dataclass(frozen=True)
class Lowering:
    """The type of each node.

    Attributes:
        precision: ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        high_roles: roles that stay in FP32.
        islands: names of nodes that stay in FP32.
    """

    precision: str
    high_roles: Set[Role] = frozenset()
    islands: Set[str] = frozenset()

    @property
    def half(self) -> ir.DataType:
        return ir.DataType[PRECISIONS[self.precision].dtype.upper()]

    def wanted(self, node: ir.Node) -> ir.DataType:
        """Type that ``node`` computes in."""
        high = self.high_roles | ALWAYS_HIGH.get(self.precision, frozenset())
        if role_of(node) in high or node.name in self.islands:
            return FLOAT
        return self.half


def lower(model: ir.Model, plan: Lowering) -> ir.Model:
    """A copy of an annotated FP32 graph in the precision of ``plan``.

    FP16 outputs stay FP16, so that half as many bytes are copied. BF16 outputs are cast to FP32,
    because numpy does not support BF16.
    """
    model = model.clone()
    graph = model.graph
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        # QuantizeLinear has float inputs, but no float output.
        if not any(value is not None and value.dtype == FLOAT for value in _tensors(node)):
            continue
        wanted = _moved_type(node) if node.op_type in LAYOUT else None
        wanted = wanted or plan.wanted(node)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in NUMPY and value.dtype != wanted:
                if value.is_initializer():
                    replacement = _converted(graph, value, wanted)
                else:
                    replacement = _cast(graph, node, value, wanted, casts)
                node.replace_input_with(index, replacement)
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", wanted)
        for value in node.outputs:
            if value.dtype == FLOAT:
                value.type = ir.TensorType(wanted)  # not value.dtype: clones share type objects
    _settle_names(graph)
    if plan.half == ir.DataType.BFLOAT16:
        graph.opset_imports[""] = max(graph.opset_imports[""], BFLOAT16_OPSET)
        for index, value in enumerate(graph.outputs):
            if value.dtype != FLOAT:
                graph.outputs[index] = _float_output(graph, value)
    return model


def _tensors(node: ir.Node) -> list[ir.Value | None]:
    return [*node.outputs, *(node.inputs if node.op_type == "QuantizeLinear" else ())]


def _moved_type(node: ir.Node) -> ir.DataType | None:
    """Type of the first value that a layout node moves, unless all are constants."""
    for value in node.inputs:
        if value is not None and value.dtype in NUMPY and not value.is_initializer():
            return value.dtype
    return None


def _converted(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A copy of a constant in another type. A constant used in both types is stored twice."""
    name = f"{value.name}.{dtype.name.lower()}"
    if name in graph.initializers:
        return graph.initializers[name]
    assert value.const_value is not None  # initializers have values
    return _add(graph, name, converted(value.const_value, dtype))


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an initializer to ``graph``."""
    return _add(graph, name, ir.tensor(array, name=name))


def _add(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _cast(
    graph: ir.Graph,
    before: ir.Node,
    value: ir.Value,
    dtype: ir.DataType,
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
) -> ir.Value:
    if (value, dtype) not in casts:
        name = f"{value.name}.{dtype.name.lower()}"
        node = ir.node("Cast", [value], {"to": dtype}, name=name)
        node.metadata_props.update(before.metadata_props)
        node.outputs[0].name = name
        node.outputs[0].type = ir.TensorType(dtype)
        node.outputs[0].shape = value.shape
        graph.insert_before(before, node)
        casts[value, dtype] = node.outputs[0]
    return casts[value, dtype]


def _float_output(graph: ir.Graph, value: ir.Value) -> ir.Value:
    name, producer = str(value.name), value.producer()
    assert producer is not None  # outputs are computed
    value.name = f"{name}.half"
    node = ir.node("Cast", [value], {"to": FLOAT}, name=f"{name}/Cast")
    node.metadata_props.update(producer.metadata_props)
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(FLOAT)
    node.outputs[0].shape = value.shape
    graph.append(node)
    return node.outputs[0]


def _settle_names(graph: ir.Graph) -> None:
    """Remove unused constants, and give their names to the constants that replaced them."""
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            graph.initializers.pop(name)
    for name, value in list(graph.initializers.items()):
        suffix = f".{value.dtype.name.lower()}" if value.dtype in NUMPY else None
        if suffix and name.endswith(suffix):
            original = name.removesuffix(suffix)
            if original not in graph.initializers:
                rename(graph, value, original)
