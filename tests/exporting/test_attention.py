from __future__ import annotations

import numpy as np
import onnx
import pytest
import tiny
import torch

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.emulation.engine import EmulatedEngine
from eomt_deploy.backends.tensorrt.build import build
from eomt_deploy.backends.tensorrt.config import TensorRtConfig
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.attention import ATTENTION_OPSET, fuse_attention
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.lowering import Lowering, lower


@pytest.fixture
def fused(lowered, tmp_path):
    def make(precision):
        model = lowered(precision)
        assert fuse_attention(model) == 0
        spec = tiny.spec(precision=precision)
        path = tmp_path / f"{precision}.onnx"
        onnx.save(graph.to_proto(describe(model, spec), spec), path)
        onnx.checker.check_model(path, full_check=True)
        return path

    return make


def test_one_operator_a_block_and_the_same_numbers(fused, exported):
    path = fused("fp32")
    model = onnx.load(path)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Attention") == tiny.ARCH.depth
    assert "Softmax" not in operators
    assert model.opset_import[0].version == ATTENTION_OPSET
    images = tiny.images(3)
    with open_engine(path) as engine, open_engine(exported("panoptic")) as written:
        for found, want in zip(engine.run(images), written.run(images), strict=True):
            np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_compiles(fused, tmp_path, precision):
    config = TensorRtConfig(
        fused(precision),
        tmp_path / "m.engine",
        target="tensorrt-rtx",
        compute_capabilities=("8.9", "12.0"),
    )
    assert build(config).sidecar.precision == precision


def test_a_block_of_two_types_stays_written_out(traced):
    softmax = "backbone.blocks.1.attn/Softmax"
    model = lower(traced(), Lowering("fp16", islands={softmax}))
    assert fuse_attention(model) == 1
    operators = [node.op_type for node in model.graph]
    assert operators.count("Attention") == tiny.ARCH.depth - 1
    assert operators.count("Softmax") == 1


def test_emulation_rounds_inside_the_operator(lowered):
    plain, fused = lowered("fp16"), lowered("fp16")
    fuse_attention(fused)
    images = tiny.images(2)
    wanted, found = (EmulatedEngine(model).run(images) for model in (plain, fused))
    for have, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(have, want)


def test_scores_beyond_fp16_are_found_and_kept_or_fail(tmp_path, cli):
    """The scores are inside the operator, and CPU kernels compute them in FP32."""
    model = tiny.network()
    with torch.no_grad():
        model.backbone.layers[1].attn.qkv.weight[: -tiny.ARCH.width] *= 150
    files = tiny.write(tmp_path, model)
    command = (
        "export", files.checkpoint, "--task", "panoptic", "--classes", files.classes,
        "--precision", "fp16", "--attention", "fused", "-o", tmp_path / "m.onnx",
    )  # fmt: skip
    code, _, err = cli(*command, "--no-islands")
    assert code == 4, err
    assert not (tmp_path / "m.onnx").exists()
    code, _, err = cli(*command)
    assert code == 0, err
    assert "of 1 blocks is not fused" in err
