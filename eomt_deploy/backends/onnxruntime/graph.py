"""Graph rewrites for ONNX Runtime's CPU kernels; the computed function stays the same.

The gain was measured with EoMT at 640x640 by `benchmarks/cpu_graph.py`. FP32 graphs are opened
unchanged: fused attention would make them only 4 % faster, but loading would take a second longer
and three times the memory.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from eomt_deploy.model_file import MAX_PROTOBUF_BYTES

FLOAT = TensorProto.FLOAT
HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
CONTRIBUTED = "com.microsoft"
FLAT = "fused_attention.flat"
"""Name of the shape [B, tokens, heads * d]."""
HEADS_FIRST, HEADS_FIRST_TURNED = [0, 2, 1, 3], [0, 2, 3, 1]
"""[B, tokens, heads, d] to [B, heads, tokens, d] and to [B, heads, d, tokens]."""


def reshaped(path: Path) -> bytes | None:
    """Rewrite the graph of a low-precision model file for the CPU.

    Returns:
        the serialised model; None if the file must be opened unchanged: it is damaged, has
        external weights, or exceeds the protobuf limit in FP32.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        tensors = model.graph.initializer
        outside = any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors)
        if outside or sum(map(_bytes_in_fp32, tensors)) > MAX_PROTOBUF_BYTES:
            return None
        compute_in_fp32(model)
        fuse_attention(model)
        return bytes(model.SerializeToString())
    except Exception:  # the graph is damaged: ONNX Runtime reports the reason when it opens it
        return None


def _bytes_in_fp32(tensor: TensorProto) -> int:
    count: int = math.prod(tensor.dims)
    kind = FLOAT if tensor.data_type in HALF_TYPES else tensor.data_type
    return count * helper.tensor_dtype_to_np_dtype(kind).itemsize


def compute_in_fp32(model: onnx.ModelProto) -> None:
    """Convert FP16 and BF16 constants and tensors to FP32.

    ONNX Runtime has no half-precision kernels on x86: it casts before and after every operator,
    and does not run a quantised layer with half-precision scales in integers.

    Args:
        model: changed in place.
    """
    graph = model.graph
    for tensor in [tensor for tensor in graph.initializer if tensor.data_type in HALF_TYPES]:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    floats = set()
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if kind.elem_type in HALF_TYPES:
            kind.elem_type = FLOAT
        if kind.elem_type == FLOAT:
            floats.add(value.name)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALF_TYPES:
                attribute.i = FLOAT
    _drop_casts(graph, floats)


def _drop_casts(graph: onnx.GraphProto, floats: set[str]) -> None:
    """Remove casts from FP32 to FP32, except those that produce an output of the graph."""
    inside = floats - {value.name for value in graph.output}
    source = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in floats and node.output[0] in inside
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            while name in source:
                name = source[name]
            node.input[index] = name
    _keep(graph, [node for node in graph.node if node.output[0] not in source])


def fuse_attention(model: onnx.ModelProto, *, gpu: bool = False) -> int:
    """Replace decomposed attention by one operator, which never stores all scores at once.

    Args:
        model: changed in place.
        gpu: also replace attention with rotated queries and keys (DINOv3), whose additional
            transposes cost as much as the fusion gains on the CPU, and attention with a softmax in
            FP32, because GPU kernels always compute it in FP32.

    Returns:
        number of fused attention layers.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    sizes = {v.name: v.type.tensor_type.shape.dim for v in graph.value_info}

    def only_user(node: NodeProto, operator: str) -> NodeProto | None:
        found = users.get(node.output[0], [])
        return found[0] if len(found) == 1 and found[0].op_type == operator else None

    def flat(name: str, order: list[int]) -> str | None:
        """Name of the [B, tokens, D] tensor that a transposed operand of a product comes from."""
        turn = makers.get(name)
        apart = makers.get(turn.input[0]) if turn is not None and _order(turn) == order else None
        return apart.input[0] if apart is not None and apart.op_type == "Reshape" else None

    def flattened(name: str, order: list[int], added: list[NodeProto]) -> str | None:
        """As ``flat``; a rotated operand is transposed back by two more nodes."""
        found = flat(name, order)
        if found is None and gpu and name in makers:
            back = [0, 2, 1, 3] if order == HEADS_FIRST else [0, 3, 1, 2]
            turned, found = f"{name}.tokens_first", f"{name}.flat"
            added += [
                helper.make_node("Transpose", [name], [turned], name=turned, perm=back),
                helper.make_node("Reshape", [turned, FLAT], [found], name=found),
            ]
        return found

    fused: dict[str, list[NodeProto]] = {}
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        scores, softened = makers.get(softmax.input[0]), softmax
        cast = only_user(softmax, "Cast")
        if gpu and cast is not None and scores is not None and scores.op_type == "Cast":
            scores, softened = makers.get(scores.input[0]), cast
        mixed = only_user(softened, "MatMul")
        back = only_user(mixed, "Transpose") if mixed else None
        joined = only_user(back, "Reshape") if back else None
        if scores is None or scores.op_type != "MatMul" or mixed is None or joined is None:
            continue
        added: list[NodeProto] = []
        queries = flattened(scores.input[0], HEADS_FIRST, added)
        keys = flattened(scores.input[1], HEADS_FIRST_TURNED, added)
        values = flat(mixed.input[1], HEADS_FIRST)
        heads = sizes[softmax.output[0]][1].dim_value if softmax.output[0] in sizes else 0
        if not (queries and keys and values and heads):
            continue
        attention = helper.make_node(
            "MultiHeadAttention", [queries, keys, values], list(joined.output),
            name=f"{softmax.name}.fused", domain=CONTRIBUTED, num_heads=heads,
            scale=1.0,  # the scale is folded into the weights
        )  # fmt: skip
        fused[joined.output[0]] = [*added, attention]
    if fused:
        _keep(graph, [new for node in graph.node for new in fused.get(node.output[0], [node])])
        if any(FLAT in node.input for nodes in fused.values() for node in nodes):
            shape = np.array([0, 0, -1], np.int64)  # 0: as in the operand
            graph.initializer.append(numpy_helper.from_array(shape, FLAT))
        _remove_unused(graph)
        model.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))
    return len(fused)


def _order(node: NodeProto) -> list[int] | None:
    """Permutation of a Transpose node; None for any other node."""
    orders = [list(a.ints) for a in node.attribute if a.name == "perm"]
    return orders[0] if node.op_type == "Transpose" and orders else None


def _keep(graph: onnx.GraphProto, nodes: list[NodeProto]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes whose results are not used."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):  # topological order: consumers come after producers
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    _keep(graph, kept[::-1])
