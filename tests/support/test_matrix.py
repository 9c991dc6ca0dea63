"""The support matrix: its cells, and a trial of some of them."""

from __future__ import annotations

import json

import pytest

from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.spec import TASKS
from eomt_deploy.support.matrix import Cell, Finding, cells, try_cells
from eomt_deploy.support.networks import FAMILIES


def test_every_backend_is_tried_with_every_task():
    for name in BACKENDS:
        found = list(cells([name]))
        assert {cell.task for cell in found} == set(TASKS)
        assert {(cell.family, cell.precision) for cell in found} == {
            (family, precision) for family in FAMILIES for precision in PRECISIONS
        }


@pytest.mark.parametrize(
    ("family", "precision"), zip(FAMILIES, ("fp32", "fp16", "bf16", "int8"), strict=True)
)
def test_what_is_supported_is_verified(family, precision):
    """Each family, with another precision, on the backends that are quick to try."""
    quick = ["onnxruntime", "openvino", "emulation"]
    if precision == "int8":
        quick.remove("openvino")  # without VNNI, its sums of products overflow with random weights
    able = [name for name in quick if BACKENDS[name].installed]
    wanted = [c for c in cells(able) if (c.family, c.precision) == (family, precision)]
    for finding in try_cells(wanted):
        assert finding.status == "verified", finding
        assert finding.detail.endswith("%")
        assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding


def test_what_is_not_possible_is_not_tried():
    (found,) = try_cells([Cell("DINOv2", "semantic", "fp8", "openvino")])
    assert (found.status, found.detail) == ("not possible", "OpenVINO has no fp8")


def test_what_is_not_installed_is_not_tried(monkeypatch):
    monkeypatch.setattr(type(BACKENDS["openvino"]), "installed", False)
    (found,) = try_cells([Cell("DINOv2", "semantic", "fp32", "openvino")])
    assert (found.status, found.detail) == ("not here", "openvino is not installed")


def test_wrong_logits_are_found(monkeypatch):
    from eomt_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine

    run = OnnxRuntimeEngine.run

    def wrong(self, images):
        classes, masks = run(self, images)
        return (classes, -masks) if self.backend == "onnxruntime" else (classes, masks)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", wrong)
    (found,) = try_cells([Cell("DINOv2", "panoptic", "fp32", "onnxruntime")])
    assert found.status == "failed"
    assert "agreement" in found.detail


def test_the_command(cli, monkeypatch):
    """The table and the exit code; three combinations instead of all."""
    from eomt_deploy.support import matrix

    chosen = [Cell("DINOv2", "semantic", name, "emulation") for name in ("fp32", "fp8")]
    chosen.append(Cell("DINOv2", "semantic", "fp8", "openvino"))
    monkeypatch.setattr(matrix, "cells", lambda: iter(chosen))
    code, out, _ = cli("doctor", "--matrix", "--json")
    assert code == 0
    found = [(one["backend"], one["precision"], one["status"]) for one in json.loads(out)]
    assert found == [
        ("emulation", "fp32", "verified"), ("emulation", "fp8", "verified"),
        ("openvino", "fp8", "not possible"),
    ]  # fmt: skip
