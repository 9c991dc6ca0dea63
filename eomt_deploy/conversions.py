"""Conversions of a result to other formats; :class:`Segmentation` has them as methods."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from eomt_deploy.errors import MissingDependencyError, UsageError
from eomt_deploy.files import GENERATOR, PICTURE_FORMATS, save_picture, write_atomically
from eomt_deploy.pixel_labels import VOID_LABEL

if TYPE_CHECKING:
    import pandas
    import supervision

    from eomt_deploy.result import Segmentation
    from eomt_deploy.segments import Segment

Polygon = npt.NDArray[np.int32]
"""Corners [K, 2] of a polygon: x, y of pixel centres."""


def polygons_of(mask: npt.NDArray[np.bool_], tolerance: float) -> list[list[Polygon]]:
    """The outlines of a mask: for each connected part its outer ring, then the rings of its holes.

    Args:
        mask: boolean [H, W].
        tolerance: maximum distance in pixels between a simplified and the exact outline; 0 keeps
            every corner.
    """
    found, hierarchy = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    parts: dict[int, list[Polygon]] = {}
    for index, (ring, (_, _, _, parent)) in enumerate(
        zip(found, hierarchy[0] if len(found) else (), strict=True)
    ):
        if tolerance > 0:
            ring = cv2.approxPolyDP(ring, tolerance, True)
        corners = ring.reshape(-1, 2).astype(np.int32)
        # A part comes before its holes only in the hierarchy, not always in the list.
        if parent < 0:
            parts.setdefault(index, []).insert(0, corners)
        else:
            parts.setdefault(int(parent), []).append(corners)
    return list(parts.values())


def to_coco(result: Segmentation, image_id: int) -> list[dict[str, Any]]:
    """COCO annotations with RLE masks."""
    return [
        {
            "image_id": image_id,
            **coco_fields(segment),
            "segmentation": coco_rle(segment, result.size),
        }
        for segment in result.regions()
    ]


def label_image(result: Segmentation) -> Image.Image:
    """See ``Segmentation.label_image``."""
    if result.task != "semantic":
        return to_panoptic(result)[0]
    assert result.labels is not None
    dtype = np.uint8 if len(result.classes) <= VOID_LABEL else np.uint16
    return Image.fromarray(result.labels.astype(dtype, copy=False))


def to_panoptic(result: Segmentation) -> tuple[Image.Image, list[dict[str, Any]]]:
    """COCO's panoptic image and its ``segments_info``."""
    if result.task != "panoptic" or result.labels is None:
        raise UsageError(
            f"to_panoptic() needs a panoptic result, this one is {result.task}.",
            fix="Use to_coco() instead.",
        )
    channels = np.zeros((*result.size, 3), np.uint8)
    channels[..., 0] = result.labels & 255
    channels[..., 1] = result.labels >> 8
    info = [{"id": segment.id + 1, **coco_fields(segment)} for segment in result.segments]
    return Image.fromarray(channels), info


def to_supervision(result: Segmentation) -> supervision.Detections:
    """``supervision.Detections`` with masks and class names."""
    try:
        import supervision as sv
    except ImportError as error:
        raise MissingDependencyError(
            "to_supervision() needs the package supervision.", fix="pip install supervision"
        ) from error
    regions = result.regions()
    if not regions:
        return sv.Detections.empty()
    boxes = np.array([r.box for r in regions], np.float32)
    masks: Any
    if hasattr(sv, "CompactMask"):  # in newer versions: a few kB instead of N x H x W bytes
        rles = [r.rle for r in regions]
        masks = sv.CompactMask.from_coco_rle(rles, boxes - [0, 0, 1, 1], result.size)
    else:
        masks = np.stack([r.mask for r in regions])
    return sv.Detections(
        xyxy=boxes,
        mask=masks,
        confidence=None if np.isnan(result.scores).all() else result.scores,
        class_id=np.array([r.class_id for r in regions]),
        data={"class_name": np.array([r.class_name for r in regions])},
    )


MASK_FORMATS = ("polygons", "rle")


def to_dict(result: Segmentation, tolerance: float, masks: str) -> dict[str, Any]:
    """Task, size, and for each region its values and its mask."""
    if masks not in MASK_FORMATS:
        raise UsageError(
            f"masks must be {' or '.join(map(repr, MASK_FORMATS))}, got {masks!r}.",
            fix="Use masks='rle' for exact masks.",
        )

    def mask_of(segment: Segment) -> Any:
        if masks == "rle":
            return coco_rle(segment, result.size)
        return [[ring.tolist() for ring in part] for part in segment.polygons(tolerance)]

    return {
        "task": result.task,
        "size": list(result.size),
        "segments": [{**values(segment), masks: mask_of(segment)} for segment in result.regions()],
    }


def to_geojson(result: Segmentation, tolerance: float) -> dict[str, Any]:
    """A GeoJSON FeatureCollection (RFC 7946) in pixel coordinates, y pointing down."""
    features = []
    for segment in result.regions():
        parts = [[closed(ring) for ring in part] for part in segment.polygons(tolerance)]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "MultiPolygon", "coordinates": parts},
                "properties": values(segment),
            }
        )
    return {"type": "FeatureCollection", "features": features}


