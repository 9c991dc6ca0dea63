"""Small synthetic data sets in every layout, written to disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tiny
from PIL import Image

CATEGORIES = [
    {"id": 10 + i, "name": c["name"], "isthing": int(c["thing"])}
    for i, c in enumerate(tiny.CLASSES)
]


def random_image(seed: int, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def segment_ids(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Blocks of the ids 0 (void) to 4, int [H, W]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 5, (3, 4), np.uint8))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.NEAREST)).astype(int)


def id_picture(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8))


def coco_panoptic(root: Path, count: int = 3) -> Path:
    """Write images/, panoptic/ and panoptic.json, with segment ids above 255 and one crowd."""
    (root / "images").mkdir(parents=True)
    (root / "panoptic").mkdir()
    document: dict[str, list] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for index in range(count):
        size = (40 + 4 * index, 60 - 3 * index)
        ids = segment_ids(index, size) * 100
        random_image(index, size).save(root / f"images/{index}.jpg")
        id_picture(ids).save(root / f"panoptic/{index}.png")
        document["images"].append(
            {"id": index, "file_name": f"{index}.jpg", "height": size[0], "width": size[1]}
        )
        info = [
            {"id": int(i), "category_id": 10 + int(i) // 100, "iscrowd": int(i == 400)}
            for i in np.unique(ids)
            if i
        ]
        document["annotations"].append(
            {"image_id": index, "file_name": f"{index}.png", "segments_info": info}
        )
    (root / "panoptic.json").write_text(json.dumps(document))
    return root


def label_folder(root: Path, count: int = 3) -> Path:
    """Write images/*.jpg and labels/*.png with the ids 0 to 4 and 255."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for index in range(count):
        labels = segment_ids(index, (40, 60)).astype(np.uint8)
        labels[:3] = 255
        random_image(index, (40, 60)).save(root / f"images/{index}.jpg")
        Image.fromarray(labels).save(root / f"labels/{index}.png")
    return root
