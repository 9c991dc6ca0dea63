"""Every precision and task, with a free and a fixed batch, compiled for SM 8.9 and 12.0."""

from __future__ import annotations

import onnx
import pytest
import tiny

from eomt_deploy.building import BuildConfig, build
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.config import PRECISIONS
from eomt_deploy.spec import TASKS


@pytest.fixture
def saved(lowered, tmp_path):
    def save(precision, batch, task):
        path = tmp_path / "m.onnx"
        spec = tiny.spec(task, precision, batch)
        onnx.save(graph.to_proto(lowered(precision, batch, task), spec), path)
        return path

    return save


@pytest.mark.parametrize("batch", [None, 2], ids=["free", "fixed"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_compiles(saved, precision, task, batch):
    path = saved(precision, batch, task)
    config = BuildConfig(
        path,
        path.with_suffix(".engine"),
        target="tensorrt-rtx",
        compute_capabilities=("8.9", "12.0"),
    )
    report = build(config)
    assert report.sidecar.precision == precision
    assert report.sidecar.batch == ((1, 1, 8) if batch is None else (2, 2, 2))
    assert report.sidecar.compute_capabilities == ("8.9", "12.0")
    assert sum(report.layers.heavy.values()) > 20
    assert report.layers.higher == () or precision in ("bf16", "int8", "fp8")
