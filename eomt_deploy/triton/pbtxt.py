"""The text format of protobuf messages, in which Triton's config.pbtxt is written.

Only this direction is needed, so that writing a repository needs no protobuf schema. The tests
parse every configuration with Triton's schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
"""Fields in their order. A list is a repeated field, a mapping is a message."""


class Word(str):
    """A value without quotes: a constant of an enumeration."""


def to_text(message: Message) -> str:
    """A message as text, one field per line."""
    return "\n".join(_lines(message, "")) + "\n"


def _lines(message: Message, indent: str) -> Iterator[str]:
    for field, value in message.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            if value and isinstance(value[0], Mapping):
                for item in value:
                    yield from _field(field, item, indent)
            else:
                yield f"{indent}{field}: [{', '.join(map(_scalar, value))}]"
        else:
            yield from _field(field, value, indent)


def _field(name: str, value: Any, indent: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{indent}{name}: {_scalar(value)}"
    elif not value:
        yield f"{indent}{name} {{}}"
    else:
        yield f"{indent}{name} {{"
        yield from _lines(value, indent + "  ")
        yield f"{indent}}}"


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    # A string of JSON in ASCII is one of protobuf, too, except for \u escapes, which our names,
    # restricted to a few characters, do not contain.
    return json.dumps(value) if isinstance(value, str) else str(value)
