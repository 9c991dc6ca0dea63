"""Class lists: read from JSON as users write them, with colours for those that have none."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eomt_deploy.errors import UsageError
from eomt_deploy.spec import ClassInfo, check_class_name

EXAMPLE = '[{"name": "road", "thing": false}, {"name": "car", "thing": true}]'


def default_color(class_id: int) -> tuple[int, int, int]:
    """A colour (RGB 0-255) for a class; neighbours in the list differ clearly in hue."""
    hue = class_id * 0.6180339887 % 1.0  # golden ratio: never close to the last few
    saturation = (0.75, 0.5, 0.95)[class_id % 3]
    value = (0.95, 0.8, 0.65)[class_id // 3 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def make_classes(entries: Iterable[Mapping[str, Any]], origin: str) -> tuple[ClassInfo, ...]:
    """Classes from ``{"name": str, "thing": bool, "color": [r, g, b]?}`` in id order.

    Raises:
        UsageError: an entry that is no such object; ``origin`` names the list in the message.
    """
    classes = []
    for index, entry in enumerate(entries):
        try:
            name, thing = entry["name"], entry["thing"]
            color = tuple(entry.get("color") or default_color(index))
            valid = isinstance(name, str) and isinstance(thing, bool)
            valid &= len(color) == 3 and all(isinstance(c, int) and 0 <= c < 256 for c in color)
        except (TypeError, KeyError, AttributeError):
            valid = False
        if not valid:
            raise UsageError(
                f"Entry {index} of {origin} is not a class: {json.dumps(entry)[:120]}.",
                fix=f'Write a list like {EXAMPLE}; "color": [r, g, b] is optional.',
            )
        check_class_name(name, f"entry {index} of {origin}")
        classes.append(ClassInfo(index, name, thing, (color[0], color[1], color[2])))
    if not classes:
        raise UsageError(f"{origin} is empty.", fix=f"Write a list like {EXAMPLE}.")
    return tuple(classes)


def read_classes(path: Path) -> tuple[ClassInfo, ...]:
    """Class list of a JSON file, in the order of the class logits.

    Raises:
        UsageError: no such file, not JSON, or not a list of classes.
    """
    try:
        entries = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"The class list {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(
            f"The class list {path} is not JSON: {error}.", fix=f"Write a list like {EXAMPLE}."
        ) from error
    if not isinstance(entries, list):
        raise UsageError(
            f"The class list {path} is not a list.", fix=f"Write a list like {EXAMPLE}."
        )
    return make_classes(entries, str(path))


def things_or_stuff(names: Sequence[str], thing: bool) -> tuple[ClassInfo, ...]:
    """Classes that are all things, or all stuff."""
    return make_classes(({"name": name, "thing": thing} for name in names), "the class names")
