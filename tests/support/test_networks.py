"""What the task of a model changes in its graph."""

from __future__ import annotations

import onnx

from eomt_deploy.spec import TASKS
from eomt_deploy.support.networks import write_model

CALIBRATED = (".input_scale", ".input_center", ".bias.corrected")


def test_the_task_changes_only_what_is_calibrated(tmp_path):
    """So each cell of the support matrix needs only one task. Each task resizes the calibration
    images in its own way, which changes the scales, the zero points and the corrected biases."""
    graphs = []
    for task in TASKS:
        write_model("DINOv2", task, "int8", tmp_path / f"{task}.onnx")
        graphs.append(onnx.load(tmp_path / f"{task}.onnx").graph)
    first, different = graphs[0], set()
    for graph in graphs[1:]:
        for field in ("node", "input", "output", "value_info"):
            assert getattr(graph, field) == getattr(first, field)
        for one, other in zip(first.initializer, graph.initializer, strict=True):
            assert (one.name, one.dims, one.data_type) == (other.name, other.dims, other.data_type)
            if one != other:
                different.add(one.name)
    assert different
    assert all(name.endswith(CALIBRATED) for name in different)
