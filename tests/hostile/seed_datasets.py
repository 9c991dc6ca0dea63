"""Valid data sets that the fuzzers start from."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from .mutations import Files
from .seeds import CLASSES, encoded, picture

CATEGORIES = [
    {"id": 10 + i, "name": c["name"], "isthing": int(bool(c["thing"]))}
    for i, c in enumerate(CLASSES)
]


def segment_ids(seed: int, size: tuple[int, int], count: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, count, (3, 4), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.NEAREST))


@cache
def coco_panoptic() -> Files:
    document: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": CATEGORIES}
    files: Files = {}
    for index in range(2):
        ids = segment_ids(index, (28, 40), 4)
        files[f"images/{index}.jpg"] = encoded(picture(seed=index), "JPEG")
        labels = np.stack([ids, ids * 0, ids * 0], -1).astype(np.uint8)
        files[f"panoptic/{index}.png"] = encoded(Image.fromarray(labels), "PNG")
        document["images"].append(
            {"id": index, "file_name": f"{index}.jpg", "height": 28, "width": 40}
        )
        info = [{"id": int(i), "category_id": 9 + int(i), "iscrowd": int(i == 3)}
                for i in np.unique(ids) if i]  # fmt: skip
        document["annotations"].append(
            {"image_id": index, "file_name": f"{index}.png", "segments_info": info}
        )
    return files | {"panoptic.json": json.dumps(document).encode()}


@cache
def coco_instances() -> Files:
    polygon = [[2.0, 2.0, 20.0, 3.0, 18.0, 20.0, 4.0, 15.5]]
    counts = {"size": [28, 40], "counts": [100, 300, 720]}
    packed = {"size": [28, 40], "counts": "c3a0;" + "0" * 48 + "e8"}
    annotations = [
        {"id": i, "image_id": i % 2, "category_id": 12, "segmentation": shape, "area": 200.0,
         "iscrowd": int(i == 1), "bbox": [2, 2, 18, 18]}
        for i, shape in enumerate((polygon, counts, packed))
    ]  # fmt: skip
    document = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 28, "width": 40} for i in range(2)
        ],
        "annotations": annotations, "categories": CATEGORIES,
    }  # fmt: skip
    pictures = {f"images/{i}.jpg": encoded(picture(seed=i), "JPEG") for i in range(2)}
    return pictures | {"annotations/instances_val2017.json": json.dumps(document).encode()}


@cache
def label_folder() -> Files:
    files: Files = {"classes.json": json.dumps(CLASSES).encode()}
    for index in range(2):
        labels = segment_ids(index, (28, 40), 3).copy()
        labels[:3] = 255
        files[f"images/{index}.jpg"] = encoded(picture(seed=index), "JPEG")
        files[f"labels/{index}.png"] = encoded(Image.fromarray(labels), "PNG")
    return files
