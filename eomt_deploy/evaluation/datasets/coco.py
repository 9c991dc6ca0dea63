"""COCO's panoptic (JSON + PNG) and instance (JSON) formats; ADE20K panoptic comes in the first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from hotcoco import mask as coco_mask

from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation.files import FileIndex, choose, words
from eomt_deploy.evaluation.truth import VOID, Sample, Truth, TruthSegment
from eomt_deploy.result import Rle, encode_mask
from eomt_deploy.spec import ModelSpec

PANOPTIC_JSON = r"(^|/)[\w-]*panoptic[\w-]*\.json$"
INSTANCES_JSON = r"(^|/)instances[\w-]*\.json$"
Found = tuple[list[Sample], list[str]]
"""Samples, and what the user should know of the data."""


def read_panoptic(index: FileIndex, spec: ModelSpec, split: str | None) -> Found:
    """Samples of a panoptic JSON and its folder (or zip) of PNG files.

    Panoptic labels hold the other two as well: things are instances, and every segment has
    a class.
    """
    documents = index.matching(PANOPTIC_JSON)
    name = choose(documents, split, "panoptic labels")
    document = _read_json(index, name, ("images", "annotations", "categories"))
    class_of = map_categories(spec, document["categories"], name)
    folder = name.removesuffix(".json")
    if f"{folder}.zip" in index:
        index.open_inner_zip(f"{folder}.zip")
        folder = PurePosixPath(folder).name  # COCO's inner zip holds the folder by its bare name
    images = _by_id(document["images"], name, ("id", "file_name", "height", "width"))
    photos = _PhotoFinder(index, name, documents, split)
    samples, labelled = [], set()
    for annotation in document["annotations"]:
        _require(annotation, ("image_id", "file_name", "segments_info"), name)
        image_id = annotation["image_id"]
        if image_id not in images or image_id in labelled:
            what = "labels twice" if image_id in labelled else "does not list"
            raise DatasetError(f"{name} has an annotation for image {image_id}, which it {what}.")
        labelled.add(image_id)
        for info in annotation["segments_info"]:
            _require(info, ("id", "category_id"), name)
            _check_category(info, class_of, spec, document["categories"], name)
        samples.append(
            _panoptic_sample(
                index, spec, f"{folder}/{annotation['file_name']}", annotation,
                images[image_id], photos, class_of,
            )
        )  # fmt: skip
    missing = len(images) - len(labelled)
    return samples, [f"{missing} images of {name} have no labels"] if missing else []


def _panoptic_sample(
    index: FileIndex,
    spec: ModelSpec,
    png: str,
    annotation: dict[str, Any],
    image: dict[str, Any],
    photos: _PhotoFinder,
    class_of: dict[int, int],
) -> Sample:
    photo = photos.find(image["file_name"])
    size = (image["height"], image["width"])
    segments = {info["id"]: info for info in annotation["segments_info"]}

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
                f"{size[0]}x{size[1]} for {image['file_name']}."
            )
        drawn = set(np.unique(ids).tolist()) - {0}
        for wrong, what in (
            (drawn - segments.keys(), "has segment ids that its JSON does not list"),
            (segments.keys() - drawn, "lacks segment ids that its JSON lists"),
        ):
            if wrong:
                shown = ", ".join(map(str, sorted(wrong)[:5]))
                raise DatasetError(f"{index.describe(png)} {what}: {shown}.")
        return _panoptic_truth(spec, ids, segments, class_of)

    return Sample(photo, lambda: index.image(photo), truth)


def _panoptic_truth(
    spec: ModelSpec,
    ids: npt.NDArray[np.int32],
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
        class_id = class_of.get(info["category_id"])
        if class_id is None:  # stuff that an instance model does not know
            continue
        if spec.task == "panoptic" or spec.classes[class_id].thing:
            mask = encode_mask(ids == segment_id)
            found.append(TruthSegment(class_id, mask, bool(info.get("iscrowd", 0))))
    return Truth(size, segments=tuple(found))


def read_instances(index: FileIndex, spec: ModelSpec, split: str | None) -> Found:
    """Samples of an instances JSON (polygons or RLE)."""
    documents = index.matching(INSTANCES_JSON)
    name = choose(documents, split, "instance labels")
    document = _read_json(index, name, ("images", "annotations", "categories"))
    class_of = map_categories(spec, document["categories"], name)
    images = _by_id(document["images"], name, ("id", "file_name", "height", "width"))
    segments: dict[int, list[TruthSegment]] = {image_id: [] for image_id in images}
    for annotation in document["annotations"]:
        _require(annotation, ("image_id", "category_id", "segmentation"), name)
        image = images.get(annotation["image_id"])
        if image is None:
            raise DatasetError(
                f"{name} has an annotation for image {annotation['image_id']}, which it does not "
                "list."
            )
        _check_category(annotation, class_of, spec, document["categories"], name)
        class_id = class_of.get(annotation["category_id"])
        if class_id is not None and spec.classes[class_id].thing:
            rle = _rle(annotation, (image["height"], image["width"]), name)
            crowd = bool(annotation.get("iscrowd", 0))
            segments[image["id"]].append(TruthSegment(class_id, rle, crowd, annotation.get("area")))
    photos = _PhotoFinder(index, name, documents, split)

    def sample(image: dict[str, Any]) -> Sample:
        photo = photos.find(image["file_name"])
        truth = Truth((image["height"], image["width"]), segments=tuple(segments[image["id"]]))
        return Sample(photo, lambda: index.image(photo), lambda: truth)

    return [sample(image) for image in images.values()], []


def _rle(annotation: dict[str, Any], size: tuple[int, int], origin: str) -> Rle:
    segmentation = annotation["segmentation"]
    try:
        if isinstance(segmentation, dict):
            if tuple(segmentation["size"]) != size:
                raise ValueError(f"its size is {segmentation['size']}, the image's {list(size)}")
            if isinstance(segmentation["counts"], list):
                segmentation = coco_mask.fr_py_objects(segmentation, *size)
            rle: Rle = encode_mask(coco_mask.decode(segmentation).astype(bool))
        else:
            if not segmentation or any(len(ring) < 6 or len(ring) % 2 for ring in segmentation):
                raise ValueError("a polygon needs at least three points")
            rle = coco_mask.merge(coco_mask.fr_py_objects(segmentation, *size))
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"Annotation {annotation.get('id', '(without id)')} of {origin} has a broken "
            f"segmentation: {error}."
        ) from error
    return rle


class _PhotoFinder:
    """Finds the photo that a label document means by a bare file name."""

    def __init__(
        self, index: FileIndex, document: str, documents: Sequence[str], split: str | None
    ) -> None:
        self._index = index
        self._home = PurePosixPath(document).parent
        others = {PurePosixPath(other).parent for other in documents}
        # A folder with labels of its own holds photos of its own.
        self._foreign = [o for o in others if o != self._home and o not in self._home.parents]
        stems = {other.removesuffix(".json") for other in documents}
        self._labels = stems | {PurePosixPath(stem).name for stem in stems}
        self._splits = {split} if split else words(document) - set(self._home.parts)

    def find(self, file_name: str) -> str:
        """Name of the photo in the index.

        Raises:
            DatasetError: there is none, or several fit equally well.
        """
        found = [
            name
            for name in self._index.by_file_name.get(PurePosixPath(file_name).name, [])
            if not any(name.startswith(f"{folder}/") for folder in self._labels)
            and not any(PurePosixPath(name).is_relative_to(f) for f in self._foreign if f.parts)
        ]
        ranks = {name: self._rank(name, file_name) for name in found}
        best = [name for name in found if ranks[name] == max(ranks.values())]
        if len(best) != 1:
            what = "is missing" if not best else f"is ambiguous: {', '.join(best)}"
            raise DatasetError(
                f"The image {file_name} {what} in {self._index.origin}.",
                fix="Pass the folder or zip with the images, too: --data A --data B.",
            )
        return best[0]

    def _rank(self, name: str, file_name: str) -> tuple[bool, bool, int, bool]:
        path = PurePosixPath(name)
        shared = [a == b for a, b in zip(path.parts, self._home.parts, strict=False)]
        depth = shared.index(False) if False in shared else len(shared)
        of_split = bool(self._splits & set(path.parent.parts))
        return f"/{name}".endswith(f"/{file_name}"), of_split, depth, "images" in path.parts


def map_categories(
    spec: ModelSpec, categories: list[dict[str, Any]], origin: str
) -> dict[int, int]:
    """Category id of the data -> class id of the model, by name.

    Raises:
        DatasetError: the two do not have the same names; for an instance model, of things.
    """
    for category in categories:
        _require(category, ("id", "name"), origin)
    things_only = spec.task == "instance"
    own = {c.name: c.id for c in spec.classes}
    wanted = {c.name for c in spec.classes if c.thing or not things_only}
    theirs = {c["name"] for c in categories if c.get("isthing", 1) or not things_only}
    missing, foreign = sorted(wanted - theirs), sorted(theirs - wanted)
    if missing or foreign:
        raise DatasetError(
            f"{origin} and the model {spec.name} do not have the same "
            + ("things." if things_only else "classes."),
            why=f"only in the model: {', '.join(missing[:8]) or 'none'}; "
            f"only in the data: {', '.join(foreign[:8]) or 'none'}.",
            fix="Evaluate on the data set that the model was trained for; the names in --classes "
            "at export must be the data set's.",
        )
    return {c["id"]: own[c["name"]] for c in categories if c["name"] in own}


def _check_category(
    entry: dict[str, Any],
    class_of: dict[int, int],
    spec: ModelSpec,
    categories: list[dict[str, Any]],
    origin: str,
) -> None:
    """A category that the model need not know must at least be one of the data's own."""
    category = entry["category_id"]
    listed = spec.task == "instance" and any(c["id"] == category for c in categories)
    if category not in class_of and not listed:
        raise DatasetError(
            f"{origin} has the category {category}, which it does not list, at annotation "
            f"{entry.get('id', '(without id)')}."
        )


def _by_id(
    images: list[dict[str, Any]], origin: str, keys: tuple[str, ...]
) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for image in images:
        _require(image, keys, origin)
        if image["id"] in found:
            raise DatasetError(f"{origin} lists the image id {image['id']} twice.")
        found[image["id"]] = image
    return found


def _require(entry: Any, keys: tuple[str, ...], origin: str) -> None:
    lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if lacking:
        raise DatasetError(
            f"An entry of {origin} is broken: it has no {', '.join(lacking)}.",
            why=json.dumps(entry)[:200],
        )


def _read_json(index: FileIndex, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        document = json.loads(index.read(name))
    except ValueError as error:
        raise DatasetError(f"{index.describe(name)} is not JSON: {error}.") from error
    lacking = [
        k for k in keys if not isinstance(document, dict) or not isinstance(document.get(k), list)
    ]
    if lacking:
        raise DatasetError(f"{index.describe(name)} has no {', '.join(lacking)}.")
    return dict(document)
