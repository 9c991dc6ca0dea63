from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.emulation.engine import EmulatedEngine
from eomt_deploy.backends.onnxruntime.engine import (
    CPU,
    OnnxRuntimeEngine,
    gains_from_reshaping,
)
from eomt_deploy.backends.onnxruntime.graph import fuse_attention, reshaped
from eomt_deploy.contract import OUTPUTS
from eomt_deploy.devices import is_x86
from eomt_deploy.errors import DeviceError, ModelFileError
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.lowering import Lowering, lower
from eomt_deploy.network.folds import fold

LOW = ["fp16", "bf16", "int8", "fp8"]
LINEARS = 4 * tiny.ARCH.depth


def kernels(model, tmp_path):
    """Count the operators of the graph that ONNX Runtime optimized."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model, options, providers=[CPU])
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def test_int8_linears_run_as_integers_and_attention_is_fused(saved, tmp_path):
    found = kernels(reshaped(saved("int8")), tmp_path)
    assert found["MatMulIntegerToFloat"] == LINEARS
    assert found["MultiHeadAttention"] == tiny.ARCH.depth
    assert found["Softmax"] == 0
    assert found["Cast"] == 1  # of the image
    # The reason for the rewrite: in the exported graph no layer runs in integers.
    assert kernels(saved("int8").read_bytes(), tmp_path)["MatMulIntegerToFloat"] == 0


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize(("precision", "allowed"), zip(LOW, [1e-2, 1e-1, 3e-2, 1e-1], strict=True))
def test_low_precision_is_near_what_the_graph_says(saved, lowered, precision, allowed, batch):
    wanted = EmulatedEngine(lowered(precision)).run(tiny.images(3))
    with open_engine(saved(precision, batch), backend="onnxruntime", device="cpu") as engine:
        assert engine.arithmetic == "fp32"
        kinds = "int8 and fp32" if precision == "int8" else "fp32"
        assert engine.where == f"onnxruntime on cpu, computing in {kinds}"
        assert engine.spec.precision == precision
        found = engine.run(tiny.images(3))
    for have, want in zip(found, wanted, strict=True):
        assert have.dtype == np.float32
        assert np.abs(have - want).max() < allowed * np.abs(want).max()


def test_fp16_is_the_same_but_for_the_rounding_in_between(saved):
    path = saved("fp16")
    images = tiny.images(2)
    as_exported = OnnxRuntimeEngine(path, reshape=False)
    assert as_exported.arithmetic is None
    found, wanted = OnnxRuntimeEngine(path).run(images), as_exported.run(images)
    for have, want in zip(found, wanted, strict=True):
        assert np.abs(have - want).max() < 1e-2 * np.abs(want).max()


def test_fp32_exceptions_leave_no_casts_behind(traced, tmp_path):
    spec = tiny.spec(precision="fp16")
    plan = Lowering("fp16", frozenset({"softmax"}), {"backbone.blocks.1.attn/MatMul"})
    mixed = describe(lower(traced(), plan), spec)
    path = tmp_path / "mixed.onnx"
    onnx.save(graph.to_proto(mixed, spec), path)
    assert Counter(n.op_type for n in onnx.load(path).graph.node)["Cast"] > 2
    found = kernels(reshaped(path), tmp_path)
    assert (found["Cast"], found["MultiHeadAttention"]) == (1, tiny.ARCH.depth)
    wanted = EmulatedEngine(mixed).run(tiny.images(2))
    for have, want in zip(OnnxRuntimeEngine(path).run(tiny.images(2)), wanted, strict=True):
        assert np.abs(have - want).max() < 1e-2 * np.abs(want).max()


def traced_shallow(family):
    """A network with two blocks, in FP32."""
    network = tiny.network(tiny.SHALLOW[family])
    return graph.to_proto(graph.trace(fold(network), tiny.spec()), tiny.spec())


def test_rotated_queries_stay_written_out():
    model = traced_shallow("dinov3")
    assert fuse_attention(model) == 0
    assert [node.op_type for node in model.graph.node].count("Softmax") == 2


@pytest.mark.parametrize(
    ("family", "gpu"), [("dinov2 giant", False), ("dinov2 giant", True), ("dinov3", True)]
)
def test_fusing_changes_nothing_but_the_last_digits(family, gpu):
    model = traced_shallow(family)
    session = ort.InferenceSession(model.SerializeToString(), providers=[CPU])
    wanted = session.run(OUTPUTS, {"images": tiny.images(2)})
    assert fuse_attention(model, gpu=gpu) == 2
    onnx.checker.check_model(model)
    assert "Softmax" not in [node.op_type for node in model.graph.node]
    session = ort.InferenceSession(model.SerializeToString(), providers=[CPU])
    for have, want in zip(session.run(OUTPUTS, {"images": tiny.images(2)}), wanted, strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5 * np.abs(want).max())


def test_a_softmax_in_fp32_is_part_of_the_fused_operator_on_a_gpu(traced):
    plan = Lowering("fp16", frozenset({"softmax"}))
    spec = tiny.spec(precision="fp16")
    model = graph.to_proto(describe(lower(traced(), plan), spec), spec)
    assert fuse_attention(model) == 0
    assert fuse_attention(model, gpu=True) == tiny.ARCH.depth
    onnx.checker.check_model(model)


def test_opened_as_they_are(saved, lowered, tmp_path, monkeypatch):
    assert not gains_from_reshaping(saved("fp32"))
    # Weights in a side file would have to be written again.
    spec = tiny.spec(precision="fp16")
    graph.save(lowered("fp16"), spec, tmp_path, "side.onnx", limit=0)
    assert reshaped(tmp_path / "side.onnx") is None
    assert OnnxRuntimeEngine(tmp_path / "side.onnx").run(tiny.images(1))[0].shape == (1, 12, 6)
    # In FP32 it would exceed the maximum size of a protobuf message.
    monkeypatch.setattr("eomt_deploy.backends.onnxruntime.graph.MAX_PROTOBUF_BYTES", 1000)
    assert reshaped(saved("fp16")) is None


def test_fp16_is_left_to_chips_that_may_have_it(saved, monkeypatch):
    assert gains_from_reshaping(saved("fp16")) == is_x86()
    monkeypatch.setattr("eomt_deploy.backends.onnxruntime.engine.is_x86", lambda: False)
    assert not gains_from_reshaping(saved("fp16"))
    assert gains_from_reshaping(saved("int8"))  # integer kernels need FP32 around them
    assert gains_from_reshaping(saved("bf16"))  # ONNX Runtime has no BF16 kernels


@pytest.mark.parametrize("damage", [
    lambda graph: next(n for n in graph.node if n.op_type == "Cast").ClearField("attribute"),
    lambda graph: next(n for n in graph.node if n.op_type == "Softmax").ClearField("input"),
    lambda graph: next(n for n in graph.node if n.op_type == "Softmax").ClearField("output"),
    lambda graph: setattr(graph.initializer[0], "data_type", 99),
    lambda graph: setattr(graph.initializer[0], "raw_data", graph.initializer[0].raw_data[:-1]),
])  # fmt: skip
def test_damaged_graphs_are_reported_by_onnx_runtime(saved, tmp_path, damage):
    model = onnx.load(saved("int8"))
    damage(model.graph)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="cannot be opened by ONNX Runtime"):
        open_engine(path, backend="onnxruntime", device="cpu")


def test_a_damaged_graph_is_one_error_and_nothing_on_the_terminal(saved, tmp_path, capfd):
    """ONNX Runtime itself would log the error and print that it tries again."""
    data = saved("int8").read_bytes()
    path = tmp_path / "damaged.onnx"
    names = data.replace(b"class_logits", b"class_\xe5\xe5gits")
    model = onnx.load(saved("int8"))
    model.graph.initializer[0].raw_data = b""
    for content in (names, model.SerializeToString()):
        path.write_bytes(content)
        with pytest.raises(ModelFileError):
            open_engine(path, backend="onnxruntime", device="cpu")
    assert capfd.readouterr() == ("", "")


def test_no_gpu_is_known_beforehand(saved, monkeypatch):
    """onnxruntime-gpu lists CUDA on every machine."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr("eomt_deploy.backends.onnxruntime.engine.cuda_device_count", lambda: 0)
    with open_engine(saved("bf16"), backend="onnxruntime") as engine:
        assert engine.where == "onnxruntime on cpu, computing in fp32"


def test_what_cannot_be_opened_is_reported(saved, lowered, tmp_path):
    # Without BF16 kernels, the error names the backends that have them.
    graph.save(lowered("bf16"), tiny.spec(precision="bf16"), tmp_path, "side.onnx", limit=0)
    with pytest.raises(DeviceError, match="bf16"):
        open_engine(tmp_path / "side.onnx", backend="onnxruntime", device="cpu")
    (tmp_path / "side.onnx.data").unlink()
    with pytest.raises(ModelFileError, match=r"\.onnx\.data"):
        open_engine(tmp_path / "side.onnx", backend="onnxruntime", device="cpu")
    complete = saved("int8").read_bytes()
    for cut in (1000, len(complete) // 2, len(complete) - 10):
        path = tmp_path / "cut.onnx"
        path.write_bytes(complete[:cut])
        with pytest.raises(ModelFileError):
            open_engine(path, backend="onnxruntime")
