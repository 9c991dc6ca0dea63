"""Trace a network to an ONNX graph, and write it to a file that contains its description."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules
from torch._subclasses.fake_tensor import FakeTensorMode

from eomt_deploy.contract import INPUT, OUTPUTS
from eomt_deploy.exporting.garbage import rare_collections
from eomt_deploy.exporting.roles import annotate
from eomt_deploy.model_file import EXTERNAL_SUFFIX, MAX_PROTOBUF_BYTES
from eomt_deploy.network.eomt import EoMT
from eomt_deploy.network.streamed import Values, parameter_values
from eomt_deploy.spec import METADATA_KEY, ModelSpec

OPSET = 20
"""First opset with a Gelu operator (LayerNormalization: 17)."""
IR_VERSION = 10
"""Supported by all backends (ONNX Runtime: since 1.18); we do not need newer features."""
MIN_IR = {23: 11}
"""Minimum IR version of opsets that need a newer one."""
MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the graph, where backends expect shapes."""
ALIGNMENT = 4096
"""Alignment of tensors in the weights file, in bytes: a memory page, so that it can be mapped."""
TRACED = 100_000
"""New objects after which garbage is searched while a network is traced."""
BATCH = 1_000_003
"""A network for any batch size is traced with this one, because PyTorch needs twice the time for a
symbol. It is a prime, so that no other size in a graph is this number or a multiple of it."""
BLOCKS = "backbone.blocks."
"""Prefix of the weights that the graph loads lazily; the others are small."""
RULES = (
    "collapse_slice_rule", "materialize_reshape_shape_rule", "transpose_transpose_rule",
    "squeeze_reshape_1d_rule", "remove_optional_bias_from_conv_rule",
    "remove_optional_bias_from_conv_transpose_rule",
)  # fmt: skip
"""The rules of ``onnxscript.optimizer.optimize_ir`` that our networks need, in its order. To try
all 46 on each node takes most of its time, and that of one grows with the square of the depth."""


def trace(model: EoMT, spec: ModelSpec) -> ir.Model:
    """The FP32 graph of a folded network, with the inputs and outputs of the tensor contract.

    Nodes and tensors are named after the modules of the network
    (:mod:`eomt_deploy.exporting.roles`). The graph loads the weights of the blocks lazily, so that
    network and graph can be larger than the memory.
    """
    traced = _traced(model, spec, spec.batch or BATCH)
    if not spec.batch and not free_batch(traced.graph):
        traced = _traced(model, spec, 2, dynamic=True)
    streamed = [v for name, v in traced.graph.initializers.items() if name.startswith(BLOCKS)]
    for value in streamed:
        value.const_value = None  # otherwise the optimizer would read it
    with _quiet("onnx_ir"), rare_collections(TRACED):
        simplify(traced)
    values = parameter_values(model)
    for value in streamed:
        _read_later(traced.graph, value, values)
    annotate(traced)
    return traced


def _traced(model: EoMT, spec: ModelSpec, batch: int, *, dynamic: bool = False) -> ir.Model:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with warnings.catch_warnings(), _quiet("torch.onnx"), rare_collections(TRACED), mode:
        warnings.simplefilter("ignore")  # deprecations inside torch that users cannot fix
        program = torch.onnx.export(
            _without_values(model),
            (torch.zeros((batch, *spec.image_size, 3), dtype=torch.uint8),),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if dynamic else None,
            verbose=False,
        )
    assert program is not None  # dynamo=True always returns it
    traced: ir.Model = program.model
    return traced


def free_batch(graph: ir.Graph) -> bool:
    """Replace the batch size :data:`BATCH` by that of the images.

    Returns:
        whether each was found: not if PyTorch multiplied it, or put it into a larger constant.
    """
    size = ir.node("Shape", [graph.inputs[0]], {"end": 1, "start": 0})
    graph.insert_before(graph[0], size)
    numbers: list[Any] = []
    for node in graph:
        for attribute in node.attributes.values():
            if node.op_type == "Constant" and attribute.value == (BATCH,):
                node.outputs[0].replace_all_uses_with(size.outputs[0])
                graph.remove(node)
            elif attribute.type in (ir.AttributeType.INTS, ir.AttributeType.INT):
                numbers.append(attribute.value)
            elif attribute.type == ir.AttributeType.TENSOR:
                numbers.append(attribute.value.numpy())
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape(["batch" if d == BATCH else d for d in value.shape])
            numbers.append([d for d in value.shape if isinstance(d, int)])
    return not any(n and n % BATCH == 0 for array in numbers for n in np.ravel(array).tolist())


