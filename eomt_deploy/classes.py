"""Class lists, read from the user's JSON files; classes without a colour get one."""

from __future__ import annotations

import colorsys
import difflib
import json
import re
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
"""Default of ``thing`` for entries without it. It is required in panoptic lists."""


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of the class logits.

    Attributes:
        origin: name of the list in messages.
        note: how the ids were renumbered, for the user; empty if they were not.
    """

    classes: tuple[ClassInfo, ...]
    origin: str
    note: str = ""


def find_classes(
    classes: Sequence[ClassInfo], wanted: Iterable[str | int] | str | int
) -> frozenset[int]:
    """Ids of some classes, given by their names or ids.

    Raises:
        UsageError: a name or an id is unknown.
    """
    by_name = {info.name: info.id for info in classes}
    found = set()
    for item in [wanted] if isinstance(wanted, str | int) else wanted:
        number = by_name.get(item) if isinstance(item, str) else int(item)
        if number is None or not 0 <= number < len(classes):
            near = difflib.get_close_matches(str(item), by_name, n=3)
            names = list(by_name)[:10]
            raise UsageError(
                f"The model has no class {item!r}.",
                fix=f"Did you mean {' or '.join(near)}?"
                if near
                else f"Its classes are: {', '.join(names)}{', …' if len(by_name) > 10 else '.'}",
            )
        found.add(number)
    return frozenset(found)


def display_name(name: str) -> str:
    """A class name for people: "sky-other-merged" becomes "sky", "wall-brick" "wall brick".

    COCO marks what a class combines ("-other", "-merged") or that it is stuff ("-stuff"), and
    ADE20K lists synonyms ("door, double door"), of which the first remains. Only pictures use
    this; results contain the name of the class list.
    """
    short = re.split(r"[,;]", name)[0].strip()
    while (shorter := re.sub(r"[-_ ](other|merged|stuff)$", "", short)) != short:
        short = shorter
    # A hyphen after a single letter belongs to the word: t-shirt.
    short = re.sub(r"(?<=\w\w)-(?=\w)|_", " ", short)
    return " ".join(short.split()) or name


def default_color(class_id: int) -> tuple[int, int, int]:
    """A colour (RGB, 0-255) for a class; neighbours in the list differ clearly in hue."""
    hue = class_id * 0.6180339887 % 1.0  # golden ratio: far from the hues of the last few classes
    saturation = (0.75, 0.5, 0.95)[class_id % 3]
    value = (0.95, 0.8, 0.65)[class_id // 3 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def make_classes(entries: Iterable[Mapping[str, Any]], origin: str) -> tuple[ClassInfo, ...]:
    """Make classes from objects ``{"name": str, "thing": bool, "color": [r, g, b]?, "id": int?}``.

    Args:
        entries: the objects, in the order of the class logits unless they have ids.
        origin: name of the list in messages.

    Raises:
        UsageError: an entry is not such an object, or the ids do not count from 0.
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
    """Classes of a JSON file in the order of the class logits, see :func:`read_class_list`."""
    return read_class_list(path, task).classes


def read_class_list(path: Path, task: Task | None = None) -> ClassList:
    """Read the class list of a JSON file.

    The file contains a list of names, a list of objects as for :func:`make_classes`, or the
    ``categories`` of a COCO file, which are numbered in the order of their ids.

    Args:
        path: JSON in UTF-8, UTF-16 or UTF-32.
        task: task of the model. Entries without ``thing`` are stuff in a semantic model and things
            in an instance model.

    Raises:
        UsageError: the file is missing, not JSON, or not a list of classes.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise UsageError(
            f"The class list {path} cannot be read: {error.strerror}.",
            fix="Check that it exists and that you may read it.",
        ) from error
    except ValueError as error:
        raise UsageError(
            f"The class list {path} is not JSON: {error}.", fix=f"Write a list like {EXAMPLE}."
        ) from error
    origin, note = str(path), ""
    if isinstance(content, dict) and isinstance(categories := content.get("categories"), list):
        content, note = _renumbered(categories, origin)
    if not isinstance(content, list):
        raise UsageError(
            f"The class list {path} is neither a list nor a COCO file with categories.",
            fix=f"Write a list like {EXAMPLE}.",
        )
    entries = [_completed(entry, index, origin, task) for index, entry in enumerate(content)]
    return ClassList(make_classes(entries, origin), origin, note)


def things_or_stuff(names: Sequence[str], thing: bool) -> tuple[ClassInfo, ...]:
    """Classes that are all things, or all stuff."""
    return make_classes(({"name": name, "thing": thing} for name in names), "the class names")


def _completed(entry: Any, index: int, origin: str, task: Task | None) -> Any:
    """The entry as an object that has ``thing``.

    Raises:
        UsageError: the entry has no ``thing``, and the task does not imply it.
    """
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict) or "thing" in entry:
        return entry
    if entry.get("isthing") in (0, 1):  # COCO's key
        return entry | {"thing": bool(entry["isthing"])}
    if task not in IMPLIED_THING:
        raise UsageError(
            f'Entry {index} of {origin} has no "thing": {_shown(entry)}.',
            why="A panoptic model separates the instances of things and merges stuff, so each "
            "class must be one of the two."
            if task == "panoptic"
            else "It can only be inferred from the task, which is not known here.",
            fix=f"Write a list like {EXAMPLE}.",
        )
    return entry | {"thing": IMPLIED_THING[task]}


def _by_id(entries: list[Any], origin: str) -> list[Any]:
    """The entries in the order of their ids, or unchanged without ids.

    Raises:
        UsageError: the ids do not count from 0 without gaps.
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
            fix="Number the classes from 0 without gaps, leave out the ids, or write a COCO file, "
            '{"categories": […]}, whose classes are numbered in the order of their ids.',
        )
    return sorted(entries, key=lambda entry: int(entry["id"]))


def _renumbered(categories: list[Any], origin: str) -> tuple[list[Any], str]:
    """COCO categories sorted by their ids and without them, and a note about the new numbers.

    COCO's ids start at 1 and have gaps. Training code numbers the classes from 0 in this order.

    Raises:
        UsageError: a category has no id, or two have the same.
    """
    ids = [c["id"] for c in categories if isinstance(c, Mapping) and "id" in c]
    if problem := _problem_of(ids, len(categories)):
        raise UsageError(
            f"The categories of {origin} cannot be ordered by their ids: {problem}.",
            fix="Give each category a different integer as id.",
        )
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    note = ""
    if ids and ids != list(range(len(ids))):
        note = (
            f"The {len(ids)} categories of {origin} have the ids {min(ids)} to {max(ids)}; they "
            f"are numbered 0 to {len(ids) - 1} in this order."
        )
    return [{k: v for k, v in c.items() if k != "id"} for c in ordered], note


def _problem_of(ids: list[Any], count: int) -> str:
    """The problem of ids that should be different integers, one for each entry; "" if none."""
    if len(ids) != count:
        return f"{count - len(ids)} of {count} entries have no id"
    if wrong := [i for i in ids if not isinstance(i, int) or isinstance(i, bool)]:
        return f"{_shown(wrong[0])} is not an integer"
    repeated = [i for i, times in Counter(ids).items() if times > 1]
    return f"{repeated[0]} is used more than once" if repeated else ""


def _shown(value: Any) -> str:
    """A value as JSON, shortened."""
    try:
        return json.dumps(value)[:120]
    except (RecursionError, TypeError):
        return f"a {type(value).__name__}"
