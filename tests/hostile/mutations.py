"""Mutations of bytes and of JSON. Everything comes from the given random generator."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Files = dict[str, bytes]
"""An input: the content of each file by its path below the input's folder."""

NUMBERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1,
           2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1, 13000, 30000, 100_000, 1_000_000,
           999_999_999)  # fmt: skip


def deep(opening: str, closing: str, depth: int) -> str:
    return opening * depth + closing * depth


RAW = (
    "1" * 5000, "1e999", "-1e999", "NaN", "Infinity", "1e-400", "0x10", "01", "1_000", "tru", "",
    deep("[", "]", 200), deep("[", "]", 5000), deep("[", "]", 200_000),
    deep('{"a":', "}", 5000).replace("}", "0}", 1), "[" * 100_000, '"\\ud800"', '"\\udfff\\ud800"',
    '"\\u0000"', '"\x00"', '"\x1b[31m"', '"unfinished', "[1,]", "{,}", '{"a":1,"a":2}',
)  # fmt: skip
"""JSON text, valid and invalid."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, 65536, 2**31, 2**53 + 1, 2**63, 2**64, 10**30,
    -(10**30), 10**300, 0.5, -0.5, 1.5, 1e308, -1e308, 1e-320, math.nan, math.inf, -math.inf, -0.0,
    "", " ", "0", "1", "-1", "1e5", "nan", "٣", "a\nb", "a\tb", "\r", "../../x", "/etc/passwd",
    "C:\\x", "x" * 300, "x" * 100_000, "é", "e\u0301", "\U0001f600", "\u202e", "true", "None",
    [], {}, [[]], [None], {"": None}, [0, 0], [1, 2, 3], [-1, -1], ["a"], {"a": 1}, {"0": "x"},
    [0] * 1000, [[0, 1]] * 100, [1e999, -1e999], list(range(50_000)),
    {str(i): i for i in range(5000)},
)  # fmt: skip


class Mutator:
    """Creates one hostile input; `steps` describes the changes for the report."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.steps: list[str] = []

    def note(self, text: str) -> None:
        self.steps.append(text[:120])

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def number(self) -> int:
        """A size, count or offset that is often not checked."""
        if self.chance(0.6):
            return self.rng.choice(NUMBERS)
        return self.rng.getrandbits(self.rng.choice((4, 8, 12, 16, 24, 31, 32)))

    # Bytes

    def bytes(self, data: bytes, others: Sequence[bytes] = (), rounds: int | None = None) -> bytes:
        """Mutate any bytes; parts of `others`, which are valid files, can be inserted."""
        for _ in range(rounds if rounds is not None else self.rng.choice((1, 1, 1, 2, 3, 6))):
            step = self.rng.choice(self._steps)
            before = data
            data = step(self, data, others)
            if data != before:
                self.note(step.__name__.strip("_"))
        return data

    def _position(self, data: bytes) -> int:
        reach = self.rng.choice((32, 128, 1024, len(data), len(data)))  # headers matter most
        return self.rng.randrange(max(1, min(reach, len(data))))

    def _span(self, data: bytes) -> tuple[int, int]:
        start = self._position(data)
        longest = max(1, min(self.rng.choice((1, 4, 16, 256, 4096)), len(data) - start))
        return start, start + self.rng.randint(1, longest)

    def _flip_bits(self, data: bytes, others: Sequence[bytes]) -> bytes:
        changed = bytearray(data)
        for _ in range(self.rng.choice((1, 1, 2, 8, 32)) if data else 0):
            changed[self._position(data)] ^= 1 << self.rng.randrange(8)
        return bytes(changed)

    def _set_byte(self, data: bytes, others: Sequence[bytes]) -> bytes:
        at = self._position(data)
        return data[:at] + bytes([self.rng.choice((0, 1, 127, 128, 254, 255))]) + data[at + 1 :]

    def _set_number(self, data: bytes, others: Sequence[bytes]) -> bytes:
        at, kind = self._position(data), self.rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
        size = struct.calcsize(kind)
        value = struct.pack(kind, self.number() % (1 << 8 * size))
        return data[:at] + value + data[at + size :]

    def _truncate(self, data: bytes, others: Sequence[bytes]) -> bytes:
        return data[: self.rng.randrange(len(data) + 1)]

    def _delete(self, data: bytes, others: Sequence[bytes]) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[end:]

    def _insert(self, data: bytes, others: Sequence[bytes]) -> bytes:
        at = self._position(data)
        return data[:at] + self.rng.randbytes(self.rng.choice((1, 2, 4, 16, 256))) + data[at:]

    def _repeat(self, data: bytes, others: Sequence[bytes]) -> bytes:
        start, end = self._span(data)
        times = min(self.rng.choice((2, 2, 10, 1000)), max(2, 200_000 // (end - start)))
        return data[:start] + data[start:end] * times + data[end:]

    def _swap(self, data: bytes, others: Sequence[bytes]) -> bytes:
        (a, b), (c, d) = sorted((self._span(data), self._span(data)))
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data

    def _zero(self, data: bytes, others: Sequence[bytes]) -> bytes:
        start, end = self._span(data)
        return data[:start] + self.rng.choice((b"\0", b"\xff")) * (end - start) + data[end:]

    def _splice(self, data: bytes, others: Sequence[bytes]) -> bytes:
        other = self.rng.choice(others) if others else data
        if self.chance(0.5):  # the start of one and the end of another
            return data[: self._position(data)] + other[self._position(other) :]
        start, end = self._span(other)
        at = self._position(data)
        return data[:at] + other[start:end] + data[at + (end - start) * self.chance(0.5) :]

    _steps: tuple[Callable[[Mutator, bytes, Sequence[bytes]], bytes], ...] = (
        _flip_bits, _flip_bits, _set_byte, _set_number, _set_number, _truncate, _delete, _insert,
        _repeat, _swap, _zero, _splice,
    )  # fmt: skip

    # JSON

    def json(self, text: bytes) -> bytes:
        """Mutate JSON: mostly one or a few fields, sometimes the text or its encoding."""
        if self.chance(0.1):
            return self.bytes(text)
        data = self.edited(json.loads(text), self.rng.choice((1, 1, 1, 1, 2, 3)))
        return self.dumped(data)

    def edited(self, data: Any, rounds: int = 1) -> Any:
        """A copy of JSON data with some of its fields changed."""
        box = [json.loads(json.dumps(data))]
        for _ in range(rounds):
            places = list(_places(box))
            holder, key, path = self.rng.choice(places)
            self.rng.choice(self._edits)(self, holder, key, path)
        return box[0]

    def dumped(self, data: Any) -> bytes:
        """Write JSON text, sometimes in another encoding or with invalid JSON."""
        text = json.dumps(data, ensure_ascii=self.chance(0.7), indent=self.rng.choice((None, 1)))
        if self.chance(0.1):  # duplicate keys, raw values: only in text
            raw, place = self.rng.choice(RAW), self.rng.choice(("value", "key"))
            start = text.find(":", self.rng.randrange(max(1, len(text)))) + 1
            if start and place == "value":
                end = min(e if (e := text.find(c, start)) > 0 else len(text) for c in ",}")
                text = text[:start] + raw + text[end:]
                self.note(f"raw {raw[:20]!r} ({len(raw)} characters)")
        if self.chance(0.08):
            name = self.rng.choice(("utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1"))
            self.note(f"encoded as {name}")
            return text.encode(name, "replace")
        return text.encode("utf-8", "surrogatepass")

    def value(self, current: Any = None) -> Any:
        """A value that is invalid in the place of `current`."""
        if self.chance(0.15):
            return self.rng.choice(("\ud800", "\udcff", "\0", "a\0b", "\x1b[2J", "\ufeff"))
        if isinstance(current, int | float) and self.chance(0.5):
            near = (current + 1, current - 1, -current, current * 1000, str(current), [current],
                    float(current) if abs(current) < 1e300 else 0, current == 1)  # fmt: skip
            return self.rng.choice(near)
        if isinstance(current, str) and self.chance(0.3):
            return self.rng.choice((current + "\n", current[:-1], current.upper(), current * 50,
                                    [current], {current: current}, f" {current}"))  # fmt: skip
        if isinstance(current, list) and current and self.chance(0.5):
            return self.rng.choice((current[:-1], current + current, current[::-1], current[:1],
                                    [current], dict(enumerate(current)),
                                    current * 200))  # fmt: skip
        return copy.deepcopy(self.rng.choice(VALUES))  # a copy, since it may be changed later

    def _replace(self, holder: Any, key: Any, path: str) -> None:
        holder[key] = self.value(holder[key])
        self.note(f"{path} = {repr(holder[key])[:60]}")

    def _remove(self, holder: Any, key: Any, path: str) -> None:
        if path:
            del holder[key]
            self.note(f"{path} removed")

    def _rename(self, holder: Any, key: Any, path: str) -> None:
        if isinstance(holder, dict):
            name = self.rng.choice(
                (f"{key} ", str(key).upper(), "", "__class__", "self", f"{key}2")
            )
            holder[name] = holder.pop(key)
            self.note(f"{path} renamed to {name!r}")

    def _add(self, holder: Any, key: Any, path: str) -> None:
        if isinstance(holder, dict):
            name = self.rng.choice(("x", "", "schema_version", "self", "cls", "name", "\ud800"))
            holder[name] = self.value()
            self.note(f"{name!r} added beside {path}")
        else:
            holder.insert(key, self.value(holder[key]))

    def _copy(self, holder: Any, key: Any, path: str) -> None:
        other, name, source = self.rng.choice(list(_places([holder])))
        holder[key] = json.loads(json.dumps(other[name]))
        self.note(f"{path} = what is at {source}")

    def _nest(self, holder: Any, key: Any, path: str) -> None:
        depth = self.rng.choice((1, 3, 50, 250))
        for _ in range(depth):
            holder[key] = [holder[key]] if self.chance(0.5) else {"a": holder[key]}
        self.note(f"{path} nested {depth} deep")

    _edits: tuple[Callable[[Mutator, Any, Any, str], None], ...] = (
        _replace, _replace, _replace, _replace, _replace, _remove, _rename, _add, _copy, _nest,
    )  # fmt: skip


def _places(data: Any, path: str = "") -> Any:
    """(holder, key, path) of each value in JSON data, of the first 200 of a list."""
    keys = list(data) if isinstance(data, dict) else range(min(len(data), 200))
    for key in keys:
        here = f"{path}/{key}" if path or len(data) != 1 or isinstance(data, dict) else ""
        yield data, key, here
        if isinstance(data[key], dict | list):
            yield from _places(data[key], here or "/")
