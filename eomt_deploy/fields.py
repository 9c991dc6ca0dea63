"""Rules for the fields of a description (JSON), checked when it is read.

A description comes from a file, which can contain anything. A rule checks type and range of one
value and states in words what it expects, so that an error can name the field, the found and the
expected value.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from eomt_deploy.errors import ModelFileError

MAX_LENGTH = 8 << 20
"""Maximum number of characters of a description: 16,384 classes with long names need fewer."""
MAX_DIGITS = 100
MAX_NAME = 255
"""Maximum number of characters of a name, of a class or a file."""
SHOWN_PROBLEMS = 3
UNPRINTABLE = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Unicode categories: control characters, surrogates, line and paragraph separators."""


class Rule:
    """A rule that a value must satisfy."""

    fits: Callable[[Any], bool]
    """Whether a value satisfies the rule. Fast, since nearly all values do."""

    def problems(self, value: Any, name: str) -> Iterator[str]:
        """Yield one sentence for each violation; ``name`` is the name of the field."""
        raise NotImplementedError


# Plain classes: creating dataclasses takes longer than the rest of this module's import.
class One(Rule):
    """Rule for a single value: the expected value in words, and a test."""

    def __init__(self, words: str, fits: Callable[[Any], bool]) -> None:
        self.words, self.fits = words, fits

    def problems(self, value: Any, name: str) -> Iterator[str]:
        if not self.fits(value):
            yield f"`{name}` must be {self.words}, got {shown(value)}"


class Items(Rule):
    """Rule for a list of ``minimum`` to ``maximum`` values that all satisfy one rule."""

    def __init__(self, rule: Rule, minimum: int, maximum: int) -> None:
        self.rule, self.minimum, self.maximum = rule, minimum, maximum

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and self.minimum <= len(value) <= self.maximum
            and all(map(self.rule.fits, value))
        )

    def problems(self, value: Any, name: str) -> Iterator[str]:
        if not isinstance(value, list | tuple):
            yield f"`{name}` must be a list, got {shown(value)}"
        elif not self.minimum <= len(value) <= self.maximum:
            wanted = (
                str(self.minimum)
                if self.minimum == self.maximum
                else f"{self.minimum} to {self.maximum}"
            )
            yield f"`{name}` must have {wanted} entries, got {len(value)}"
        else:
            for index, item in enumerate(value):
                yield from self.rule.problems(item, f"{name}[{index}]")


class Words(Rule):
    """Rule for an object with any keys and text values, such as provenance.

    Args:
        maximum: maximum number of entries.
        characters: maximum length of each key and value.
    """

    def __init__(self, maximum: int, characters: int) -> None:
        self.maximum, self.text = maximum, text(characters, minimum=0)

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) <= self.maximum
            and all(map(self.text.fits, value))
            and all(map(self.text.fits, value.values()))
        )

    def problems(self, value: Any, name: str) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"`{name}` must be an object, got {shown(value)}"
        elif len(value) > self.maximum:
            yield f"`{name}` must have at most {self.maximum} entries, got {len(value)}"
        else:
            for key, item in value.items():
                yield from self.text.problems(key, f"key of {name}")
                yield from self.text.problems(item, f"{name}[{shown(key)}]")


class Record(Rule):
    """Rule for an object with named fields: a JSON object, or an instance of ``kind``.

    Args:
        kind: class that the object is converted to.
        fields: rules by field name.
        optional: fields that may be missing, e.g. in older files.
    """

    def __init__(
        self, kind: type, fields: Mapping[str, Rule], optional: Sequence[str] = ()
    ) -> None:
        self.kind, self.fields, self.optional = kind, fields, optional

    def fits(self, value: Any) -> bool:
        if isinstance(value, self.kind):
            value = vars(value)
        elif not isinstance(value, dict) or not all(
            field in value or field in self.optional for field in self.fields
        ):
            return False
        return all(
            field in self.fields and self.fields[field].fits(value[field]) for field in value
        )

    def problems(self, value: Any, name: str) -> Iterator[str]:
        prefix = f"{name}." if name else ""
        if isinstance(value, self.kind):
            value = vars(value)
        if not isinstance(value, dict):
            yield f"`{name}` must be an object, got {shown(value)}"
            return
        for field in self.fields:
            if field not in value and field not in self.optional:
                yield f"`{prefix}{field}` is missing"
        for field in value:
            if field not in self.fields:
                yield f"the field {shown(f'{prefix}{field}')} is unknown"
        for field, rule in self.fields.items():
            if field in value:
                yield from rule.problems(value[field], prefix + field)


