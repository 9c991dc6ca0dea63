"""COCO's panoptic (JSON + PNG) and instance (JSON) formats. ADE20K panoptic uses the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from hotcoco import mask as coco_mask

from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation.dataset_files import FileIndex
from eomt_deploy.evaluation.datasets.coco_images import ImageFinder
from eomt_deploy.evaluation.datasets.coco_json import (
    INSTANCES,
    PANOPTIC,
    Document,
    Entry,
    Id,
    ImageEntry,
    category_of,
    field,
    is_area,
    is_flag,
    is_id,
    is_list,
    is_text,
    map_categories,
    read_document,
)
from eomt_deploy.evaluation.truth import Sample, Truth, TruthSegment
from eomt_deploy.masks import Rle, encode_mask
from eomt_deploy.pixel_labels import VOID
from eomt_deploy.spec import ModelSpec
from eomt_deploy.units import counted

SamplesAndNotes = tuple[list[Sample], list[str]]
"""Samples, and notes on the data for the user."""


def read_panoptic(index: FileIndex, spec: ModelSpec, split: str | None) -> SamplesAndNotes:
    """Read samples of a panoptic JSON file and its folder or zip file of PNG files.

    Panoptic labels serve all tasks: things are instances, and every segment has a class.
    """
    document = read_document(index, PANOPTIC, split)
    name = document.name
    labels: dict[Id, tuple[str, list[Any]]] = {}
    for annotation in document.annotations:
        image_id = document.image_of(annotation).id
        if image_id in labels:
            raise DatasetError(
                f"{name} must have one annotation for each image, got several for {image_id}.",
                fix="Keep one annotation for each image.",
            )
        png = field(annotation, "file_name", name, is_text)
        labels[image_id] = png, field(annotation, "segments_info", name, is_list)
    used = {
        field(info, "category_id", name, is_id) for _, infos in labels.values() for info in infos
    }
    class_of, notes = map_categories(spec, document, used)
    folder = name.removesuffix(".json")
    if f"{folder}.zip" in index:
        index.open_inner_zip(f"{folder}.zip")
        folder = PurePosixPath(folder).name  # the inner zip file has the folder at its top
    finder = ImageFinder(index, name, document.others, split, _label_folders(document.others))
    samples = []
    for image_id, (png, infos) in labels.items():
        segments = _segments(infos, class_of, spec, document)
        image = document.images[image_id]
        file_name = finder.find(image.file_name)
        truth = _panoptic_truth(index, spec, f"{folder}/{png}", image, segments, class_of)
        samples.append(_sample(index, file_name, image, truth))
    if missing := len(document.images) - len(labels):
        notes.append(f"{counted(missing, 'image')} of {name} without labels")
    return samples, notes


def _label_folders(documents: tuple[str, ...]) -> set[str]:
    """Folders of PNG files, which are next to their JSON file or in an inner zip file."""
    stems = {name.removesuffix(".json") for name in documents}
    return stems | {PurePosixPath(stem).name for stem in stems}


def _sample(
    index: FileIndex, file_name: str, image: ImageEntry, truth: Callable[[], Truth]
) -> Sample:
    return Sample(file_name, lambda: index.image(file_name, image.size), truth)


def _segments(
    infos: list[Any], class_of: dict[Id, int], spec: ModelSpec, document: Document
) -> dict[int, Entry]:
    """Segments of one image by their id."""
    segments: dict[int, Entry] = {}
    for info in infos:
        segment_id = field(info, "id", document.name, is_id)
        category_of(info, class_of, spec, document)
        field(info, "iscrowd", document.name, is_flag, default=0)
        if segment_id in segments:
            raise DatasetError(
                f"{document.name} lists the segment id {segment_id} twice in an image.",
                fix="Give each segment of an image a different id.",
            )
        segments[segment_id] = info
    return segments


def _panoptic_truth(
    index: FileIndex,
    spec: ModelSpec,
    png: str,
    image: ImageEntry,
    segments: dict[int, Entry],
    class_of: dict[Id, int],
) -> Callable[[], Truth]:
    def truth() -> Truth:
        if png not in index:
            raise DatasetError(
                f"The panoptic PNG {png} is missing in {index.origin}.",
                fix="Also pass the folder or zip file with the PNG files: --data A --data B.",
            )
        ids = index.label_image(png).astype(np.int32) @ np.array([1, 256, 65536], np.int32)
        if ids.shape != image.size:
            raise DatasetError(
                f"{index.describe(png)} must be {image.size[0]}x{image.size[1]}, as its JSON file "
                f"lists for {image.file_name}, got {ids.shape[0]}x{ids.shape[1]}.",
                fix="Export the labels again: image and label map must have the same size.",
            )
        drawn = set(np.unique(ids).tolist()) - {0}
        for wrong, what in (
            (drawn - segments.keys(), "has segment ids that its JSON file does not list"),
            (segments.keys() - drawn, "lacks segment ids that its JSON file lists"),
        ):
            if wrong:
                shown = ", ".join(map(str, sorted(wrong, key=str)[:5]))
                raise DatasetError(
                    f"{index.describe(png)} {what}: {shown}.",
                    fix="Export the labels again: the PNG and the JSON file must list the same "
                    "segments.",
                )
        return _as_truth(spec, ids, segments, class_of)

    return truth


def _as_truth(
    spec: ModelSpec,
    ids: npt.NDArray[np.int32],
    segments: dict[int, Entry],
    class_of: dict[Id, int],
) -> Truth:
    size = (ids.shape[0], ids.shape[1])
    if spec.task == "semantic":
        class_map = np.full(size, VOID, np.int32)
        for segment_id, info in segments.items():
            class_map[ids == segment_id] = class_of[info["category_id"]]
        return Truth(size, class_map=class_map)
    found = []
    for segment_id, info in segments.items():
        class_id = class_of.get(info["category_id"])
        if class_id is None:  # a stuff class, which an instance model does not have
            continue
        if spec.task == "panoptic" or spec.classes[class_id].thing:
            mask = encode_mask(ids == segment_id)
            found.append(TruthSegment(class_id, mask, bool(info.get("iscrowd", 0))))
    return Truth(size, segments=tuple(found))


def read_instances(index: FileIndex, spec: ModelSpec, split: str | None) -> SamplesAndNotes:
    """Read samples of an instances JSON file (polygons or RLE).

    An annotation without a mask (``"segmentation": []``, which tools write for boxes) is left out,
    because it cannot be compared with a predicted mask; pycocotools cannot read it either.

    Raises:
        DatasetError: no annotation has a mask, or the data are not valid.
    """
    document = read_document(index, INSTANCES, split)
    name = document.name
    used = {field(a, "category_id", name, is_id) for a in document.annotations}
    class_of, notes = map_categories(spec, document, used)
    segments: dict[Id, list[TruthSegment]] = {image_id: [] for image_id in document.images}
    empty = 0
    for annotation in document.annotations:
        image = document.image_of(annotation)
        class_id = class_of.get(category_of(annotation, class_of, spec, document))
        crowd = bool(field(annotation, "iscrowd", name, is_flag, default=0))
        area = field(annotation, "area", name, is_area, default=None)
        rle = _rle(annotation, image.size, name)
        if rle is None:
            empty += 1
        elif class_id is not None and spec.classes[class_id].thing:
            segments[image.id].append(TruthSegment(class_id, rle, crowd, area))
    if empty:
        if empty == len(document.annotations):
            raise DatasetError(
                f"No annotation of {name} has a mask: `segmentation` is empty in all of them.",
                why="The labels are boxes, but an instance model is scored on masks.",
                fix="Export the labels again with polygons or masks.",
            )
        notes.append(
            f"{empty} annotations of {name} have no mask (`segmentation` is empty) and are left out"
        )
    panoptic = _label_folders(tuple(index.matching(PANOPTIC.marker)))
    finder = ImageFinder(index, name, document.others, split, panoptic)

    def sample(image: ImageEntry) -> Sample:
        truth = Truth(image.size, segments=tuple(segments[image.id]))
        return _sample(index, finder.find(image.file_name), image, lambda: truth)

    return [sample(image) for image in document.images.values()], notes


def _rle(annotation: Entry, size: tuple[int, int], origin: str) -> Rle | None:
    """The mask of an annotation; None if it has no mask."""
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, dict) and segmentation:
            if list(segmentation["size"]) != list(size):
                raise ValueError(f"its size must be {list(size)}, got {segmentation['size']}")
            if isinstance(segmentation["counts"], list):
                segmentation = coco_mask.fr_py_objects(segmentation, *size)
            rle: Rle = encode_mask(coco_mask.decode(segmentation).astype(bool))
            return rle
        if not segmentation:
            return None
        rings = [ring for ring in segmentation if ring != []]
        if not rings:
            return None
        if any(len(ring) < 6 or len(ring) % 2 for ring in rings):
            raise ValueError("a polygon needs at least three points")
        if not all(np.isfinite(np.asarray(ring, np.float64)).all() for ring in rings):
            raise ValueError("a polygon has a coordinate that is not finite")
        merged: Rle = coco_mask.merge(coco_mask.fr_py_objects(rings, *size))
        return merged
    except Exception as error:  # tools may write anything here
        raise DatasetError(
            f"Annotation {annotation.get('id', '(without id)')} of {origin} has an invalid "
            f"segmentation: {str(error) or type(error).__name__}.",
            fix="Export the labels again with the tool that wrote them, or remove this annotation.",
        ) from error
