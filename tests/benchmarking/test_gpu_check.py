from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import gpu_engines
import pytest
import tiny
from host_twin import HostDevice, twin
from processing_times import processing_times
from simulated_onnxruntime import SimulatedOnnxRuntime

from eomt_deploy.processing.cuda.kernels import Kernels


@pytest.fixture(scope="module")
def gpu_check():
    path = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check"]


def test_what_is_well_is_no_problem(gpu_check):
    rung = {"label_agreement": 0.999, "kernels_equal_cpu": 1.0, "error": 0.1}
    rung |= {"certificate_error": None}
    assert gpu_check.problems("ladder", {"tensorrt fp16": rung}) == []
    assert gpu_check.problems("tests", {"passed": 3, "failed": [], "skipped": {"why": 2}}) == []
    assert gpu_check.problems("speed", {"skipped": "no TensorRT"}) == []


@pytest.mark.parametrize(
    ("name", "found", "words"),
    [
        ("ladder", {"tensorrt int8": {"failed": "no kernel"}}, "tensorrt int8: failed: no kernel"),
        (
            "ladder",
            {"tensorrt fp16": {"label_agreement": 0.5}},
            "label_agreement is outside",
        ),
        (
            "ladder",
            {"tensorrt fp16": {"kernels_equal_cpu": 0.9}},
            "kernels_equal_cpu is outside",
        ),
        ("half-precision", {"fp16": {"finite": False}}, "finite is outside its limits: False"),
        ("speed", {"tensorrt fp16": {"grown_bytes": 10**8}}, "outside its limits: 100000000"),
        ("tests", {"failed": [["a::b", "boom"]]}, "boom"),
        ("tests", {"failed": "pytest ended with -11"}, "-11"),
    ],
)
def test_what_failed_is_said(gpu_check, name, found, words):
    (line,) = gpu_check.problems(name, found)
    assert words in line


def test_onnxruntime_on_a_simulated_gpu(gpu_check, tmp_path, monkeypatch):
    """The section runs on the CPU, with the tiny network."""
    monkeypatch.setattr(
        "eomt_deploy.processing.cuda.processor.load_kernels", lambda gpu: Kernels(gpu, twin())
    )
    monkeypatch.setattr(gpu_engines, "PHOTO", (60, 90))
    found = gpu_engines.onnxruntime_gpu(
        tmp_path,
        lambda path: SimulatedOnnxRuntime(path, HostDevice(tmp_path)),
        device="cpu",
        cases=[("S", "fp16")],
        rounds=2,
        networks=lambda shape: (tiny.network(), tiny.spec()),
    )
    row = found["EoMT-S fp16"]
    assert row["cuda_graph"] == "on"
    assert row["error"] < 0.02
    assert gpu_check.problems("onnxruntime", found) == []


def test_processing_times_on_the_host_twin(gpu_check, tmp_path):
    """The section runs, and finds that GPU and CPU agree; the times of a host twin mean nothing."""
    found = processing_times(
        HostDevice(tmp_path), {"90x160": (90, 160)}, 1, kernels=twin(), side=64
    )
    assert list(found) == [
        "panoptic 90x160", "instance 90x160", "semantic 90x160", "instance 90x160, overlapping",
        "semantic 90x160, overlapping", "semantic 90x160, worst case",
    ]  # fmt: skip
    assert gpu_check.problems("processing", found) == []
    assert all(row["gpu_post_ms"] > 0 for row in found.values())
    wrong = {"panoptic": {"inputs_equal": False}}
    assert "inputs_equal is outside" in gpu_check.problems("processing", wrong)[0]
