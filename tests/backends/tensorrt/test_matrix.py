"""Every precision, family and task, a dynamic and a fixed batch, built for SM 8.9 and 12.0."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import tiny

from eomt_deploy.backends.tensorrt.build import build
from eomt_deploy.backends.tensorrt.config import TensorRtConfig
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.calibration import observe
from eomt_deploy.exporting.config import PRECISIONS, QUANTIZED
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.lowering import Lowering, lower
from eomt_deploy.exporting.quantization import insert_qdq, quantize_layers
from eomt_deploy.network.folds import fold
from eomt_deploy.spec import TASKS

# The batch is fixed for one precision of each kind: floating-point numbers and quantized layers.
BUILDS = [*((precision, None) for precision in PRECISIONS), ("fp16", 2), ("int8", 2)]
# The task changes only the description, not the graph: each task is built at least twice.
CASES = [(*build, TASKS[number % len(TASKS)]) for number, build in enumerate(BUILDS)]
# The first family has every operator of the others, so it is built in every precision.
FAMILIES = [
    *(("dinov3 gated, patch 32", precision) for precision in PRECISIONS),
    ("dinov2 giant", "fp16"), ("dinov2 giant", "int8"), ("dinov3", "bf16"), ("dinov3", "fp8"),
]  # fmt: skip


@pytest.fixture
def saved(lowered, tmp_path):
    def save(precision, batch, task):
        path = tmp_path / "m.onnx"
        spec = tiny.spec(task, precision, batch)
        onnx.save(graph.to_proto(lowered(precision, batch, task), spec), path)
        return path

    return save


@pytest.mark.parametrize(("precision", "batch", "task"), CASES)
def test_compiles(saved, precision, batch, task):
    path = saved(precision, batch, task)
    config = TensorRtConfig(
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


@pytest.mark.parametrize(("family", "precision"), FAMILIES)
def test_every_family_compiles(tmp_path, family, precision):
    arch = tiny.SHALLOW[family]
    network = fold(tiny.network(arch))
    side = tiny.SIZE[0] // arch.patch_size
    spec = replace(tiny.spec(precision=precision), patch_size=arch.patch_size)
    assert spec.mask_size == (4 * side, 4 * side)
    model = describe(graph.trace(network, spec), spec)
    if precision in QUANTIZED:
        activations = observe(network, [tiny.images()])
        layers = quantize_layers(network, activations, precision, "minmax")
        model = insert_qdq(model, layers, layers)
    if precision != "fp32":
        model = describe(lower(model, Lowering(precision)), spec)
    (path,) = graph.save(model, spec, tmp_path, "m.onnx")
    config = TensorRtConfig(
        path,
        tmp_path / "m.engine",
        target="tensorrt-rtx",
        compute_capabilities=("8.9",),
    )
    assert build(config).sidecar.precision == precision
