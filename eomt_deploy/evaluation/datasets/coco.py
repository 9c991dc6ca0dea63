"""COCO's panoptic (JSON + PNG) and instance (JSON) formats; ADE20K panoptic comes in the first."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from hotcoco import mask as coco_mask

from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation.files import FileIndex, choose
from eomt_deploy.evaluation.truth import VOID, Sample, Truth, TruthSegment
from eomt_deploy.result import Rle, encode_mask
from eomt_deploy.spec import ModelSpec

PANOPTIC_JSON = r"(^|/)[\w-]*panoptic[\w-]*\.json$"
INSTANCES_JSON = r"(^|/)instances[\w-]*\.json$"


def read_panoptic(index: FileIndex, spec: ModelSpec, split: str | None) -> list[Sample]:
    """Samples of a panoptic JSON and its folder (or zip) of PNG files.

    Panoptic labels hold the other two as well: things are instances, and every segment has
    a class.
    """
    name = choose(index.matching(PANOPTIC_JSON), split, "panoptic labels")
    document = _read_json(index, name, ("images", "annotations", "categories"))
    class_of = map_categories(spec, document["categories"], name)
    folder = name.removesuffix(".json")
    if f"{folder}.zip" in index:
        index.open_inner_zip(f"{folder}.zip")
        # COCO's inner zip holds the folder by its bare name.
        folder = PurePosixPath(folder).name if f"{folder}/" not in index.names else folder
    images = {image["id"]: image for image in document["images"]}
    return [
        _panoptic_sample(index, spec, folder, annotation, images, class_of)
        for annotation in document["annotations"]
    ]


def _panoptic_sample(
    index: FileIndex,
    spec: ModelSpec,
    folder: str,
    annotation: dict[str, Any],
    images: dict[int, dict[str, Any]],
    class_of: dict[int, int],
) -> Sample:
    try:
        image = images[annotation["image_id"]]
        png = f"{folder}/{annotation['file_name']}"
        segments = {info["id"]: info for info in annotation["segments_info"]}
        file_name, size = image["file_name"], (image["height"], image["width"])
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"An annotation of {folder}.json is broken: {error!r} is missing.",
            why=json.dumps(annotation)[:200],
        ) from error
    photo = index.find_image(file_name, outside=folder)

    def truth() -> Truth:
        if png not in index:
            raise DatasetError(
                f"The panoptic PNG {png} is missing in {index.origin}.",
                fix="Pass the folder or zip with the PNG files, too: --data A --data B.",
            )
        ids = index.image(png).astype(np.int32) @ np.array([1, 256, 65536], np.int32)
        if ids.shape != size:
            raise DatasetError(
                f"{index.describe(png)} is {ids.shape[0]}x{ids.shape[1]}, the JSON says "
                f"{size[0]}x{size[1]} for {file_name}."
            )
        unknown = set(np.unique(ids).tolist()) - {0} - segments.keys()
        if unknown:
            shown = ", ".join(map(str, sorted(unknown)[:5]))
            raise DatasetError(
                f"{index.describe(png)} has segment ids that its JSON does not list: {shown}."
            )
        return _panoptic_truth(spec, ids, segments, class_of)

    return Sample(PurePosixPath(file_name).name, lambda: index.image(photo), truth)


def _panoptic_truth(
    spec: ModelSpec,
    ids: np.ndarray[Any, np.dtype[np.int32]],
    segments: dict[int, dict[str, Any]],
    class_of: dict[int, int],
) -> Truth:
    size = (ids.shape[0], ids.shape[1])
    if spec.task == "semantic":
        class_map = np.full(size, VOID, np.int32)
        for segment_id, info in segments.items():
            class_map[ids == segment_id] = class_of[info["category_id"]]
        return Truth(size, class_map=class_map)
    found = []
    for segment_id, info in segments.items():
        class_id = class_of[info["category_id"]]
        if spec.task == "panoptic" or spec.classes[class_id].thing:
            mask = encode_mask(ids == segment_id)
            found.append(TruthSegment(class_id, mask, bool(info.get("iscrowd", 0))))
    return Truth(size, segments=tuple(found))


def read_instances(index: FileIndex, spec: ModelSpec, split: str | None) -> list[Sample]:
    """Samples of an instances JSON (polygons or RLE)."""
    name = choose(index.matching(INSTANCES_JSON), split, "instance labels")
    document = _read_json(index, name, ("images", "annotations", "categories"))
    class_of = map_categories(spec, document["categories"], name)
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        if annotation["image_id"] not in of_image:
            raise DatasetError(
                f"{name} has an annotation for image {annotation['image_id']}, which it does not "
                "list."
            )
        of_image[annotation["image_id"]].append(annotation)

    def sample(image: dict[str, Any]) -> Sample:
        photo = index.find_image(image["file_name"], outside="annotations")
        size = (image["height"], image["width"])

        def truth() -> Truth:
            segments = [
                TruthSegment(
                    class_of[a["category_id"]],
                    _rle(a["segmentation"], size),
                    bool(a.get("iscrowd", 0)),
                )
                for a in of_image[image["id"]]
            ]
            return Truth(size, segments=tuple(segments))

        return Sample(PurePosixPath(photo).name, lambda: index.image(photo), truth)

    return [sample(image) for image in document["images"]]


def _rle(segmentation: Any, size: tuple[int, int]) -> Rle:
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return coco_mask.fr_py_objects(segmentation, *size)
        return segmentation
    return coco_mask.merge(coco_mask.fr_py_objects(segmentation, *size))


def map_categories(
    spec: ModelSpec, categories: list[dict[str, Any]], origin: str
) -> dict[int, int]:
    """Category id of the data -> class id of the model, by name.

    Raises:
        DatasetError: the two do not have the same names.
    """
    class_ids = {info.name: info.id for info in spec.classes}
    names = {category["name"] for category in categories}
    missing = sorted(class_ids.keys() - names)
    foreign = sorted(names - class_ids.keys())
    if spec.task == "instance":
        # Panoptic labels of stuff are no instances; a model of the things fits all the same.
        things = {c["name"] for c in categories if c.get("isthing", 1)}
        foreign = sorted(things - class_ids.keys())
    if missing or foreign:
        raise DatasetError(
            f"{origin} and the model {spec.name} do not have the same classes.",
            why=f"only in the model: {', '.join(missing[:8]) or 'none'}; "
            f"only in the data: {', '.join(foreign[:8]) or 'none'}.",
            fix="Evaluate on the data set that the model was trained for; the names in --classes "
            "at export must be the data set's.",
        )
    return {c["id"]: class_ids[c["name"]] for c in categories if c["name"] in class_ids}


def _read_json(index: FileIndex, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        document = json.loads(index.read(name))
    except ValueError as error:
        raise DatasetError(f"{index.describe(name)} is not JSON: {error}.") from error
    lacking = [k for k in keys if not isinstance(document, dict) or k not in document]
    if lacking:
        raise DatasetError(f"{index.describe(name)} has no {', '.join(lacking)}.")
    return dict(document)
