"""Rows of transformers: the reference that the others are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from weights import TASKS, THINGS, processor_of
from worker import THREADS, Row, paint


def prepare(task: str, row: str, work: Path) -> None:
    """Nothing: the weights are in the format of transformers."""


def load(task: str, row: str, work: Path) -> Row:
    torch.set_num_threads(THREADS)
    model = transformers.EomtForUniversalSegmentation.from_pretrained(work / f"{task}-transformers")
    model.eval()
    processor = processor_of(task)

    def predict(path: str) -> Any:
        image = Image.open(path).convert("RGB")
        inputs = processor(images=image, return_tensors="pt")
        sizes = [image.size[::-1]]
        with torch.inference_mode():
            outputs = model(**inputs)
            if task == "semantic":
                return processor.post_process_semantic_segmentation(outputs, sizes)[0]
            if task == "instance":
                return processor.post_process_instance_segmentation(outputs, sizes, 0.5)[0]
            stuff = list(range(THINGS, TASKS[task][2]))
            return processor.post_process_panoptic_segmentation(
                outputs, sizes, stuff_classes=stuff
            )[0]

    def labels(result: Any) -> Any:
        if task == "semantic":
            return result.numpy()
        segments = result["segmentation"].numpy()
        found = result["segments_info"]
        return paint(
            [segments == info["id"] for info in found], [info["label_id"] for info in found],
            segments.shape,
        )  # fmt: skip

    return Row(predict, labels, ("transformers", "torch"))
