"""One line for each request, without image data, tokens or query texts."""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any, TextIO

LOGS = ("text", "json", "off")


def say(text: str) -> None:
    """Write a line about the server."""
    print(text, file=sys.stderr, flush=True)


class RequestLog:
    """Writes the log.

    Args:
        kind: one of :data:`LOGS`.
        file: where lines are written; None takes stderr.
    """

    def __init__(self, kind: str, file: TextIO | None = None) -> None:
        self._kind = kind
        self._file = file

    def write(self, **facts: Any) -> None:
        """Write a line about a request."""
        if self._kind == "off":
            return
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        known = {name: value for name, value in facts.items() if value not in (None, "")}
        if self._kind == "json":
            line = json.dumps({"time": now, **known})
        else:
            line = f"{now} " + " ".join(f"{name}={_word(value)}" for name, value in known.items())
        print(line, file=self._file or sys.stderr, flush=True)


def _word(value: Any) -> str:
    """A value without spaces and line breaks, which would look like other fields."""
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)
