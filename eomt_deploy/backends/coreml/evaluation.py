"""The function of a saved package, evaluated without Core ML.

coremltools runs models only on macOS. But a package contains the complete program: it is read back
from its files, its weights are expanded as the format says, and each operation is computed by ONNX
Runtime. In an FP16 program, the result of each operation is rounded to FP16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.converters.mil.mil import types

from eomt_deploy.backends.coreml.package import MAIN
from eomt_deploy.backends.emulation.engine import EmulatedEngine
from eomt_deploy.contract import INPUT, OUTPUTS
from eomt_deploy.errors import BuildError
from eomt_deploy.model_file import CORE_ML_WEIGHTS
from eomt_deploy.spec import METADATA_KEY, ModelSpec

Array = npt.NDArray[Any]
OPSET = 20
"""The first version of ONNX with Gelu."""
DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}


class EvaluatedPackage(EmulatedEngine):
    """Runs the program of a package on the CPU.

    Args:
        package: the ``.mlpackage`` folder.
        spec: description of the model, with batch size 1.

    Raises:
        BuildError: the program has an operation that is not known here.
    """

    backend = "coreml"

    def __init__(self, package: Path, spec: ModelSpec) -> None:
        proto = ct.utils.load_spec(str(package))
        program = load(
            proto,
            specification_version=proto.specificationVersion,
            file_weights_dir=str((package / CORE_ML_WEIGHTS).parent),
        )
        super().__init__(_Evaluation(program.functions[MAIN], spec).model())
        self.path = package


class _Evaluation:
    """A MIL function as an ONNX graph with the tensors of our exports."""

    def __init__(self, function: Any, spec: ModelSpec) -> None:
        self._function, self._spec = function, spec
        self._nodes: list[ir.Node] = []
        self._constants: list[ir.Value] = []
        self._values: dict[Any, ir.Value] = {}

    def model(self) -> ir.Model:
        shape = ir.Shape([1, *self._spec.image_size, 3])
        images = ir.Value(name=INPUT, type=ir.TensorType(ir.DataType.UINT8), shape=shape)
        decoded = self._add("Cast", [images], to=ir.DataType.FLOAT)
        variable = self._function.inputs[INPUT]
        self._values[variable] = self._add("Transpose", [decoded], like=variable, perm=[0, 3, 1, 2])
        for operation in self._function.operations:
            self._evaluate(operation)
        outputs = {variable.name: self._value(variable) for variable in self._function.outputs}
        for name in OUTPUTS:
            outputs[name].name = name
        graph = ir.Graph(
            [images], [outputs[name] for name in OUTPUTS], nodes=self._nodes,
            initializers=self._constants, opset_imports={"": OPSET}, name="program",
        )  # fmt: skip
        metadata = {METADATA_KEY: self._spec.to_json()}
        return ir.Model(graph, ir_version=10, metadata_props=metadata)

    def _evaluate(self, operation: Any) -> None:
        kind = operation.op_type
        if kind == "const":
            return
        if kind.startswith("constexpr_"):
            value = np.asarray(operation.materialized_val_inference())
            self._values[operation.outputs[0]] = self._constant(value)
            return
        if kind not in EVALUATIONS:
            raise BuildError(
                f"The Core ML program has the operation {kind}, which cannot be evaluated here.",
                fix="Use the version of coremltools in constraints.txt, or --no-check.",
            )
        EVALUATIONS[kind](self, operation)

    def _value(self, variable: Any) -> ir.Value:
        if variable not in self._values:
            self._values[variable] = self._constant(np.asarray(variable.val))
        return self._values[variable]

    def _constant(self, array: Array) -> ir.Value:
        name = f"constant_{len(self._constants)}"
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape),
            const_value=tensor,
        )  # fmt: skip
        self._constants.append(value)
        return value

    def _sizes(self, *sizes: int) -> ir.Value:
        return self._constant(np.array(sizes, np.int64))

    def _add(
        self, operator: str, inputs: list[ir.Value], *, like: Any = None, **attributes: Any
    ) -> ir.Value:
        """Add a node with one output, which has the type and shape of a MIL variable."""
        return self._add_several(operator, inputs, [like], **attributes)[0]

    def _add_several(
        self, operator: str, inputs: list[ir.Value], likes: list[Any], **attributes: Any
    ) -> list[ir.Value]:
        name = f"node_{len(self._nodes)}"
        node = ir.node(operator, inputs, attributes, num_outputs=len(likes), name=name)
        for number, (output, like) in enumerate(zip(node.outputs, likes, strict=True)):
            output.name = f"{name}_{number}"
            output.type = ir.TensorType(ir.DataType.FLOAT)
            if like is not None:
                output.type = ir.TensorType(DTYPES[types.builtin_to_string(like.dtype)])
                output.shape = ir.Shape(like.shape)
        self._nodes.append(node)
        return list(node.outputs)

    def _simple(self, operator: str, operation: Any, *names: str, **attributes: Any) -> None:
        inputs = [self._value(operation.inputs[name]) for name in names]
        variable = operation.outputs[0]
        self._values[variable] = self._add(operator, inputs, like=variable, **attributes)

    def cast(self, operation: Any) -> None:
        self._simple("Cast", operation, "x", to=DTYPES[operation.dtype.val])

    def transpose(self, operation: Any) -> None:
        rank = operation.x.rank
        order = [axis % rank for axis in _integers(operation.perm)]
        self._simple("Transpose", operation, "x", perm=order)

    def conv(self, operation: Any, operator: str = "Conv") -> None:
        pads = _integers(operation.pad) if operation.pad_type.val == "custom" else [0, 0, 0, 0]
        if operation.pad_type.val not in ("custom", "valid"):
            raise BuildError(f"The convolution {operation.name} has another padding.")
        names = ["x", "weight"] + (["bias"] if operation.bias is not None else [])
        self._simple(
            operator, operation, *names, strides=_integers(operation.strides),
            dilations=_integers(operation.dilations), group=int(operation.groups.val),
            pads=[*pads[0::2], *pads[1::2]],
        )  # fmt: skip

    def conv_transpose(self, operation: Any) -> None:
        self.conv(operation, "ConvTranspose")

    def linear(self, operation: Any) -> None:
        variable, weight = operation.outputs[0], self._value(operation.weight)
        assert weight.const_value is not None  # weights are constant
        turned = self._constant(weight.const_value.numpy().T)
        product = self._add("MatMul", [self._value(operation.x), turned], like=variable)
        if operation.bias is not None:
            product = self._add("Add", [product, self._value(operation.bias)], like=variable)
        self._values[variable] = product

    def matmul(self, operation: Any) -> None:
        inputs = []
        for name in ("x", "y"):
            variable = operation.inputs[name]
            value = self._value(variable)
            if operation.inputs[f"transpose_{name}"].val:
                rank = variable.rank
                order = [*range(rank - 2), rank - 1, rank - 2]
                value = self._add("Transpose", [value], perm=order)
                value.type = self._value(variable).type
            inputs.append(value)
        variable = operation.outputs[0]
        self._values[variable] = self._add("MatMul", inputs, like=variable)

    def layer_norm(self, operation: Any) -> None:
        axes = sorted(axis % operation.x.rank for axis in _integers(operation.axes))
        if axes != [operation.x.rank - 1]:
            raise BuildError(f"The normalisation {operation.name} is not over the last axis.")
        self._simple(
            "LayerNormalization", operation, "x", "gamma", "beta",
            axis=axes[0], epsilon=float(operation.epsilon.val),
        )  # fmt: skip

    def gelu(self, operation: Any) -> None:
        exact = operation.mode.val == "EXACT"
        self._simple("Gelu", operation, "x", approximate="none" if exact else "tanh")

    def silu(self, operation: Any) -> None:
        x, variable = self._value(operation.x), operation.outputs[0]
        gate = self._add("Sigmoid", [x])
        self._values[variable] = self._add("Mul", [x, gate], like=variable)

    def softmax(self, operation: Any) -> None:
        self._simple("Softmax", operation, "x", axis=int(operation.axis.val))

    def reshape(self, operation: Any) -> None:
        variable = operation.outputs[0]
        inputs = [self._value(operation.x), self._sizes(*variable.shape)]
        self._values[variable] = self._add("Reshape", inputs, like=variable)

    def concat(self, operation: Any) -> None:
        variable = operation.outputs[0]
        inputs = [self._value(value) for value in operation.inputs["values"]]
        axis = int(operation.axis.val)
        self._values[variable] = self._add("Concat", inputs, like=variable, axis=axis)

    def split(self, operation: Any) -> None:
        axis = int(operation.axis.val)
        sizes = self._sizes(*(variable.shape[axis] for variable in operation.outputs))
        inputs = [self._value(operation.x), sizes]
        found = self._add_several("Split", inputs, list(operation.outputs), axis=axis)
        self._values |= dict(zip(operation.outputs, found, strict=True))

    def slice_by_index(self, operation: Any) -> None:
        x, variable = operation.x, operation.outputs[0]
        begin, end = _integers(operation.begin), _integers(operation.end)
        stride = _integers(operation.stride) if operation.stride is not None else [1] * x.rank
        masks = [
            mask.val if mask is not None else [False] * x.rank
            for mask in (operation.begin_mask, operation.end_mask, operation.squeeze_mask)
        ]
        if any(masks[2]) or min(stride) < 1:
            raise BuildError(f"The slice {operation.name} removes axes or goes backwards.")
        begin = [0 if all_ else first for first, all_ in zip(begin, masks[0], strict=True)]
        end = [
            size if all_ else last for last, size, all_ in zip(end, x.shape, masks[1], strict=True)
        ]
        parts = (begin, end, list(range(x.rank)), stride)
        inputs = [self._value(x), *(self._sizes(*part) for part in parts)]
        self._values[variable] = self._add("Slice", inputs, like=variable)


def _integers(variable: Any) -> list[int]:
    return [int(value) for value in variable.val]


def _binary(operator: str) -> Callable[[_Evaluation, Any], None]:
    return lambda evaluation, operation: evaluation._simple(operator, operation, "x", "y")


EVALUATIONS: Mapping[str, Callable[[_Evaluation, Any], None]] = {
    "add": _binary("Add"),
    "cast": _Evaluation.cast,
    "concat": _Evaluation.concat,
    "conv": _Evaluation.conv,
    "conv_transpose": _Evaluation.conv_transpose,
    "expand_dims": _Evaluation.reshape,
    "gelu": _Evaluation.gelu,
    "identity": lambda evaluation, operation: evaluation._simple("Identity", operation, "x"),
    "layer_norm": _Evaluation.layer_norm,
    "linear": _Evaluation.linear,
    "matmul": _Evaluation.matmul,
    "mul": _binary("Mul"),
    "real_div": _binary("Div"),
    "reshape": _Evaluation.reshape,
    "sigmoid": lambda evaluation, operation: evaluation._simple("Sigmoid", operation, "x"),
    "silu": _Evaluation.silu,
    "slice_by_index": _Evaluation.slice_by_index,
    "softmax": _Evaluation.softmax,
    "split": _Evaluation.split,
    "squeeze": _Evaluation.reshape,
    "sub": _binary("Sub"),
    "transpose": _Evaluation.transpose,
}
"""MIL operations of our programs, by name."""
