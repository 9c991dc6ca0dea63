"""The trial of the support matrix; a part of it must be as good as in `docs/support.json`."""

from __future__ import annotations

import json

import pytest
from support_page import check

from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.support import trial
from eomt_deploy.support.families import FAMILIES
from eomt_deploy.support.matrix import Cell
from eomt_deploy.support.trial import try_cells

SLOW = ("aotinductor", "tensorrt-rtx", "web")
"""Backends that compile for long or write much; their own tests build files, too."""
ELSEWHERE = ("coreml", "executorch")
"""Backends whose own tests contain this check: one worker then imports their large libraries."""


# Each precision, with another family.
PAIRS = [(list(FAMILIES)[n % len(FAMILIES)], name) for n, name in enumerate(PRECISIONS)]


@pytest.mark.parametrize(("family", "precision"), PAIRS)
def test_what_is_verified_is_verified_again(family, precision):
    check([name for name in BACKENDS if name not in SLOW + ELSEWHERE], family, precision)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "precision"), PAIRS)
def test_slow_backends_are_verified_again(family, precision):
    check(SLOW, family, precision)


def test_what_is_not_possible_is_not_tried():
    (found,) = try_cells([Cell("DINOv2", "semantic", "fp8", "openvino")])
    assert (found.status, found.reason) == ("not possible", "eomt-deploy has no FP8 for OpenVINO")


def test_what_is_not_installed_is_not_tried(monkeypatch):
    monkeypatch.setattr(type(BACKENDS["openvino"]), "installed", False)
    (found,) = try_cells([Cell("DINOv2", "semantic", "fp32", "openvino")])
    assert (found.status, found.reason) == ("not here", "openvino is not installed")


def test_wrong_logits_are_found(monkeypatch):
    from eomt_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine

    run = OnnxRuntimeEngine.run

    def wrong(self, images):
        classes, masks = run(self, images)
        return (classes, -masks) if self.backend == "onnxruntime" else (classes, masks)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", wrong)
    (found,) = try_cells([Cell("DINOv2", "panoptic", "fp32", "onnxruntime")])
    assert found.status == "failed"
    assert "agreement" in found.reason


@pytest.mark.parametrize(("overflows", "status"), [(True, "inexact"), (False, "failed")])
def test_the_reason_for_sums_that_overflow(overflows, status, monkeypatch):
    monkeypatch.setattr(trial, "may_overflow_in_int8", lambda: overflows)
    cell = Cell("DINOv2", "semantic", "int8", "openvino")
    found = trial._different(cell, "the logits differ")
    assert (found.status, "VNNI" in found.reason) == (status, overflows)


def test_the_command(cli, monkeypatch):
    """The table and the exit code; three combinations instead of all."""
    from eomt_deploy.cli import doctor

    chosen = [Cell("DINOv2", "semantic", name, "emulation") for name in ("fp32", "fp8")]
    chosen.append(Cell("DINOv2", "semantic", "fp8", "openvino"))
    monkeypatch.setattr(doctor, "cells", lambda backends, families: chosen)
    code, out, _ = cli("doctor", "--matrix", "--run", "--json")
    assert code == 0
    found = [(one["backend"], one["precision"], one["status"]) for one in json.loads(out)]
    assert found == [
        ("emulation", "fp32", "verified"), ("emulation", "fp8", "verified"),
        ("openvino", "fp8", "not possible"),
    ]  # fmt: skip
    monkeypatch.setattr(trial, "_try", lambda cell, *_: trial._different(cell, "too different"))
    code, out, _ = cli("doctor", "--matrix", "--run")
    assert code == 4
    assert "too different" in out
    assert "eomt-deploy has no FP8 for OpenVINO" in out
