"""Rows of LibreYOLO: ``torch``, ``onnx`` and ``openvino`` (the last two export semantic models)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker import THREADS, Row, let_torchvision_import, paint

let_torchvision_import()

NAMES = {"panoptic": "panoptic", "instance": "segment", "semantic": "semantic"}
"""Our tasks in LibreYOLO's words."""
THINGS = 80


def _checkpoint(task: str, work: Path) -> Path:
    """The weights as a checkpoint of LibreYOLO, which has the names of transformers inside."""
    path = work / f"LibreEoMTs-{task}.pt"
    if not path.is_file():
        import torch
        from libreyolo.utils.serialization import wrap_libreyolo_checkpoint
        from safetensors.torch import load_file

        state = load_file(work / f"{task}-transformers" / "model.safetensors")
        count = len(state["class_predictor.bias"]) - 1
        more = {"thing_class_ids": list(range(THINGS))} if task == "panoptic" else {}
        wrapped = wrap_libreyolo_checkpoint(
            state, model_family="eomt", size="s", task=NAMES[task], nc=count,
            imgsz=512 if task == "semantic" else 640, **more,
        )  # fmt: skip
        torch.save(wrapped, path)
    return path


def _torch(task: str, work: Path) -> Any:
    from libreyolo import LibreEoMT

    return LibreEoMT(str(_checkpoint(task, work)), size="s", task=NAMES[task], device="cpu")


def _file(task: str, row: str, work: Path) -> Path:
    return work / f"libreyolo-{task}{'.onnx' if row == 'onnx' else '_openvino'}"


def prepare(task: str, row: str, work: Path) -> None:
    if row == "torch":
        _checkpoint(task, work)
    elif not _file(task, row, work).exists():
        _torch(task, work).export(format=row, output_path=str(_file(task, row, work)))


def load(task: str, row: str, work: Path) -> Row:
    import torch
    from libreyolo import LibreYOLO

    torch.set_num_threads(THREADS)
    file = str(_file(task, row, work))
    model = _torch(task, work) if row == "torch" else LibreYOLO(file, task=NAMES[task])

    def predict(path: str) -> Any:
        result = model(path, conf=0.5)
        return result[0] if isinstance(result, list) else result

    def labels(result: Any) -> Any:
        if task == "semantic":
            return result.semantic_mask.data
        if task == "panoptic":
            segments = result.panoptic.data
            found = result.panoptic.segments_info
            masks = [segments == info["id"] for info in found]
            classes = [info["category_id"] for info in found]
            return paint(masks, classes, tuple(segments.shape))
        size = tuple(result.orig_shape)
        if result.masks is None:
            return paint([], [], size)
        return paint(result.masks.data, result.boxes.cls, size)

    runtime = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino"}[row]
    return Row(predict, labels, ("libreyolo", runtime))
