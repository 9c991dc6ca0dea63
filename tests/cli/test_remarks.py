"""What an engine remarks on how it runs reaches the user in every command."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import tiny
from PIL import Image

from eomt_deploy import cache
from eomt_deploy.backends.onnxruntime.engine import (
    CPU_INSTEAD_OF_GPU,
    UNCHANGED_GRAPH,
    OnnxRuntimeEngine,
)
from eomt_deploy.backends.tensorrt import inspect
from eomt_deploy.backends.tensorrt.compatibility import Machine
from eomt_deploy.backends.tensorrt.library import Line, complaints
from eomt_deploy.devices import is_x86
from eomt_deploy.exporting import graph
from eomt_deploy.sidecar import Sidecar, sha256, write_sidecar

REMARK = "The model is compiled again at each start"


@pytest.fixture
def model(exported, tmp_path, monkeypatch):
    """Opens with a remark, since its compiled model has no room in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(cache.LIMIT, "1K")
    return exported("semantic")


@pytest.fixture
def data(tmp_path):
    for name, array in (("images", tiny.images(1)[0]), ("labels", np.zeros((64, 64), np.uint8))):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / "data" / name / "a.png")
    return tmp_path / "data"


def test_predict_eval_bench_and_compare_show_them(cli, model, data, tmp_path):
    openvino = ("--backend", "openvino")
    image = data / "images" / "a.png"
    for command, name in (
        (("predict", model, image, "-o", tmp_path / "o"), ""),
        (("eval", model, "--data", data), ""),
        (("bench", "--engine", model, "--iterations", 6), "semantic.onnx@openvino: "),
        (("compare", model, model, image), f"{model}: "),
    ):
        code, _, err = cli(*command, *openvino)
        assert code == 0, err
        assert f"warning: {name}{REMARK}" in err, command[0]


def test_without_remarks_there_is_no_line(cli, exported, data, tmp_path):
    command = ("predict", exported("semantic"), data / "images", "-o", tmp_path / "o")
    _, _, err = cli(*command, "--backend", "onnxruntime")
    assert "warning" not in err


@pytest.fixture
def engine(tmp_path):
    """A plan that was built on another GPU of the same kind, with its description."""
    plan = tmp_path / "m.engine"
    plan.write_bytes(b"plan")
    sidecar = Sidecar(
        spec=tiny.spec(), target="tensorrt", library_version="11.4.0.106", precision="fp32",
        batch=(1, 1, 8), compute_capabilities=("8.9",), gpu="NVIDIA L4", driver="580.65.06",
        version_compatible=False, hardware_compatibility="none", stripped=False, plan_bytes=4,
        plan_sha256=sha256(plan), onnx="m.onnx", onnx_sha256="1" * 64, settings={},
    )  # fmt: skip
    write_sidecar(plan, sidecar)
    return plan


def test_inspect_finds_them_without_opening_the_engine(cli, engine, monkeypatch):
    here = Machine("11.4.0.106", "NVIDIA GeForce RTX 4090", "8.9", "580.65.06")
    monkeypatch.setattr(inspect, "this_machine", lambda target: here)
    _, out, _ = cli("inspect", engine)
    assert "runs here" in out
    assert "remarks" in out
    assert "optimized on NVIDIA L4" in out
    data = json.loads(cli("inspect", engine, "--json")[1])
    assert data["runs_here"] is True
    assert "NVIDIA GeForce RTX 4090" in data["remarks"][0]

    monkeypatch.setattr(inspect, "this_machine", lambda target: replace(here, gpu="NVIDIA L4"))
    _, out, _ = cli("inspect", engine)
    assert "remarks" not in out
    monkeypatch.setattr(inspect, "this_machine", lambda target: replace(here, gpu=None))
    code, out, _ = cli("inspect", engine)
    assert code == 0
    assert "no: This machine has no NVIDIA GPU" in out
    assert json.loads(cli("inspect", engine, "--json")[1])["runs_here"] is False


@pytest.mark.skipif(not is_x86(), reason="other CPUs may have kernels for FP16")
def test_onnx_runtime_says_that_it_could_be_faster(lowered, tmp_path):
    graph.save(lowered("fp16"), tiny.spec(precision="fp16"), tmp_path, "side.onnx", limit=0)
    with OnnxRuntimeEngine(tmp_path / "side.onnx", device="cpu") as engine:
        assert engine.remarks == (UNCHANGED_GRAPH,)


def test_onnx_runtime_says_that_it_left_the_gpu(exported, monkeypatch):
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: listed)
    module = sys.modules["eomt_deploy.backends.onnxruntime.engine"]
    monkeypatch.setattr(module, "cuda_device_count", lambda: 1)
    with OnnxRuntimeEngine(exported("semantic")) as engine:
        assert engine.device == "cpu"
        assert engine.remarks == (CPU_INSTEAD_OF_GPU,)


def test_library_warnings_are_separated_from_errors():
    lines = [
        Line("warning", "Using an engine plan file across different models of devices"),
        Line("error", "IRuntime::x: Error Code 1: out of memory"),
        Line("warning", "Using an engine plan file across different models of devices"),
    ]
    assert complaints(lines) == ["out of memory"]
    assert complaints(lines, kind="warning") == [lines[0].text]