def simplify(model: ir.Model) -> None:
    """Fold constants and remove redundant nodes, as ``onnxscript.optimizer.optimize_ir`` does."""
    # An older onnxscript has fewer rules.
    known = [getattr(rules, name) for name in RULES if hasattr(rules, name)]
    for _ in range(2):
        fold_constants_ir(model, onnx_shape_inference=True)
        rewrite(model, known)
    Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.NameFixPass(),
    )(model)


def _without_values(model: EoMT) -> EoMT:
    """A copy whose blocks have shapes only, and which shares all other tensors.

    Must be called in fake mode.
    """
    # deepcopy does not copy tensors that are in its memo.
    parts: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for tensor in model.backbone.blocks.parameters():
        parts[id(tensor)] = torch.nn.Parameter(torch.empty(tensor.shape), requires_grad=False)
    return copy.deepcopy(model, parts)


def _read_later(graph: ir.Graph, value: ir.Value, values: Values) -> None:
    """Let a weight load the network's parameter lazily, transposed if the graph transposes it."""
    name, shape = str(value.name), value.shape
    assert shape is not None  # every parameter has one
    turned = [node for node in value.consumers() if node.op_type == "Transpose"]
    for node in turned:
        shape = ir.Shape(reversed(shape.dims))
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node, safe=True)

    def read() -> ir.TensorProtocol:
        array = values(name).numpy()
        return ir.tensor(np.ascontiguousarray(array.T) if turned else array, name=name)

    value.shape = shape
    value.const_value = ir.LazyTensor(read, ir.DataType.FLOAT, shape, name=name)


def to_proto(model: ir.Model, spec: ModelSpec) -> onnx.ModelProto:
    """The graph to write: with its description, without metadata of the exporter."""
    graph = ir.to_proto(model)
    graph.ir_version = max(IR_VERSION, MIN_IR.get(model.graph.opset_imports[""], 0))
    graph.producer_name = "eomt-deploy"
    graph.producer_version = spec.provenance["eomt_deploy"]
    # The exporter's metadata contain local paths and are larger than the graph itself.
    del graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del value.metadata_props[:]
    onnx.helper.set_model_props(graph, {METADATA_KEY: spec.to_json()})
    return graph


def weight_bytes(model: ir.Model) -> int:
    """Total size of the constants of a graph, in bytes."""
    return sum(tensor.nbytes for tensor in _constants(model))


def _constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in model.graph.initializers.values():
        assert value.const_value is not None  # initializers have values
        yield value.const_value


def save(
    model: ir.Model, spec: ModelSpec, folder: Path, name: str, *, limit: int = MAX_PROTOBUF_BYTES
) -> list[Path]:
    """Write a graph into ``folder``. More than ``limit`` bytes of weights go to ``<name>.data``.

    Weights are loaded and written one at a time.

    Returns:
        the files written; the graph is the last one.
    """
    path = folder / name
    if weight_bytes(model) <= limit:
        onnx.save(to_proto(model, spec), path)
        return [path]
    model = model.clone()
    side = folder / (name + EXTERNAL_SUFFIX)
    with side.open("wb") as file:
        for value, tensor in zip(model.graph.initializers.values(), _constants(model), strict=True):
            if tensor.nbytes >= MIN_EXTERNAL_BYTES:
                file.write(bytes(-file.tell() % ALIGNMENT))
                value.const_value = ir.ExternalTensor(
                    side.name, file.tell(), tensor.nbytes, tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()), name=str(value.name), base_dir=folder,
                )  # fmt: skip
                file.write(tensor.tobytes())
    onnx.save(to_proto(model, spec), path)
    return [side, path]


def publish(files: list[Path], target: Path) -> None:
    """Move finished files to the folder of ``target``, the graph last.

    An old graph is removed first, so that a graph never has the weights of another one beside it,
    even if this is interrupted.
    """
    if len(files) > 1:
        target.unlink(missing_ok=True)
    for file in files:
        os.replace(file, target.with_name(file.name))
    side = target.with_name(target.name + EXTERNAL_SUFFIX)
    if side.name not in {file.name for file in files}:
        side.unlink(missing_ok=True)  # from an earlier, larger model of the same name


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Limit loggers to errors: they warn about optional packages and about lazy weights."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
