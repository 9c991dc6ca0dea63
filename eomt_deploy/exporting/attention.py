"""Fusion of each block's attention into one ONNX ``Attention`` operator (opset 23)."""

from __future__ import annotations

import onnx_ir as ir

from eomt_deploy.exporting.roles import module_of, role_of

ATTENTION_OPSET = 23
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def fuse_attention(model: ir.Model) -> int:
    """Fuse the attention of each block that computes in a single type.

    TensorRT supports the operator since 10.14, ONNX Runtime since 1.23. The scale is 1, because it
    is folded into the query weights. Fusion must be the last step, because ranges are measured and
    FP32 exceptions are made on the separate operators.

    Args:
        model: annotated graph, already in its precision; changed in place.

    Returns:
        number of blocks that were not fused because a part of their attention is in FP32.
    """
    graph = model.graph
    mixed = 0
    for softmax in [node for node in graph if role_of(node) == "softmax"]:
        owned = [node for node in graph if module_of(node) == module_of(softmax)]
        q, k, v = next(
            node.outputs
            for node in graph
            if node.op_type == "Split" and module_of(node) == f"{module_of(softmax)}.qkv"
        )
        values = [q, *(value for node in owned for value in node.outputs)]
        if len({value.dtype for value in values if value.dtype in FLOATS}) > 1:
            mixed += 1
            continue
        merged = owned[-1].outputs[0]  # heads concatenated, [B, tokens, D]
        scores = softmax.inputs[0]
        assert scores is not None  # Softmax has one input
        assert scores.shape is not None  # traced graphs have shapes
        heads = int(scores.shape[1])  # type: ignore[arg-type]  # never symbolic
        fused = ir.node(
            "Attention",
            [q, k, v],
            {"q_num_heads": heads, "kv_num_heads": heads, "scale": 1.0},
            name=f"{module_of(softmax)}/Attention",
        )
        fused.metadata_props.update(softmax.metadata_props)
        output = fused.outputs[0]
        output.name = str(fused.name)
        output.type = merged.type
        output.shape = merged.shape
        merged.replace_all_uses_with(output)
        graph.insert_after(owned[-1], fused)
        graph.remove(reversed(owned), safe=True)
    graph.opset_imports[""] = max(graph.opset_imports[""], ATTENTION_OPSET)
    return mixed
