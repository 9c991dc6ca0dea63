"""The certificate of an engine. TensorRT-RTX builds here, but this machine cannot run engines."""

from __future__ import annotations

from dataclasses import replace

import hand_made
import numpy as np
import onnx
import pytest
from changed_engine import Changed, same

from eomt_deploy.backends import certification, open_engine
from eomt_deploy.backends.bisection import CHECKED, mark
from eomt_deploy.backends.tensorrt import build as building
from eomt_deploy.backends.tensorrt.built import TensorRtFile
from eomt_deploy.errors import VerificationError
from eomt_deploy.sidecar import read_sidecar


@pytest.fixture
def config(made):
    pytest.importorskip("tensorrt_rtx")
    return made(precision="fp32")


@pytest.fixture
def runnable(monkeypatch):
    """ONNX Runtime runs the model instead of the engine, with changed outputs."""

    def install(change):
        def stand_in(path, *, built_from):
            inner = open_engine(built_from, backend="onnxruntime")
            engine = Changed(inner, change)
            engine.path = path
            return engine

        monkeypatch.setattr(building, "TensorRtEngine", stand_in)
        monkeypatch.setattr(building, "check_machine", lambda *_: ())

    return install


def test_without_the_gpu_the_engine_is_unchecked(config):
    report = building.build(config)
    assert report.certificate is None
    assert "was not compared with its ONNX model: This machine has no" in report.warnings[-1]
    assert "eomt-deploy verify made.engine --save" in report.warnings[-1]
    assert read_sidecar(config.output).certificate is None


def test_the_certificate_is_in_the_sidecar(config, runnable):
    runnable(same)
    report = building.build(config)
    found = TensorRtFile(config.output)
    assert found.certificate == report.certificate == read_sidecar(config.output).certificate
    assert found.certificate.relative_error < 1e-5
    found.save(hand_made.CERTIFICATE)
    assert read_sidecar(config.output).certificate == hand_made.CERTIFICATE


def test_a_wrong_engine_is_not_published(config, runnable):
    runnable(lambda class_logits, mask_logits: (class_logits[..., ::-1], mask_logits))
    with pytest.raises(VerificationError, match=r"made\.engine does not compute"):
        building.build(config)
    assert not config.output.parent.exists() or not list(config.output.parent.iterdir())


def test_rebuilding_keeps_the_settings(config, tmp_path):
    first = replace(config, workspace=1 << 28, tf32=True, check=False)
    building.build(first)
    again = TensorRtFile(first.output).rebuild(config.onnx, tmp_path / "again.engine", None)
    assert again == replace(first, output=tmp_path / "again.engine", batch=(1, 1, 8))


def test_marked_graphs_can_be_built(config, tmp_path):
    model = onnx.load(config.onnx)
    inner = model.graph.node[len(model.graph.node) // 2].output[0]
    marked = mark(model, inner, tmp_path / "marked.onnx")
    assert building.build(replace(config, onnx=marked, check=False)).files
    with certification.open_reference(marked) as reference:
        images = np.zeros((1, *reference.spec.image_size, 3), np.uint8)
        assert len(reference.run_named(images, [CHECKED])) == 1
