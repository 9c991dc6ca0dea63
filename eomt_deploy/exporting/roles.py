"""The role of each node in the network, derived from the PyTorch module that it comes from.

The exporter stores the module path of each node. Nodes, weights and tensors are named after it, as
in the checkpoint (``backbone.blocks.3.mlp.fc1/MatMul``), and precision is chosen by *role*, never
by a generated name.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from typing import Literal, get_args

import onnx_ir as ir

Role = Literal[
    "patch_embedding",
    "tokens",
    "norm",
    "projection",
    "attention",
    "softmax",
    "mlp",
    "residual",
    "transposed_conv",
    "depthwise_conv",
    "mask_head",
    "class_head",
    "mask_product",
]
ROLES: tuple[Role, ...] = get_args(Role)

_MODULE = "module"
_SCOPES = "pkg.torch.onnx.name_scopes"
_BLOCK = r"backbone\.blocks\.(\d+)"
# (module pattern, operator or any, role): the first match decides.
_RULES: tuple[tuple[str, str, Role], ...] = (
    (r"backbone\.patch_embed", "", "patch_embedding"),
    (r".*\bnorm\d?$", "", "norm"),
    (_BLOCK + r"\.attn\.(qkv|proj)$", "", "projection"),
    (_BLOCK + r"\.attn$", "Softmax", "softmax"),
    (_BLOCK + r"\.attn", "", "attention"),
    (_BLOCK + r"\.mlp", "", "mlp"),
    (_BLOCK, "", "residual"),
    (r"upscale\.\d+\.conv1$", "", "transposed_conv"),
    (r"upscale", "", "depthwise_conv"),
    (r"mask_head", "", "mask_head"),
    (r"class_head", "", "class_head"),
    (r"$", "MatMul", "mask_product"),
    (r"", "", "tokens"),
)


def module_of(node: ir.Node) -> str:
    """Dotted path of the PyTorch module that made ``node``; empty for the network itself."""
    return node.metadata_props.get(_MODULE, "")


def role_of(node: ir.Node) -> Role:
    """The role of ``node``."""
    module = module_of(node)
    return next(
        role
        for pattern, operator, role in _RULES
        if re.match(pattern, module) and operator in ("", node.op_type)
    )


def block_of(node: ir.Node) -> int | None:
    """Number of the transformer block that ``node`` belongs to, if any."""
    match = re.match(_BLOCK, module_of(node))
    return int(match[1]) if match else None


def annotate(model: ir.Model) -> None:
    """Name nodes, their outputs and their weights after the network's modules, in place."""
    graph = model.graph
    used: Counter[str] = Counter()
    outputs = set(graph.outputs)
    for node in graph:
        module = _traced_module(node)
        node.metadata_props.clear()
        node.metadata_props[_MODULE] = module
        stem = f"{module or 'network'}/{node.op_type}"
        used[stem] += 1
        node.name = stem if used[stem] == 1 else f"{stem}_{used[stem]}"
        for index, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = node.name + (f":{index}" if index else "")
        _name_weights(graph, node, module)


def _traced_module(node: ir.Node) -> str:
    text = node.metadata_props.get(_SCOPES)
    if text is None:  # the exporter created the node: use the module of its input
        producers = [value.producer() for value in node.inputs if value is not None]
        return next((module_of(producer) for producer in producers if producer is not None), "")
    # The network, its modules from outer to inner, and the operation.
    scopes = ast.literal_eval(text)[:-1]
    return scopes[-1] if scopes and not scopes[-1].startswith("_") else ""


def _name_weights(graph: ir.Graph, node: ir.Node, module: str) -> None:
    """Restore the names of weights, which they lose if the exporter transposes them."""
    for value in node.inputs:
        if value is None or not value.is_initializer() or value.name in ("", None):
            continue
        name = f"{module}.weight"
        if (
            value.dtype is not None
            and value.dtype.is_floating_point()
            and not str(value.name).startswith(module)
            and node.op_type in ("MatMul", "Gemm")
            and name not in graph.initializers
        ):
            rename(graph, value, name)


def rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Rename an initializer."""
    graph.initializers.pop(str(value.name))
    value.name = name
    graph.register_initializer(value)
