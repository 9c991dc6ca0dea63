"""A network for any batch size is traced with a fixed one, and gives the same graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import tiny

from eomt_deploy.exporting import graph
from eomt_deploy.network.folds import fold

ROTARY = replace(tiny.ARCH, rope_theta=100.0, norm_eps=1e-5, depth=1, num_blocks=1)


def content(model: ir.Model) -> bytes:
    """The graph as a file, with constants numbered in their order, without their history."""
    model.graph.metadata_props.clear()
    for number, value in enumerate(model.graph.initializers.copy().values()):
        value.metadata_props.clear()
        if str(value.name).startswith("val_"):
            value.name = f"constant {number}"
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize("arch", [tiny.SHALLOW["dinov2 giant"], ROTARY], ids=["swiglu", "rotary"])
def test_it_is_the_graph_that_a_symbol_gives(monkeypatch, arch):
    found = []
    free = graph.free_batch
    monkeypatch.setattr(graph, "free_batch", lambda g: found.append(free(g)) or found[-1])
    network = fold(tiny.network(arch))
    fixed = graph.trace(network, tiny.spec())
    assert found == [True]
    monkeypatch.setattr(graph, "free_batch", lambda _: False)  # then a symbol is traced
    assert content(fixed) == content(graph.trace(network, tiny.spec()))


@pytest.mark.parametrize(
    ("shape", "batch", "free"),
    [
        ({"value_ints": [graph.BATCH]}, graph.BATCH, True),
        ({"value_ints": [-1, 12]}, graph.BATCH, True),
        ({"value_ints": [graph.BATCH, 12]}, graph.BATCH, False),
        ({"value": ir.tensor(np.array([graph.BATCH, 12]))}, graph.BATCH, False),
        ({"value_ints": [-1, 12]}, 4 * graph.BATCH, False),
    ],
    ids=["one constant", "none", "list", "tensor", "a multiple"],
)
def test_a_batch_that_cannot_be_replaced_is_found(shape, batch, free):
    images = ir.val("images", ir.DataType.UINT8, (graph.BATCH, 4, 3))
    constant = ir.node("Constant", [], shape)
    node = ir.node("Reshape", [images, constant.outputs[0]])
    node.outputs[0].shape = ir.Shape((batch, 12))
    nodes, opsets = [constant, node], {"": graph.OPSET}
    made = ir.Graph([images], node.outputs, nodes=nodes, opset_imports=opsets)
    assert graph.free_batch(made) == free
