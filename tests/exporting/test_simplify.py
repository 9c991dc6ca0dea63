"""The graph is simplified with a few of onnxscript's rules, and is the same as with all of them."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest
import tiny
from onnxscript.optimizer import optimize_ir

from eomt_deploy.exporting import graph
from eomt_deploy.network.folds import fold

ROTARY = {"norm_eps": 1e-5, "upscale_norm_eps": 1e-5, "rope_theta": 100.0, "depth": 1,
          "num_blocks": 1}  # fmt: skip


def content(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


# These networks are also exported by other tests, so their graphs are traced already.
@pytest.mark.parametrize(
    ("arch", "batch"),
    [({}, None), ({}, 2), ({"mlp": "swiglu"}, None), (ROTARY, None)],
    ids=["dynamic", "batch 2", "swiglu", "rotary"],
)
def test_the_rules_that_are_left_out_change_nothing(monkeypatch, arch, batch):
    simplify, compared = graph.simplify, []

    def compare(model: ir.Model) -> None:
        wanted, found = model.clone(), model.clone()
        optimize_ir(wanted)
        simplify(found)
        assert content(found) == content(wanted)
        compared.append((len(model.graph), len(found.graph)))
        simplify(model)

    monkeypatch.setattr(graph, "simplify", compare)
    graph.trace(fold(tiny.network(replace(tiny.ARCH, **arch))), tiny.spec(batch=batch))
    ((traced, left),) = compared
    assert left < 0.6 * traced
