"""COCO instance labels that partly match the predictions of a model, and data sets from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import made_up
import numpy as np
import tiny
from pycocotools import mask as coco_mask

from eomt_deploy import Segmenter

THINGS = [c["name"] for c in tiny.CLASSES if c["thing"]]
SIZES = {"a": (61, 80), "b": (96, 75), "c": (64, 64)}


def labelled_images(model: Path, folder: Path) -> tuple[Segmenter, dict[str, Any], Path]:
    """A model, labels that partly match its predictions, and the images by name, e.g. `a.jpg`.

    The labels are what the model itself finds, as polygons, some of them shifted or of another
    class: a random network would agree with no others.
    """
    rng = np.random.default_rng(0)
    document: dict[str, Any] = {"images": [], "annotations": []}
    document["categories"] = [{"id": 1 + i, "name": name} for i, name in enumerate(THINGS)]
    segmenter = Segmenter(model)
    for number, (name, size) in enumerate(SIZES.items(), 100):
        made_up.random_image(number, size).save(folder / f"{name}.jpg", quality=95)
        entry = {"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]}
        document["images"].append(entry)
        found = sorted(segmenter.predict(folder / f"{name}.jpg").segments, key=lambda s: -s.score)
        for segment in found[:9]:
            shift = rng.choice([0, 0, 2, 9])
            mask = segment.mask.astype(np.uint8)
            rings, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            polygons = [(r.ravel() + float(shift)).tolist() for r in rings if len(r) >= 3]
            if not polygons:
                continue
            annotation = {
                "id": len(document["annotations"]) + 1,
                "image_id": number,
                "category_id": 1 + THINGS.index(segment.class_name),
                "segmentation": polygons,
                "iscrowd": 0,
            }
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
            annotation["area"] = float(coco_mask.area(rle))
            annotation["bbox"] = coco_mask.toBbox(rle).tolist()
            document["annotations"].append(annotation)
    assert len(document["annotations"]) > 10
    return segmenter, document, folder


def write(root: Path, document: Any, name: str, images: Path, folder: str) -> Path:
    """Write a data set: a JSON file with this name, and the images in a folder."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for path in images.iterdir():
        (root / folder / path.name).write_bytes(path.read_bytes())
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(document))
    return root


def renamed(document: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    images = [i | {"file_name": rename(i["file_name"])} for i in document["images"]]
    return document | {"images": images}


def with_root(document: dict[str, Any]) -> dict[str, Any]:
    """As from Roboflow, with a root category 0 that has the name of the project."""
    root = {"id": 0, "name": "my-project", "supercategory": "none"}
    return document | {"categories": [root, *document["categories"]]}
