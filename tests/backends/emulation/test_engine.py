from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.emulation.engine import EmulatedEngine, emulate
from eomt_deploy.errors import ModelFileError
from eomt_deploy.exporting import graph


def small_graph() -> onnx.ModelProto:
    """x * 300 * 300 / 300 / 300 in FP16, whose range 90,000 exceeds."""
    scale = numpy_helper.from_array(np.full(1, 300, np.float16), "scale")
    operators = [("Mul", "x", "a"), ("Mul", "a", "b"), ("Div", "b", "c"), ("Div", "c", "y")]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(op, [left, "scale"], [out]) for op, left, out in operators],
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2])],
            [scale],
            value_info=[
                helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2]) for name in "abc"
            ],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def test_an_overflow_that_the_cpu_hides_shows():
    x = np.array([1, 0.5], np.float16)
    assert np.isfinite(run(small_graph(), x)).all()  # the reason why the emulation exists
    emulated = emulate(ir.from_proto(small_graph()))
    emulated.graph.inputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    found = run(ir.to_proto(emulated), x.astype(np.float32))
    assert np.isinf(found[0])
    assert found[1] == 0.5


def test_every_value_is_one_that_the_type_holds(lowered):
    class_logits, mask_logits = EmulatedEngine(lowered("fp16")).run(tiny.images(2))
    for found in (class_logits, mask_logits):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))


def test_only_by_name(lowered, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(graph.to_proto(lowered("bf16"), tiny.spec(precision="bf16")), path)
    with open_engine(path, backend="emulation") as engine:
        assert (engine.backend, engine.path) == ("emulation", path)
        assert engine.run(tiny.images(1))[0].shape == (1, 12, 6)


def test_not_onnx(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(ModelFileError, match="not an ONNX model"):
        open_engine(tmp_path / "m.onnx", backend="emulation")


def test_eval_and_compare_show_what_a_gpu_would_give(lowered, exported, image_path, tmp_path, cli):
    path = tmp_path / "m.onnx"
    spec = tiny.spec(precision="bf16")
    onnx.save(graph.to_proto(lowered("bf16"), spec), path)
    code, out, err = cli(
        "compare", exported("panoptic"), path, image_path, "--backend", "emulation"
    )
    assert code == 0, err
    assert "label agreement" in out
    code, _, err = cli(
        "predict", path, image_path, "-o", tmp_path / "seen.png", "--backend", "emulation"
    )
    assert code == 0, err
    assert "emulation on cpu" in err
