"""What the fields of a description must be: a table of rules, checked when one is read.

A description comes out of a file, and a file may hold anything. A rule checks type and range of
one value and says in words what it expects, so that an error can name the field, what was found
and what was expected.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from eomt_deploy.errors import ArtifactError

MAX_LENGTH = 8 << 20
"""Characters of a description: 16,384 classes with long names need fewer."""
MAX_DIGITS = 100
SHOWN_PROBLEMS = 3
UNPRINTABLE = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Unicode categories: control characters, surrogates, line and paragraph separators."""


class Rule:
    """What a value must be."""

    fits: Callable[[Any], bool]
    """Whether a value is that: quick, as nearly all are."""

    def problems(self, value: Any, name: str) -> Iterator[str]:
        """One sentence for each thing that is wrong; ``name`` is the field's."""
        raise NotImplementedError


# Plain classes: decorating dataclasses takes longer than the rest of this module's import.
class One(Rule):
    """A single value: what it must be, in words and as a test."""

    def __init__(self, words: str, fits: Callable[[Any], bool]) -> None:
        self.words, self.fits = words, fits

    def problems(self, value: Any, name: str) -> Iterator[str]:
        if not self.fits(value):
            yield f"`{name}` must be {self.words}, got {shown(value)}"


class Items(Rule):
    """A list of ``least`` to ``most`` values of one rule."""

    def __init__(self, rule: Rule, least: int, most: int) -> None:
        self.rule, self.least, self.most = rule, least, most

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and self.least <= len(value) <= self.most
            and all(map(self.rule.fits, value))
        )

    def problems(self, value: Any, name: str) -> Iterator[str]:
        if not isinstance(value, list | tuple):
            yield f"`{name}` must be a list, got {shown(value)}"
        elif not self.least <= len(value) <= self.most:
            wanted = str(self.least) if self.least == self.most else f"{self.least} to {self.most}"
            yield f"`{name}` must have {wanted} entries, got {len(value)}"
        else:
            for index, item in enumerate(value):
                yield from self.rule.problems(item, f"{name}[{index}]")


class Words(Rule):
    """An object of at most ``most`` texts with any keys, such as provenance; each key and value
    has at most so many characters."""

    def __init__(self, most: int, characters: int) -> None:
        self.most, self.text = most, text(characters, least=0)

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) <= self.most
            and all(map(self.text.fits, value))
            and all(map(self.text.fits, value.values()))
        )

    def problems(self, value: Any, name: str) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"`{name}` must be an object, got {shown(value)}"
        elif len(value) > self.most:
            yield f"`{name}` must have at most {self.most} entries, got {len(value)}"
        else:
            for key, item in value.items():
                yield from self.text.problems(key, f"key of {name}")
                yield from self.text.problems(item, f"{name}[{shown(key)}]")


class Record(Rule):
    """An object with named fields, read from JSON or already made.

    Args:
        kind: class that is made of it.
        fields: rules by the name of the field.
        optional: fields that older files may lack.
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


def whole(least: int, most: int) -> One:
    """A whole number; True and 1.0 are none."""
    words = f"a whole number from {least} to {most}"
    return One(words, lambda value: type(value) is int and least <= value <= most)


def share() -> One:
    """A number from 0 to 1."""
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


def text(most: int, least: int = 1) -> One:
    """Text that can be printed, encoded and drawn."""
    words = f"printable text of {f'{least} to' if least else 'at most'} {most} characters"
    return One(
        words,
        lambda value: (
            isinstance(value, str) and least <= len(value) <= most and is_printable(value)
        ),
    )


def optional(rule: One) -> One:
    """The same, or nothing."""
    return One(f"{rule.words}, or null", lambda value: value is None or rule.fits(value))


def is_printable(value: str) -> bool:
    """Whether text has neither control characters, line breaks nor surrogates: it can be encoded,
    drawn, and shown on one line of a terminal."""
    return value.isprintable() or printable(value) == value


def printable(value: str) -> str:
    """Text with a question mark for each character that :func:`is_printable` refuses: file names
    may hold any."""
    from unicodedata import category

    return "".join("?" if category(c) in UNPRINTABLE else c for c in value)


def shown(value: object) -> str:
    """A value in a few words for an error message, whatever it is."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # a number of too many digits
        return f"a value of type {type(value).__name__}"


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 4


def check_fields(rule: Rule, value: object, what: str, fix: str = "", *, name: str = "") -> None:
    """A description must keep its rules.

    Args:
        what: names the description in the message.
        fix: what the user can do.
        name: of the value itself; a :class:`Record` needs none.

    Raises:
        ArtifactError: it does not; the first few fields are named.
    """
    if rule.fits(value):
        return
    found = list(islice(rule.problems(value, name), SHOWN_PROBLEMS + 1))
    if found:
        more = "; and more" if len(found) > SHOWN_PROBLEMS else ""
        raise ArtifactError(f"{what} is wrong: {'; '.join(found[:SHOWN_PROBLEMS])}{more}.", fix=fix)


def read_object(content: str | bytes, what: str, fix: str = "") -> dict[str, Any]:
    """The JSON object of a description.

    Raises:
        ArtifactError: not UTF-8, not JSON, not an object, too large or nested too deeply.
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
        raise ArtifactError(f"{what} cannot be read: it is nested too deeply.", fix=fix) from error
    except ValueError as error:
        raise ArtifactError(f"{what} cannot be read: {error}.", fix=fix) from error
    return data


def _number(digits: str) -> int | float:
    """A whole number; one with hundreds of digits, which no field takes, becomes infinity."""
    return int(digits) if len(digits) <= MAX_DIGITS else math.copysign(math.inf, float(digits[:2]))
