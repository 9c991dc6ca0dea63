from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.backends.tensorrt.config import TensorRtConfig, parse_batch
from eomt_deploy.errors import UsageError

RTX = {"target": "tensorrt-rtx"}


def config(**options):
    return TensorRtConfig(Path("m.onnx"), options.pop("output", Path("m.engine")), **options)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"output": Path("m.plan")}, r"m\.engine"),
        ({"target": "openvino"}, "tensorrt-rtx"),
        ({"batch": (2, 1, 8)}, "2:1:8"),
        ({"batch": (0, 1, 8)}, "0:1:8"),
        ({"workspace": 0}, "--workspace"),
        ({"optimization_level": 6}, "0 to 5"),
        ({"hardware_compatibility": "hopper"}, "ampere_plus"),
        ({"expect_precision": "fp64"}, "fp16"),
        ({"compute_capabilities": ("8.9",)}, "--compute-capability does not apply"),
        (RTX | {"compute_capabilities": ("9.0",)}, r"8\.9"),
        (RTX | {"compute_capabilities": ("8.9", "8.9")}, "twice"),
        (RTX | {"optimization_level": 3}, "--optimization-level does not apply"),
        (RTX | {"timing_cache": Path("x")}, "--timing-cache does not apply"),
        (RTX | {"version_compatible": True}, "--version-compatible does not apply"),
        (RTX | {"hardware_compatibility": "ampere_plus"}, "--hardware-compatible does not apply"),
    ],
)
def test_wrong_knobs_are_refused(options, word):
    with pytest.raises(UsageError, match=word):
        config(**options)


def test_right_knobs():
    assert config(**RTX, compute_capabilities=("8.9", "12.0"), workspace=1 << 30).batch is None
    assert config(version_compatible=True, hardware_compatibility="ampere_plus").tf32 is False


@given(st.tuples(*[st.integers(0, 999_999)] * 3))
def test_batches(batch):
    assert parse_batch("{}:{}:{}".format(*batch)) == batch


@pytest.mark.parametrize("text", ["", "8", "1:8", "1:1:8:8", "a:b:c", "1:-1:8"])
def test_batches_that_are_none(text):
    with pytest.raises(UsageError, match="1:1:8"):
        parse_batch(text)


def test_building_imports_neither_torch_nor_tensorrt():
    code = (
        "import sys, eomt_deploy.backends.tensorrt.build, eomt_deploy.cli\n"
        "heavy = ('torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
