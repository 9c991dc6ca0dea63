"""Class lists: read from JSON as users write them, with colours for those that have none."""

from __future__ import annotations

import colorsys
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eomt_deploy.errors import UsageError
from eomt_deploy.files import read_json
from eomt_deploy.spec import ClassInfo, Task, check_class_name

EXAMPLE = '[{"name": "road", "thing": false}, {"name": "car", "thing": true}]'
IMPLIED_THING: dict[Task | None, bool] = {"semantic": False, "instance": True}
"""Where an entry does not say whether its class is a thing. Panoptic lists must."""


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of the class logits.

    Attributes:
        origin: names the list in messages.
        note: what the user should know of how it was read; empty where nothing.
    """

    classes: tuple[ClassInfo, ...]
    origin: str
    note: str = ""


def default_color(class_id: int) -> tuple[int, int, int]:
    """A colour (RGB 0-255) for a class; neighbours in the list differ clearly in hue."""
    hue = class_id * 0.6180339887 % 1.0  # golden ratio: never close to the last few
    saturation = (0.75, 0.5, 0.95)[class_id % 3]
    value = (0.95, 0.8, 0.65)[class_id // 3 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def make_classes(entries: Iterable[Mapping[str, Any]], origin: str) -> tuple[ClassInfo, ...]:
    """Classes from ``{"name": str, "thing": bool, "color": [r, g, b]?, "id": int?}``, in the order
    of the list or of the ids.

    Raises:
        UsageError: an entry that is no such object, or ids that do not count from 0; ``origin``
            names the list in the message.
    """
    classes = []
    for index, entry in enumerate(_by_id(list(entries), origin)):
        try:
            name, thing = entry["name"], entry["thing"]
            color = tuple(entry.get("color") or default_color(index))
            valid = isinstance(name, str) and isinstance(thing, bool)
            valid &= len(color) == 3 and all(isinstance(c, int) and 0 <= c < 256 for c in color)
        except (TypeError, KeyError, AttributeError):
            valid = False
        if not valid:
            raise UsageError(
                f"Entry {index} of {origin} is not a class: {_shown(entry)}.",
                fix=f'Write a list like {EXAMPLE}; "color": [r, g, b] is optional.',
            )
        check_class_name(name, f"entry {index} of {origin}")
        classes.append(ClassInfo(index, name, thing, (color[0], color[1], color[2])))
    if not classes:
        raise UsageError(f"{origin} is empty.", fix=f"Write a list like {EXAMPLE}.")
    return tuple(classes)


def read_classes(path: Path, task: Task | None = None) -> tuple[ClassInfo, ...]:
    """Class list of a JSON file, in the order of the class logits, see :func:`read_class_list`."""
    return read_class_list(path, task).classes


def read_class_list(path: Path, task: Task | None = None) -> ClassList:
    """Class list of a JSON file: a list of names or of objects as for :func:`make_classes`, or the
    ``categories`` of a COCO file, whose classes count in the order of their ids.

    Args:
        path: JSON in UTF-8, -16 or -32.
        task: what is meant where an entry does not say whether it is a thing: semantic classes
            are stuff, instance classes are things.

    Raises:
        UsageError: no such file, not JSON, or not a list of classes.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise UsageError(f"The class list {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(
            f"The class list {path} is not JSON: {error}.", fix=f"Write a list like {EXAMPLE}."
        ) from error
    origin, note = str(path), ""
    if isinstance(content, dict) and isinstance(categories := content.get("categories"), list):
        content, note = _renumbered(categories, origin)
    if not isinstance(content, list):
        raise UsageError(
            f"The class list {path} is not a list, nor a COCO file with categories.",
            fix=f"Write a list like {EXAMPLE}.",
        )
    entries = [_completed(entry, index, origin, task) for index, entry in enumerate(content)]
    return ClassList(make_classes(entries, origin), origin, note)


def things_or_stuff(names: Sequence[str], thing: bool) -> tuple[ClassInfo, ...]:
    """Classes that are all things, or all stuff."""
    return make_classes(({"name": name, "thing": thing} for name in names), "the class names")


def _completed(entry: Any, index: int, origin: str, task: Task | None) -> Any:
    """The entry as an object that says whether it is a thing.

    Raises:
        UsageError: neither it nor the task says so.
    """
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict) or "thing" in entry:
        return entry
    if entry.get("isthing") in (0, 1):  # COCO's word
        return entry | {"thing": bool(entry["isthing"])}
    if task not in IMPLIED_THING:
        raise UsageError(
            f"Entry {index} of {origin} does not say whether it is a thing: {_shown(entry)}.",
            why="A panoptic model counts things one by one and merges stuff: each class must be "
            "one of them."
            if task == "panoptic"
            else "Only the task could imply it, and it is not known here.",
            fix=f"Write a list like {EXAMPLE}.",
        )
    return entry | {"thing": IMPLIED_THING[task]}


def _by_id(entries: list[Any], origin: str) -> list[Any]:
    """The entries in the order of their ids, where they have some.

    Raises:
        UsageError: the ids are not the whole numbers from 0, each once.
    """
    ids = [entry["id"] for entry in entries if isinstance(entry, Mapping) and "id" in entry]
    if not ids:
        return entries
    wanted = range(len(entries))
    problem = _problem_of(ids, len(entries))
    if not problem and sorted(ids) != list(wanted):
        problem = f"they go from {min(ids)} to {max(ids)}"
    if problem:
        raise UsageError(
            f"The ids of {origin} are not the numbers 0 to {len(entries) - 1}: {problem}.",
            why="An id is the column of the class in the model's class logits.",
            fix="Number the classes from 0 without gaps, leave the ids out, or write a COCO file, "
            '{"categories": […]}, whose classes count in the order of their ids.',
        )
    return sorted(entries, key=lambda entry: int(entry["id"]))


def _renumbered(categories: list[Any], origin: str) -> tuple[list[Any], str]:
    """COCO's categories without their ids, in the order of these, and a note that says so.

    COCO's ids start at 1 and have gaps; every trainer that reads them counts them through in this
    order.

    Raises:
        UsageError: a category without an id, or two with the same.
    """
    ids = [c["id"] for c in categories if isinstance(c, Mapping) and "id" in c]
    if problem := _problem_of(ids, len(categories)):
        raise UsageError(
            f"The categories of {origin} cannot be ordered by their ids: {problem}.",
            fix="Give each category a whole number of its own as id.",
        )
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    note = ""
    if ids and ids != list(range(len(ids))):
        note = (
            f"The {len(ids)} categories of {origin} have the ids {min(ids)} to {max(ids)}; in "
            f"this order they are the classes 0 to {len(ids) - 1}."
        )
    return [{k: v for k, v in c.items() if k != "id"} for c in ordered], note


def _problem_of(ids: list[Any], count: int) -> str:
    """What is wrong with ids that should be different whole numbers, one for each entry."""
    if len(ids) != count:
        return f"{count - len(ids)} of {count} entries have none"
    if wrong := [i for i in ids if not isinstance(i, int) or isinstance(i, bool)]:
        return f"{_shown(wrong[0])} is not a whole number"
    repeated = [i for i, times in Counter(ids).items() if times > 1]
    return f"{repeated[0]} is there twice" if repeated else ""


def _shown(value: Any) -> str:
    """A value as JSON, shortened."""
    try:
        return json.dumps(value)[:120]
    except (RecursionError, TypeError):
        return f"a {type(value).__name__}"
