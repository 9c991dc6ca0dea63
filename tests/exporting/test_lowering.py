from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny

from eomt_deploy.backends.emulation.engine import EmulatedEngine
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.config import PRECISIONS
from eomt_deploy.exporting.lowering import Lowering, lower
from eomt_deploy.exporting.roles import role_of

FLOAT16, BFLOAT16, FLOAT = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT


def computed(model: ir.Model, dtype: ir.DataType) -> list[ir.Node]:
    return [n for n in model.graph if n.outputs[0].dtype == dtype and n.op_type != "Cast"]


def test_fp16_reaches_every_node_and_weight(lowered):
    model = lowered("fp16")
    assert computed(model, FLOAT) == []
    assert [n.name for n in model.graph if n.op_type == "Cast"] == ["network/Cast"]
    types = {value.dtype for value in model.graph.initializers.values()}
    assert types == {FLOAT16, ir.DataType.INT64}
    assert [v.dtype for v in model.graph.outputs] == [FLOAT16, FLOAT16]


def test_layer_norm_statistics_stay_fp32_by_definition(lowered):
    norms = [n for n in lowered("fp16").graph if n.op_type == "LayerNormalization"]
    assert norms
    for node in norms:
        stash = node.attributes.get("stash_type")
        assert stash is None or stash.as_int() == onnx.TensorProto.FLOAT


def test_bf16_keeps_transposed_convolutions_and_outputs_fp32(lowered):
    model = lowered("bf16")
    high = [n for n in computed(model, FLOAT) if n.op_type != "Reshape"]
    assert {role_of(n) for n in high} == {"transposed_conv"}
    assert [v.dtype for v in model.graph.outputs] == [FLOAT, FLOAT]
    assert [v.name for v in model.graph.outputs] == ["class_logits", "mask_logits"]


def test_roles_and_single_nodes_stay_high(traced):
    one = "backbone.blocks.0/Add"
    model = lower(traced(), Lowering("fp16", frozenset({"softmax"}), frozenset({one})))
    high = {n.name for n in computed(model, FLOAT)}
    assert high == {one} | {f"backbone.blocks.{i}.attn/Softmax" for i in range(tiny.ARCH.depth)}


def test_the_original_is_untouched(traced):
    model = traced()
    before = ir.to_proto(model).SerializeToString()
    lower(model, Lowering("fp16"))
    lower(model, Lowering("bf16"))
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [None, 2])
def test_graphs_are_valid_and_close_to_fp32(lowered, tmp_path, precision, batch):
    model = lowered(precision, batch)
    path = tmp_path / "m.onnx"
    onnx.save(graph.to_proto(model, tiny.spec(precision=precision, batch=batch)), path)
    onnx.checker.check_model(path, full_check=True)
    images = tiny.images(2)
    want = EmulatedEngine(lowered("fp32", batch)).run(images)
    have = EmulatedEngine(path).run(images)
    limit = {"fp32": 1e-6, "fp16": 5e-3, "bf16": 4e-2, "int8": 8e-2, "fp8": 2e-1}[precision]
    for a, b in zip(have, want, strict=True):
        error = np.sqrt(np.square(a - b).mean() / np.square(b).mean())
        assert error < limit
        assert (precision == "fp32") == (error < 1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
def test_onnx_runtime_runs_the_very_file(lowered, tmp_path, precision):
    path = tmp_path / "m.onnx"
    onnx.save(graph.to_proto(lowered(precision), tiny.spec(precision=precision)), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = tiny.images(2)
    have = session.run(["class_logits", "mask_logits"], {"images": images})
    for a, b in zip(have, EmulatedEngine(path).run(images), strict=True):
        # Not bit-identical: a difference in the last bit can change the rounding to FP8.
        assert np.sqrt(np.square(a - b).mean() / np.square(b).mean()) < 0.05
