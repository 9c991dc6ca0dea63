"""The support matrix: its cells, what this machine can do about them, and regressions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.errors import UsageError
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.spec import TASKS
from eomt_deploy.support import matrix
from eomt_deploy.support.families import FAMILIES
from eomt_deploy.support.matrix import Cell, Finding, cells, prospect, regressions

CELL = Cell("DINOv2", "semantic", "fp16", "onnxruntime")
GOOD = Finding(CELL, "verified", "", 0.001, "fp16")


def test_every_backend_is_tried_with_every_task():
    for name in BACKENDS:
        found = cells([name])
        assert {cell.task for cell in found} == set(TASKS)
        assert {(cell.family, cell.precision) for cell in found} == {
            (family, precision) for family in FAMILIES for precision in PRECISIONS
        }


def test_a_part_of_the_matrix():
    found = cells(["openvino", "web"], ["DINOv3"])
    assert {(cell.backend, cell.family) for cell in found} == {
        ("openvino", "DINOv3"), ("web", "DINOv3"),
    }  # fmt: skip
    assert set(found) < set(cells())


@pytest.mark.parametrize("arguments", [(["nix"],), ([], ["nix"])])
def test_an_unknown_name(arguments):
    with pytest.raises(UsageError, match=r"no (backend|family) 'nix'"):
        cells(*arguments)


def test_what_this_machine_can_do(monkeypatch):
    assert prospect("openvino", "fp8") == ("not possible", "eomt-deploy has no FP8 for OpenVINO")
    assert prospect("openvino", "fp32") == ("can verify", "")
    monkeypatch.setattr(matrix, "current_gpu", lambda: None)
    assert prospect("tensorrt-rtx", "fp8") == ("can build", "the NVIDIA driver reports no GPU")
    monkeypatch.setattr(type(BACKENDS["openvino"]), "installed", False)
    assert prospect("openvino", "fp32") == ("not here", "openvino is not installed")


def test_the_text_of_a_finding():
    assert GOOD.text == "0.1%"
    assert replace(GOOD, arithmetic="fp32", error=0.00123).text == "0.1%, computed in fp32"
    assert Finding(CELL, "failed", "the logits differ").text == "the logits differ"
    assert Finding.from_dict(json.loads(json.dumps(GOOD.to_dict()))) == GOOD


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (GOOD, ""),
        (replace(GOOD, error=0.0029), ""),
        (replace(GOOD, error=0.0031), "DINOv2 semantic fp16 onnxruntime: the error was 0.1%"),
        (replace(GOOD, error=0.0031, arithmetic="fp32"), ""),
        (Finding(CELL, "failed", "the logits differ"), "now failed: the logits differ"),
        (Finding(CELL, "not possible", "no fp16"), "now not possible: no fp16"),
        (Finding(CELL, "builds", "the build did not run it"), "now builds"),
        (Finding(CELL, "not here", "not installed"), ""),
        (Finding(CELL, "inexact", "no VNNI"), ""),
    ],
)
def test_regressions(now, found):
    lines = list(regressions([GOOD], [now], same_cpu=True))
    assert len(lines) == bool(found)
    assert found in "".join(lines)


def test_what_is_not_a_regression():
    worse = replace(GOOD, error=0.5)
    assert list(regressions([GOOD], [worse], same_cpu=True))
    assert not list(regressions([GOOD], [worse], same_cpu=False))
    assert not list(regressions([], [worse], same_cpu=True))
    assert not list(regressions([Finding(CELL, "failed", "")], [worse], same_cpu=True))
    tiny = replace(GOOD, error=1e-7)
    assert not list(regressions([tiny], [replace(GOOD, error=9e-6)], same_cpu=True))
    int8 = replace(tiny, cell=replace(CELL, precision="int8"))
    assert not list(regressions([int8], [replace(int8, error=0.019)], same_cpu=True))
    assert list(regressions([int8], [replace(int8, error=0.021)], same_cpu=True))
    # A machine with a GPU verified it, and this one can only build it.
    gpu = replace(GOOD, cell=replace(CELL, backend="web"))
    built = replace(gpu, status="builds", error=None)
    assert not list(regressions([gpu], [built], same_cpu=True))


def test_the_quick_command_tries_nothing(cli):
    code, out, _ = cli("doctor", "--matrix")
    assert code == 0
    assert all(name in out for name in (*BACKENDS, *PRECISIONS, *FAMILIES))
    code, out, _ = cli("doctor", "--matrix", "--json", "--backend", "web", "--family", "DINOv3")
    assert code == 0
    found = {one["precision"]: one for one in json.loads(out)}
    assert list(found) == list(PRECISIONS)
    assert found["fp8"]["status"] == "not possible"
    assert found["fp8"]["reason"] == "eomt-deploy has no FP8 for ONNX Runtime Web"
    assert {(one["backend"], one["family"]) for one in found.values()} == {("web", "DINOv3")}
    program = (
        "import sys; from eomt_deploy.cli import main\n"
        "try: main(['doctor', '--matrix'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr


def test_options_that_need_the_matrix(cli):
    for options in (["--run"], ["--backend", "openvino"], ["--family", "DINOv2"]):
        code, _, err = cli("doctor", *options)
        assert code == 2
        assert "need --matrix" in err
    code, _, err = cli("doctor", "--matrix", "--backend", "nix")
    assert code == 2
    assert "There is no backend 'nix'" in err
