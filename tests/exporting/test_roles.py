from __future__ import annotations

from collections import Counter

import tiny
from tiny import ARCH

from eomt_deploy.exporting.roles import ROLES, block_of, module_of, role_of


def test_every_node_has_a_role_and_a_module_that_exists(traced):
    nodes = list(traced().graph)
    modules = {name for name, _ in tiny.network().named_modules()}
    assert {module_of(node) for node in nodes} <= modules
    roles = Counter(role_of(node) for node in nodes)
    assert set(roles) == set(ROLES)
    assert roles["softmax"] == ARCH.depth
    products = [n for n in nodes if n.op_type == "MatMul"]
    assert Counter(role_of(n) for n in products) == {
        "projection": 2 * ARCH.depth,
        "attention": 2 * ARCH.depth,
        "mlp": 2 * ARCH.depth,
        "mask_head": 3,
        "class_head": 1,
        "mask_product": 1,
    }


def test_names_are_those_of_the_checkpoint(traced):
    model = traced()
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)
    assert "backbone.blocks.2.mlp.fc1/MatMul" in names
    node = next(n for n in model.graph if n.name == "backbone.blocks.2.mlp.fc1/MatMul")
    assert node.inputs[1].name == "backbone.blocks.2.mlp.fc1.weight"
    assert node.outputs[0].name == node.name
    assert block_of(node) == 2
    assert [v.name for v in model.graph.outputs] == ["class_logits", "mask_logits"]