class Nullable(Rule):
    """Rule for a value that may also be null."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def fits(self, value: Any) -> bool:
        return value is None or self.rule.fits(value)

    def problems(self, value: Any, name: str) -> Iterator[str]:
        if value is not None:
            yield from self.rule.problems(value, name)


def integer(minimum: int, maximum: int) -> One:
    """Rule for an integer; True and 1.0 are not integers."""
    words = f"an integer from {minimum} to {maximum}"
    return One(words, lambda value: type(value) is int and minimum <= value <= maximum)


def share() -> One:
    """Rule for a number from 0 to 1."""
    return One(
        "a number from 0 to 1",
        lambda value: type(value) in (int, float) and 0 <= value <= 1,  # NaN is not
    )


def flag() -> One:
    return One("true or false", lambda value: isinstance(value, bool))


def one_of(*names: str) -> One:
    return One(
        f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names
    )


def text(maximum: int, minimum: int = 1) -> One:
    """Rule for text that can be printed, encoded and drawn."""
    words = f"printable text of {f'{minimum} to' if minimum else 'at most'} {maximum} characters"
    return One(
        words,
        lambda value: (
            isinstance(value, str) and minimum <= len(value) <= maximum and is_printable(value)
        ),
    )


def matching(words: str, pattern: str) -> One:
    """Rule for text that matches a regular expression."""
    found = re.compile(pattern)
    return One(words, lambda value: isinstance(value, str) and found.fullmatch(value) is not None)


def _is_file_name(value: object) -> bool:
    """Whether a value is a file name without a folder. It may contain invalid Unicode."""
    if not isinstance(value, str) or len(value) > MAX_NAME or value in ("", ".", ".."):
        return False
    return "/" not in value and "\0" not in value


FILE_NAME = One("a file name", _is_file_name)
SHA256 = matching("64 hexadecimal digits", "[0-9a-f]{64}")


def optional(rule: One) -> One:
    """Rule for a value that may also be null."""
    return One(f"{rule.words}, or null", lambda value: value is None or rule.fits(value))


def is_printable(value: str) -> bool:
    """Whether text can be encoded, drawn and printed in one line.

    Text with control characters, line breaks or surrogates cannot.
    """
    return value.isprintable() or printable(value) == value


def printable(value: str) -> str:
    """Replace the characters that :func:`is_printable` refuses, e.g. in file names, by "?"."""
    from unicodedata import category

    return "".join("?" if category(c) in UNPRINTABLE else c for c in value)


def shown(value: object) -> str:
    """Shortened representation of any value for an error message."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # ValueError: an integer with too many digits
        return f"a value of type {type(value).__name__}"


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 4


def check_fields(rule: Rule, value: object, what: str, fix: str = "", *, name: str = "") -> None:
    """Check that a description satisfies its rule.

    Args:
        rule: the rule.
        value: the description.
        what: name of the description in the message.
        fix: what the user can do.
        name: name of the value itself; not needed for a :class:`Record`.

    Raises:
        ModelFileError: it does not; the message lists the first violations.
    """
    if rule.fits(value):
        return
    found = list(islice(rule.problems(value, name), SHOWN_PROBLEMS + 1))
    if found:
        more = "; and more" if len(found) > SHOWN_PROBLEMS else ""
        raise ModelFileError(
            f"{what} is invalid: {'; '.join(found[:SHOWN_PROBLEMS])}{more}.", fix=fix
        )


def read_object(content: str | bytes, what: str, fix: str = "") -> dict[str, Any]:
    """Parse the JSON object of a description.

    Args:
        content: the JSON.
        what: name of the description in the message.
        fix: what the user can do.

    Raises:
        ModelFileError: not UTF-8, not JSON, not an object, too large or nested too deeply.
    """
    try:
        if len(content) > MAX_LENGTH:
            raise ValueError(f"its length is {len(content)}, the maximum is {MAX_LENGTH}")
        if isinstance(content, bytes):
            content = content.decode()
        data = json.loads(content, parse_int=_number)
        if not isinstance(data, dict):
            raise ValueError(f"it must be an object, got {shown(data)}")
    except RecursionError as error:
        raise ModelFileError(f"{what} cannot be read: it is nested too deeply.", fix=fix) from error
    except ValueError as error:
        raise ModelFileError(f"{what} cannot be read: {error}.", fix=fix) from error
    return data


def _number(digits: str) -> int | float:
    """Parse an integer; more than 100 digits become infinity, which every field refuses."""
    return int(digits) if len(digits) <= MAX_DIGITS else math.copysign(math.inf, float(digits[:2]))