def to_labelme(result: Segmentation, image_path: str, tolerance: float) -> dict[str, Any]:
    """The annotation file of LabelMe; its polygons have no holes."""
    shapes = [
        {
            "label": segment.class_name,
            "points": part[0].tolist(),
            "group_id": segment.id if segment.thing else None,
            "shape_type": "polygon",
            "flags": {},
        }
        for segment in result.regions()
        for part in segment.polygons(tolerance)
        if len(part[0]) >= 3
    ]
    return {
        "version": "5.0.0", "flags": {}, "shapes": shapes, "imagePath": image_path,
        "imageData": None, "imageHeight": result.size[0], "imageWidth": result.size[1],
    }  # fmt: skip


def to_cvat(result: Segmentation, name: str) -> str:
    """The masks of one image in the XML format "CVAT for images 1.1"."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    height, width = result.size
    image = ElementTree.SubElement(
        root, "image", id="0", name=name, width=str(width), height=str(height)
    )
    for segment in result.regions():
        if not segment.area:
            continue
        x0, y0, x1, y1 = segment.box
        inside = segment.mask[y0:y1, x0:x1].reshape(-1)
        edges = np.flatnonzero(np.diff(inside.astype(np.int8))) + 1
        lengths = np.diff([0, *edges, inside.size]).tolist()
        if inside[0]:
            lengths.insert(0, 0)  # the first run is outside of the mask
        ElementTree.SubElement(
            image, "mask", label=segment.class_name, source="auto", occluded="0",
            rle=", ".join(map(str, lengths)), left=str(x0), top=str(y0), width=str(x1 - x0),
            height=str(y1 - y0), z_order="0",
        )  # fmt: skip
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def to_pandas(result: Segmentation) -> pandas.DataFrame:
    """One row for each region."""
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingDependencyError(
            "to_pandas() needs the package pandas.", fix="pip install pandas"
        ) from error
    rows = []
    for segment in result.regions():
        x0, y0, x1, y1 = segment.box
        box = {"x0": x0, "y0": y0, "x1": x1, "y1": y1}
        row = values(segment) | {"score": segment.score} | box
        rows.append({name: value for name, value in row.items() if name != "box"})
    columns = ["id", "class_id", "class_name", "thing", "score", "area", "x0", "y0", "x1", "y1"]
    return pd.DataFrame(rows, columns=columns)


def to_arrays(result: Segmentation) -> dict[str, Any]:
    """The arrays of a .npz file: maps, boxes, scores, class ids and bit-packed masks."""
    if result.task == "semantic":
        arrays: dict[str, Any] = {"class_map": result.class_map}
        if result.confidence is not None:
            arrays["confidence"] = result.confidence
        return arrays
    masks = [np.packbits(segment.mask) for segment in result.segments]
    arrays = {
        "size": np.array(result.size),
        "boxes": result.boxes,
        "scores": result.scores,
        "class_ids": result.class_ids,
        "masks_packed": np.stack(masks) if masks else np.zeros((0, 0), np.uint8),
    }
    if result.task == "panoptic":
        arrays["segment_map"] = result.segment_map
    return arrays


def save(result: Segmentation, path: Path) -> None:
    """Write a result in the format of the suffix."""
    suffix = path.suffix.lower()
    if suffix in PICTURE_FORMATS:
        save_picture(result.overlay(), path)
    elif suffix == ".json":
        content = {
            "generator": GENERATOR,
            "task": result.task,
            "size": list(result.size),
            "annotations": to_coco(result, 0),
        }
        write_atomically(path, json.dumps(content).encode())
    elif suffix == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, generator=np.array(GENERATOR), **to_arrays(result))
        write_atomically(path, buffer.getvalue())
    else:
        raise UsageError(
            f"A result cannot be saved as {suffix or 'a file without suffix'}.",
            fix="Use .png or .jpg (overlay), .json (COCO) or .npz (arrays).",
        )


def values(segment: Segment) -> dict[str, Any]:
    """The values of a segment, JSON-serialisable."""
    return {
        "id": segment.id, "class_id": segment.class_id, "class_name": segment.class_name,
        "thing": segment.thing, "score": _known(segment.score), "area": segment.area,
        "box": list(segment.box),
    }  # fmt: skip


def coco_rle(segment: Segment, size: tuple[int, int]) -> dict[str, Any]:
    """The mask of a segment as COCO RLE, JSON-serialisable."""
    return {"size": list(size), "counts": segment.rle["counts"].decode("ascii")}


def coco_fields(segment: Segment) -> dict[str, Any]:
    """What COCO's annotations and its panoptic ``segments_info`` have in common."""
    x0, y0, x1, y1 = segment.box
    score = {} if math.isnan(segment.score) else {"score": segment.score}
    return {
        "category_id": segment.class_id, "category_name": segment.class_name,
        "isthing": int(segment.thing), "iscrowd": 0, **score,
        "area": segment.area, "bbox": [x0, y0, x1 - x0, y1 - y0],
    }  # fmt: skip


def _known(score: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(score) else score


def closed(ring: Polygon) -> list[list[int]]:
    """A ring that ends where it begins, as GeoJSON requires."""
    corners: list[list[int]] = ring.tolist()
    return [*corners, corners[0]]
