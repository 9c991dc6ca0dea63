"""Rows of eomt-deploy. A row is named ``BACKEND PRECISION``, e.g. ``openvino int8``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker import THREADS, Row, paint

CLASSES = {"panoptic": "coco_panoptic", "instance": "coco_instance", "semantic": "ade20k"}


def _file(task: str, row: str, work: Path) -> Path:
    backend, precision = row.split(maxsplit=1)
    name = f"{task}.{precision.replace(' ', '-')}"
    return work / f"{name}{'.xml' if backend == 'openvino' else '.onnx'}"


def prepare(task: str, row: str, work: Path) -> None:
    """Export the network, and convert it for OpenVINO."""
    from eomt_deploy.backends.openvino.build import build_openvino
    from eomt_deploy.backends.openvino.config import OpenVinoConfig
    from eomt_deploy.exporting import ExportConfig, export
    from eomt_deploy.sources import built_in_images

    path = _file(task, row, work)
    stored, _, arithmetic = row.split(maxsplit=1)[1].partition(" + ")
    if stored == "bf16":
        stored, arithmetic = "fp32", "bf16"
    graph = work / f"{task}.{stored}.onnx"
    if not graph.is_file():
        calibrate = built_in_images()[0].parent if stored == "int8" else None
        export(
            ExportConfig(
                str(work / f"{task}-transformers"), graph, task=task, precision=stored,
                classes=Path(CLASSES[task]), calibrate=calibrate,
            )
        )  # fmt: skip
    if path.suffix == ".xml" and not path.is_file():
        build_openvino(OpenVinoConfig(graph, path, arithmetic=arithmetic or "fp32", check=False))


def load(task: str, row: str, work: Path) -> Row:
    from eomt_deploy import Segmenter

    backend = row.split()[0]
    segmenter = Segmenter(_file(task, row, work), backend=backend, threads=THREADS)

    def predict(path: str) -> Any:
        result = segmenter.predict(path, **({"score_threshold": 0.5} if task == "instance" else {}))
        if task == "instance":
            _ = [segment.mask for segment in result.segments]
        else:
            _ = result.class_map, result.segment_map  # one of them is an int32 map, made on demand
        return result

    def labels(result: Any) -> Any:
        if task == "semantic":
            return result.class_map
        found = result.segments
        return paint([s.mask for s in found], [s.class_id for s in found], result.size)

    return Row(predict, labels, ("eomt-deploy", backend))
