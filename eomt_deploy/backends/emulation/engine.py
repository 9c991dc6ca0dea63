"""Results of a low-precision graph on a CPU that does not support its arithmetic.

ONNX Runtime's CPU kernels compute an FP16 graph in FP32 and remove the casts between them: an
overflow that gives NaN on a GPU does not show (300 * 300 / 300 gives 300), and BF16 does not run at
all. Here every computed tensor is rounded to its type in the graph. Inside the operators FP32 is
used, like in tensor cores, which accumulate in FP32.
"""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from eomt_deploy.backends.emulation.partwise import PartwiseSession, check_side_files, release
from eomt_deploy.backends.engine import Engine
from eomt_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, open_error
from eomt_deploy.contract import check_contract
from eomt_deploy.errors import EomtDeployError, ModelFileError
from eomt_deploy.model_file import parse_spec

FLOAT = ir.DataType.FLOAT
HALF_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
LAYOUT = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
     "Transpose", "Unsqueeze"}
)  # fmt: skip
"""Operators that move values and do not compute."""
EXACT = LAYOUT | {"QuantizeLinear", "DequantizeLinear"}
"""Operators whose outputs are not rounded: moved values are already rounded, and integer kernels
have no half-precision intermediate values."""


class EmulatedEngine(OnnxRuntimeEngine):
    """Runs an ``.onnx`` file, or a graph in memory, with every tensor rounded to its type.

    It is much slower than real low-precision arithmetic, and meant for measuring accuracy only.

    Args:
        exact: do not round, and do not fuse operators: the function of the graph in FP32, which is
            the reference for other backends. Quantised values are still rounded to 8 bits.
    """

    backend = "emulation"

    def __init__(
        self,
        source: Path | ir.Model,
        *,
        device: str | None = None,
        threads: int | None = None,
        exact: bool = False,
    ) -> None:
        Engine.__init__(self)  # not the parent's, which would create a normal session
        if isinstance(source, ir.Model):
            model, self.path = source, None
        else:
            model, self.path = _load(source), source
        place = self.path or Path("the graph")
        self.spec = parse_spec(model.metadata_props, place)
        tensors = (*model.graph.inputs, *model.graph.outputs)
        check_contract(self.spec, {str(v.name): (str(v.dtype), _shape(v)) for v in tensors}, place)
        options = self._options()
        if threads is not None:
            options.intra_op_num_threads = threads
        if exact:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.device = "cpu"
        try:
            check_side_files(model.graph)  # before the tensors are wrapped
            self._session = PartwiseSession(emulate(model, exact=exact), options)
        except EomtDeployError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise open_error(place, error) from error

    def _options(self) -> ort.SessionOptions:
        options = super()._options()
        # Integer CPU kernels would replace the arithmetic that is emulated.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options


def emulate(model: ir.Model, *, exact: bool = False) -> ir.Model:
    """Make an FP32 copy in which each FP16 or BF16 tensor of the graph is rounded to that type.

    Args:
        exact: do not round.
    """
    model = model.clone()
    graph = model.graph
    for node in [node for node in graph if node.op_type == "Attention"]:
        if node.outputs[0].dtype in HALF_TYPES:
            _write_out(graph, node)
    for value in list(graph.initializers.values()):
        if value.dtype in HALF_TYPES:
            assert value.const_value is not None  # initializers have values
            value.const_value = converted(value.const_value, FLOAT)
            value.type = ir.TensorType(FLOAT)
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() in HALF_TYPES:
            node.attributes["to"] = ir.AttrInt64("to", FLOAT)
        for value in node.outputs:
            if value.dtype not in HALF_TYPES:
                continue
            half = value.dtype
            value.type = ir.TensorType(FLOAT)
            if node.op_type not in EXACT and not exact:
                _round(graph, node, value, half)
    return model


