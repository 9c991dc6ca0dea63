"""Change one field of a JSON description to every value that a hostile file may contain."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]


def nested(levels: int) -> str:
    """JSON text of lists in lists."""
    return "[" * levels + "]" * levels


VALUES: tuple[str, ...] = (
    "null", "true", "false", "0", "1", "-1", "2", "255", "256", "1e400", "-1e400", "NaN",
    "Infinity", "1.5", "0.5", "-0.0", "1e30", str(10**30), "9" * 5000, "-" + "9" * 5000, '""',
    '"x"', '"\\ud800"', '"\\u0000"', '"a\\u001b[31mb"', '"a\\nb"', '"\\u2028"',
    json.dumps("x" * 100_000), json.dumps("é" * 300), "[]", "{}", "[1]", "[1, 2]", "[1, 1]",
    "[100000, 100000]", "[8, 8]", "[true, true]", "[1, 2, 3]", "[-1, 0, 256]", '["a", "b", "c"]',
    "[null, null]", "[[]]", "[{}]", '{"a": 1}', '{"a": "b"}', '{"a": null}', nested(50),
    nested(900), nested(10_000),
)  # fmt: skip
"""Values as JSON text, since ``json.dumps`` cannot write all of them."""


def paths(data: Any, start: Path = ()) -> Iterator[Path]:
    """Yield the paths of all values in a JSON value, including objects and lists."""
    if start:
        yield start
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from paths(value, (*start, key))


def changed(data: Any, path: Path, value: str) -> str:
    """JSON text with the JSON text ``value`` at ``path``."""
    data = copy.deepcopy(data)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "\x1a here"
    return json.dumps(data).replace('"\\u001a here"', value)


def without(data: Any, path: Path) -> str:
    """JSON text without the value at ``path``."""
    data = copy.deepcopy(data)
    place = data
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return json.dumps(data)


def names_it(message: str, path: Path) -> bool:
    """Whether an error names the invalid field."""
    field = next(str(key) for key in reversed(path) if isinstance(key, str))
    said = {"schema_version": "has schema", "spec": "The model description"}.get(field, field)
    return field in message or said in message or "nested too deeply" in message
