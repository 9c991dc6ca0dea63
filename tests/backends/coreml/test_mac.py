"""`examples/coreml/verify_on_mac.py`, as far as it runs without Core ML."""

from __future__ import annotations

import json
import os
import platform
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from eomt_deploy.backends.certification import open_reference
from eomt_deploy.backends.coreml.build import build_core_ml
from eomt_deploy.backends.coreml.config import CoreMlConfig
from eomt_deploy.errors import UsageError
from eomt_deploy.model_file import read_core_ml

pytestmark = [
    pytest.mark.external,
    pytest.mark.skipif(find_spec("coremltools") is None, reason="coremltools is not installed"),
]
ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "examples" / "coreml" / "verify_on_mac.py"
SCENE = ROOT / "examples" / "scenes" / "scene-1.png"


@pytest.fixture(scope="module")
def program():
    return SimpleNamespace(**runpy.run_path(str(PROGRAM)))


@pytest.fixture(scope="module")
def package(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("certified") / "m.mlpackage"
    build_core_ml(CoreMlConfig(exported("panoptic"), path, check=False))
    return path


def test_the_comparison_and_the_certificate(program, package, exported):
    from eomt_deploy.backends.coreml.evaluation import EvaluatedPackage

    onnx = exported("panoptic")
    program.check_source(package, onnx)
    limits = program.limits_of(package)
    with (
        EvaluatedPackage(package, read_core_ml(package).spec) as engine,
        open_reference(onnx) as reference,
    ):
        good = program.measure(engine, reference, [SCENE], limits)
        strict = replace(limits, max_relative_error=0.0)
        bad = program.measure(engine, reference, [SCENE], strict)
    assert good["problems"] == []
    assert good["milliseconds"] > 0
    assert len(bad["problems"]) == 1
    for units, passed in (({"A": good}, True), ({"A": good, "B": bad}, False), ({}, False)):
        data = json.loads(json.dumps(program.certificate(package, onnx, units)))
        assert data["passed"] is passed
        assert data["weights_sha256"] == read_core_ml(package).facts["weights_sha256"]


def test_another_model_is_refused(program, package, exported):
    with pytest.raises(UsageError, match="is not the model of"):
        program.check_source(package, exported("semantic"))


def test_the_image_and_the_devices(program):
    images = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    image = program.to_image(images)
    assert (image.mode, image.size) == ("RGB", (4, 2))
    np.testing.assert_array_equal(np.asarray(image), images[0])

    from coremltools.models import compute_device

    class NeuralEngine:
        preferred_compute_device = object.__new__(compute_device.MLNeuralEngineComputeDevice)

    class Cpu:
        preferred_compute_device = object.__new__(compute_device.MLCPUComputeDevice)

    usages = {"ios18.linear": NeuralEngine, "ios18.gelu": Cpu, "const": None}
    names = ["const", "ios18.linear", "ios18.linear", "ios18.gelu"]
    operations = [SimpleNamespace(operator_name=name) for name in names]
    found = program.count_devices(operations, lambda o: usages[o.operator_name])
    assert found == {"NeuralEngine": {"linear": 2}, "CPU": {"gelu": 1}}


@pytest.mark.skipif(platform.system() == "Darwin", reason="this system has Core ML")
def test_other_systems_certify_nothing(package, exported):
    done = subprocess.run(
        [sys.executable, PROGRAM, package, exported("panoptic"), SCENE],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "nothing was certified" in done.stderr
    assert not list(package.parent.glob("*.json"))