def _write_out(graph: ir.Graph, node: ir.Node) -> None:
    """Replace an ``Attention`` operator (scale 1, no mask) by matrix products and a softmax, so
    that its scores are rounded, too: a backend may compute it like this."""
    heads = node.attributes["q_num_heads"].as_int()
    made: list[ir.Node] = []

    def add(operator: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        name = f"{node.name}/{operator}_{len(made)}"
        new = ir.node(operator, inputs, attributes, name=name)  # type: ignore[arg-type]
        new.outputs[0].name = name
        new.outputs[0].type = node.outputs[0].type
        made.append(new)
        return new.outputs[0]

    def shape(*sizes: int) -> ir.Value:
        name = f"{node.name}/shape_{len(made)}"
        tensor = ir.tensor(np.array(sizes, np.int64), name=name)
        kind = ir.TensorType(ir.DataType.INT64)
        value = ir.Value(name=name, shape=ir.Shape([len(sizes)]), type=kind, const_value=tensor)
        graph.register_initializer(value)
        return value

    def split(index: int, order: list[int]) -> ir.Value:
        source = node.inputs[index]
        assert source is not None  # Attention has q, k and v
        apart = add("Reshape", [source, shape(0, 0, heads, -1)])
        return add("Transpose", [apart], perm=order)

    scores = add("MatMul", [split(0, [0, 2, 1, 3]), split(1, [0, 2, 3, 1])])
    shares = add("Softmax", [scores], axis=-1)
    mixed = add("MatMul", [shares, split(2, [0, 2, 1, 3])])
    joined = add("Reshape", [add("Transpose", [mixed], perm=[0, 2, 1, 3]), shape(0, 0, -1)])
    joined.shape = node.outputs[0].shape
    name = node.outputs[0].name
    node.outputs[0].replace_all_uses_with(joined, replace_graph_outputs=True)
    graph.insert_after(node, made)
    graph.remove(node, safe=True)
    joined.name = name


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, half: ir.DataType) -> None:
    """Replace ``value`` by ``value`` cast to ``half`` and back to FP32."""
    name = str(value.name)
    value.name = f"{name}.exact"
    down = ir.node("Cast", [value], {"to": half}, name=f"{name}.rounding")
    up = ir.node("Cast", [down.outputs[0]], {"to": FLOAT}, name=f"{name}.rounded")
    for new, dtype, output in ((down, half, f"{name}.half"), (up, FLOAT, name)):
        new.outputs[0].name = output
        new.outputs[0].type = ir.TensorType(dtype)
        new.outputs[0].shape = value.shape
    value.replace_all_uses_with(up.outputs[0], replace_graph_outputs=True)
    down.replace_input_with(0, value)
    graph.insert_after(node, [down, up])


NUMPY = {
    FLOAT: np.dtype(np.float32),
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


def converted(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.LazyTensor:
    """A constant in another float type, converted when it is read.

    Values outside the range of the type become infinite; the range analysis reports them before.
    """

    def read() -> ir.TensorProtocol:
        with np.errstate(over="ignore"):
            array = tensor.numpy().astype(NUMPY[dtype])
        release(tensor)
        return ir.tensor(array, name=tensor.name)

    return ir.LazyTensor(read, dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _load(path: Path) -> ir.Model:
    try:
        model = ir.load(path)
    except Exception as error:  # exceptions of protobuf and onnx have no common base class
        raise ModelFileError(
            f"{path} is not an ONNX model, or it is damaged.",
            fix="Export or copy it again.",
        ) from error
    for value in model.graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            # Use the resolved path: onnx_ir refuses links, which side_files has already checked.
            folder, name = os.path.split(os.path.realpath(tensor.path))
            value.const_value = ir.ExternalTensor(
                name, tensor.offset, tensor.length, tensor.dtype,
                shape=tensor.shape, name=tensor.name, base_dir=folder,
            )  # fmt: skip
    return model


def _shape(value: ir.Value) -> list[int | str | None]:
    return [] if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
