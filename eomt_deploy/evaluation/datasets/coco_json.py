"""Search, reading and validation of COCO JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation.dataset_files import FileIndex, choose
from eomt_deploy.spec import ModelSpec

Id = int | str
"""COCO uses numbers; some tools write strings."""
Entry = dict[str, Any]
LISTS = ("images", "annotations", "categories")
SHOWN = 200
"""Maximum length of a value in messages."""


@dataclass(frozen=True)
class Kind:
    """A kind of COCO labels, and how its files are detected.

    Attributes:
        what: name in messages.
        marker: regular expression of the usual file names.
        key: key that only annotations of this kind have; it identifies files with other names.
    """

    what: str
    marker: str
    key: str


# The second name is Roboflow's.
INSTANCES = Kind(
    "instance labels", r"(^|/)(instances[\w-]*|_annotations\.coco)\.json$", "segmentation"
)
PANOPTIC = Kind("panoptic labels", r"(^|/)[\w-]*panoptic[\w-]*\.json$", "segments_info")


@dataclass(frozen=True)
class ImageEntry:
    """An image of the JSON file; ``size`` is (H, W) in pixels."""

    id: Id
    file_name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Category:
    """A category of the JSON file; ``thing`` is True if the file does not specify it."""

    id: Id
    name: str
    thing: bool


@dataclass(frozen=True)
class Document:
    """A COCO JSON file with validated images and categories.

    Attributes:
        name: name in the index.
        others: names of all JSON files of this kind in the index.
        images, categories: entries by their id.
        annotations: annotations without validation; :func:`field` validates each value on access.
    """

    name: str
    others: tuple[str, ...]
    images: dict[Id, ImageEntry]
    annotations: list[Any]
    categories: dict[Id, Category]

    def image_of(self, annotation: Any) -> ImageEntry:
        """The image that an annotation belongs to.

        Raises:
            DatasetError: the file does not list the image.
        """
        image_id = field(annotation, "image_id", self.name, is_id)
        if image_id not in self.images:
            raise DatasetError(
                f"{self.name} has an annotation for image {image_id}, which it does not list.",
                fix="Add the image to its list images, or remove the annotation.",
            )
        return self.images[image_id]


def find_documents(index: FileIndex, kind: Kind) -> list[str]:
    """Names of the JSON files of a kind, detected by their usual names, or else by content."""
    named = index.matching(kind.marker)
    if named:
        return named
    wanted = [f'"{key}"'.encode() for key in (*LISTS, kind.key)]
    found = []
    for name in index.matching(r"(?i)\.json$"):
        content = index.read(name)
        if all(key in content for key in wanted):
            found.append(name)
    return found


def read_document(index: FileIndex, kind: Kind, split: str | None) -> Document:
    """Read the JSON file of a kind, and of a split if there are several.

    Raises:
        DatasetError: no file or several files match, the file is not valid JSON, or a list or
            field is missing or has another type.
    """
    found = find_documents(index, kind)
    if not found:
        raise DatasetError(
            f"No JSON file with {kind.what} was found in {index.origin}.",
            why=f"Such a file has the lists images, annotations and categories, and {kind.key} in "
            "its annotations.",
            fix="Also pass the folder of the JSON file: --data A --data B.",
        )
    name = choose(found, split, kind.what)
    lists = _read_json(index, name)
    images: dict[Id, ImageEntry] = {}
    for entry in lists["images"]:
        image = _image(entry, name, index.max_pixels)
        if image.id in images:
            raise DatasetError(
                f"{name} lists the image id {image.id} twice.",
                fix="Remove one of the two entries.",
            )
        images[image.id] = image
    categories: dict[Id, Category] = {}
    for entry in lists["categories"]:
        category = Category(
            field(entry, "id", name, is_id),
            field(entry, "name", name, is_text),
            bool(entry.get("isthing", 1)),
        )
        if category.id in categories:
            raise DatasetError(
                f"{name} lists the category id {category.id} twice.",
                fix="Remove one of the two entries.",
            )
        categories[category.id] = category
    return Document(name, tuple(found), images, lists["annotations"], categories)


def _read_json(index: FileIndex, name: str) -> dict[str, list[Any]]:
    try:
        document = json.loads(index.read(name))
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{index.describe(name)} is not JSON: {error}.",
            fix="Copy or download the file again.",
        ) from error
    lacking = [
        k for k in LISTS if not isinstance(document, dict) or not isinstance(document.get(k), list)
    ]
    if lacking:
        raise DatasetError(
            f"{index.describe(name)} has no {', '.join(lacking)}.",
            why="A COCO JSON file needs the lists images, annotations and categories.",
            fix="Export the labels again in COCO format.",
        )
    return dict(document)


def _image(entry: Any, origin: str, max_pixels: int) -> ImageEntry:
    height, width = (field(entry, key, origin, is_side) for key in ("height", "width"))
    image = ImageEntry(
        field(entry, "id", origin, is_id),
        field(entry, "file_name", origin, is_text),
        (int(height), int(width)),
    )
    if height * width > max_pixels:  # masks of this size are allocated later
        raise DatasetError(
            f"{image.file_name} in {origin} is {image.size[0]}x{image.size[1]}, more than the "
            f"limit of {max_pixels:,} pixels.",
            fix="If the size is correct, increase the limit with --max-pixels (in Python "
            "max_pixels=).",
        )
    return image


Check = Callable[[Any], str]
"""Function that returns "" for a valid value, or else a description of a valid value."""


def is_id(value: Any) -> str:
    right = isinstance(value, int | str) and not isinstance(value, bool)
    return "" if right else "a number or string"


def is_text(value: Any) -> str:
    return "" if isinstance(value, str) and value else "a non-empty string"


def is_side(value: Any) -> str:
    """Check a height or width of an image; some tools write 640.0."""
    right = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if right and 1 <= value < math.inf and value == int(value) else "a positive integer"


def is_flag(value: Any) -> str:
    return "" if value is None or (isinstance(value, int) and value in (0, 1)) else "0 or 1"


def is_area(value: Any) -> str:
    right = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if value is None or (right and 0 <= value < math.inf) else "an area in pixels"


def is_list(value: Any) -> str:
    return "" if isinstance(value, list) else "a list"


def field(entry: Any, key: str, origin: str, check: Check, **default: Any) -> Any:
    """Validated field of an entry of a JSON file.

    Args:
        entry: entry of the file.
        key: name of the field.
        origin: name of the file in messages.
        check: check of the value.
        default: ``default=…`` is the value of a missing field.

    Raises:
        DatasetError: the entry is not an object, or the field is missing or not valid.
    """
    if not isinstance(entry, dict) or (key not in entry and not default):
        raise DatasetError(
            f"An entry of {origin} is not valid: it has no {key}.",
            why=f"The entry is {_shown(entry)}.",
            fix="Export the labels again in the COCO format, or correct this entry.",
        )
    value = entry.get(key, default.get("default"))
    wanted = check(value)
    if wanted:
        raise DatasetError(
            f"An entry of {origin} is not valid: {key} must be {wanted}, got {_shown(value)}.",
            why=f"The entry is {_shown(entry)}.",
            fix="Export the labels again in the COCO format, or correct this entry.",
        )
    return value


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deeply to show"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def map_categories(
    spec: ModelSpec, document: Document, used: set[Id]
) -> tuple[dict[Id, int], list[str]]:
    """Map category ids of the data to class ids of the model, by name.

    A category that is neither used by an annotation nor known to the model is ignored: Roboflow
    writes a root category with id 0.

    Returns:
        class ids by category id, and notes on ignored categories.

    Raises:
        DatasetError: data and model do not have the same class names; for an instance model, only
            the names of things are compared.
    """
    things_only = spec.task == "instance"
    own = {c.name: c.id for c in spec.classes}
    wanted = {c.name for c in spec.classes if c.thing or not things_only}
    counted = [c for c in document.categories.values() if c.id in used or c.name in own]
    unused = sorted(c.name for c in document.categories.values() if c not in counted)
    theirs = {c.name for c in counted if c.thing or not things_only}
    missing, foreign = sorted(wanted - theirs), sorted(theirs - wanted)
    if missing or foreign:
        foreign = sorted({*foreign, *unused})
        raise DatasetError(
            f"{document.name} and the model {spec.name} do not have the same "
            + ("things." if things_only else "classes."),
            why=f"only in the model: {', '.join(missing[:8]) or 'none'}; "
            f"only in the data: {', '.join(foreign[:8]) or 'none'}.",
            fix="Evaluate on the data set that the model was trained for. If the names are wrong, "
            "export the model again with the names of the data set in --classes.",
        )
    names = [c.name for c in counted if c.id in used]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(
            f"{document.name} uses several categories of the same name: {', '.join(twice[:8])}.",
            fix="Give each category a different name, or merge them.",
        )
    notes = []
    if unused:
        notes.append(
            f"{document.name} has categories that no annotation uses and the model does not know: "
            f"{', '.join(unused[:8])}. They are ignored"
        )
    return {c.id: own[c.name] for c in counted if c.name in own}, notes


def category_of(entry: Any, class_of: dict[Id, int], spec: ModelSpec, document: Document) -> Id:
    """Category id of an annotation; the model may lack the class.

    Raises:
        DatasetError: the file does not list the category.
    """
    category: Id = field(entry, "category_id", document.name, is_id)
    listed = spec.task == "instance" and category in document.categories
    if category not in class_of and not listed:
        raise DatasetError(
            f"Annotation {entry.get('id', '(without id)')} of {document.name} has the category "
            f"{category}, which the file does not list.",
            fix="Add the category to its list categories, or correct the annotation.",
        )
    return category
