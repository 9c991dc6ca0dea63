from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import tiny

from eomt_deploy.exporting import graph
from eomt_deploy.spec import Task


@pytest.fixture
def saved(lowered: Callable, tmp_path: Path) -> Callable[..., Path]:
    """The tiny network as ONNX in any precision and batch size."""

    def save(precision: str, batch: int | None = None, task: Task = "panoptic") -> Path:
        path = tmp_path / f"{precision}.onnx"
        spec = tiny.spec(task, precision, batch)
        onnx.save(graph.to_proto(lowered(precision, batch, task), spec), path)
        return path

    return save
