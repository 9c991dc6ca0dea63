"""Mutations that know containers: zip directories, safetensors headers, pickles, protobuf."""

from __future__ import annotations

import itertools
import json
import math
import pickletools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .image_mutations import zeros
from .mutations import Mutator

NAMES = (b"", b"../out", b"../../../../tmp/out", b"/tmp/out", b"C:\\out", b"a\\b", b"a\0b", b".",
         b"..",
         b"x" * 5000, b"\xff\xfe", "é".encode(), b"data.pkl", b"CON", b"a/" * 500,
         b" ")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One member of a zip file; None means the correct value."""

    name: bytes
    packed: bytes
    size: int
    crc: int
    method: int = 0
    flags: int = 0x800
    declared: int | None = None
    declared_packed: int | None = None
    extra: bytes = b""
    local_name: bytes | None = None
    offset: int | None = None


def entry(name: str, content: bytes, *, deflated: bool = False) -> Entry:
    packed = zlib.compress(content)[2:-4] if deflated else content
    return Entry(name.encode(), packed, len(content), zlib.crc32(content), 8 if deflated else 0)


def write_zip(
    entries: Sequence[Entry], *, count: int | None = None, start: int | None = None,
    comment: bytes = b"", align: int = 64,
) -> bytes:  # fmt: skip
    """Write a zip file with the given fields; contents are aligned as in PyTorch."""
    body, directory = b"", b""
    for e in entries:
        place = len(body) if e.offset is None else e.offset
        size = (e.size if e.declared is None else e.declared) & 0xFFFFFFFF
        packed = (len(e.packed) if e.declared_packed is None else e.declared_packed) & 0xFFFFFFFF
        head = struct.pack(
            "<HHHHHIII", 20, e.flags, e.method, 0, 33, e.crc & 0xFFFFFFFF, packed, size
        )
        local = e.name if e.local_name is None else e.local_name
        gap = -(len(body) + 30 + len(local) + 4) % align
        filler = struct.pack("<HH", 0x4246, gap) + bytes(gap)
        body += b"PK\3\4" + head + struct.pack("<HH", len(local), len(filler)) + local + filler
        body += e.packed
        directory += b"PK\1\2" + struct.pack("<H", 20) + head + struct.pack(
            "<HHHHHII", len(e.name), len(e.extra), 0, 0, 0, 0, place & 0xFFFFFFFF
        ) + e.name + e.extra  # fmt: skip
    number = (len(entries) if count is None else count) & 0xFFFF
    where = (len(body) if start is None else start) & 0xFFFFFFFF
    end = struct.pack(
        "<HHHHIIH", 0, 0, number, number, len(directory), where, len(comment) & 0xFFFF
    )
    return body + directory + b"PK\5\6" + end + comment


def mutate_zip(m: Mutator, entries: Sequence[Entry], others: Sequence[bytes] = ()) -> bytes:
    """A zip file with wrong fields in its directory or wrong members."""
    entries = list(entries)
    options: dict[str, object] = {}
    for _ in range(m.rng.choice((1, 1, 1, 2, 3))):
        at = m.rng.randrange(len(entries))
        e = entries[at]
        kind = m.rng.choice(("content", "content", "content", "name", "local name", "size",
                             "packed",
                             "method", "flags", "crc", "drop", "copy", "swap", "bomb", "overlap",
                             "many", "count", "start", "zip64", "comment", "bytes"))  # fmt: skip
        m.note(f"zip {kind} of {e.name[:40]!r}")
        if kind == "content" and e.method == 0:
            content = m.bytes(e.packed, others)
            entries[at] = replace(e, packed=content, size=len(content), crc=zlib.crc32(content))
        elif kind == "name":
            entries[at] = replace(e, name=m.rng.choice(NAMES))
        elif kind == "local name":
            entries[at] = replace(e, local_name=m.rng.choice(NAMES))
        elif kind == "size":
            entries[at] = replace(e, declared=m.number())
        elif kind == "packed":
            entries[at] = replace(e, declared_packed=m.number())
        elif kind == "method":
            entries[at] = replace(e, method=m.rng.choice((0, 1, 6, 8, 9, 12, 14, 93, 99, 65535)))
        elif kind == "flags":
            entries[at] = replace(e, flags=m.rng.choice((0, 1, 8, 0x41, 0x800, 0x2001, 0xFFFF)))
        elif kind == "crc":
            entries[at] = replace(e, crc=e.crc ^ 1)
        elif kind == "drop" and len(entries) > 1:
            del entries[at]
        elif kind == "copy":
            entries.insert(m.rng.randrange(len(entries)), e)
        elif kind == "swap":
            other = m.rng.randrange(len(entries))
            entries[at] = replace(e, name=entries[other].name)
            entries[other] = replace(entries[other], name=e.name)
        elif kind == "bomb":
            size = m.rng.choice((1, 50, 900, 2500))
            declared = m.rng.choice((size << 20, size << 20, 10, e.size))
            entries[at] = replace(e, packed=zeros(size, -1), size=declared, method=8)
            m.note(f"{size} MiB of zeros, declared as {declared}")
        elif kind == "overlap":
            entries += [replace(e, name=b"copy%d" % i, offset=0) for i in range(50)]
        elif kind == "many":
            entries += [Entry(b"f%d" % i, b"", 0, 0) for i in range(m.rng.choice((100, 5000)))]
        elif kind in ("count", "start"):
            options[kind] = m.number()
        elif kind == "zip64":
            extra = struct.pack("<HHQQ", 1, 16, m.number() % 2**64, m.number() % 2**64)
            entries[at] = replace(e, extra=extra, declared=0xFFFFFFFF, declared_packed=0xFFFFFFFF)
        elif kind == "comment":
            options["comment"] = m.rng.choice((b"x" * 65535, b"PK\5\6" + bytes(18), b"PK\6\7"))
    made = write_zip(entries, **options)  # type: ignore[arg-type]
    return m.bytes(made, others) if m.chance(0.15) else made


# safetensors


def write_safetensors(header: bytes, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", (len(header) if length is None else length) % 2**64) + header + body


def mutate_safetensors(m: Mutator, data: bytes, others: Sequence[bytes]) -> bytes:
    """A safetensors file with a wrong header, header length or values."""
    kind = m.rng.choice(
        ("header", "header", "header", "tensor", "tensor", "length", "bytes", "body")
    )
    m.note(f"safetensors {kind}")
    size = struct.unpack_from("<Q", data)[0]
    header, body = data[8 : 8 + size], data[8 + size :]
    if kind == "header":
        return write_safetensors(m.json(header), body)
    if kind == "tensor":
        tensors = json.loads(header)
        for _ in range(m.rng.choice((1, 2, 5))):
            name = m.rng.choice(list(tensors))
            found = tensors[name]
            change = m.rng.choice(("shape", "shape", "offsets", "dtype", "rename", "drop", "same"))
            m.note(f"{change} of {name}")
            if change == "shape" and found["shape"]:
                shape = found["shape"]
                found["shape"] = m.rng.choice((
                    shape[::-1], [0, *shape], [*shape, 1], shape[1:], [], [1] * 100 + shape,
                    [2**32, 2**32], [math.prod(shape)], [0], [-1, *shape], [2**63, 0]))  # fmt: skip
            elif change == "offsets":
                start, end = found["data_offsets"]
                found["data_offsets"] = m.rng.choice((
                    [start, start], [end, start], [0, end], [start + 4, end + 4], [start, 2**62],
                    [-4, end], [0, len(body)]))  # fmt: skip
            elif change == "dtype":
                found["dtype"] = m.rng.choice(
                    ("F64", "F16", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "U16", "C64", "X", "")
                )
            elif change == "rename":
                tensors[odd_key(m, name)] = tensors.pop(name)
            elif change == "drop":
                del tensors[name]
            else:  # two tensors with the same bytes
                tensors[odd_key(m, name)] = dict(found)
            if not tensors:
                break
        return write_safetensors(json.dumps(tensors).encode(), body)
    if kind == "length":
        return write_safetensors(header, body, m.number())
    if kind == "body":
        return write_safetensors(header, m.bytes(body, others) if body else b"x")
    return m.bytes(data, others)


def odd_key(m: Mutator, name: str) -> str:
    """A key that is more or less similar to those of a checkpoint."""
    number = m.rng.choice(("999999999", "-1", "00", "1e3", "9" * 50, "٣", "0.0", "", "4", "1"))
    parts = name.split(".")
    numbered = [i for i, part in enumerate(parts) if part.isdigit()]
    if numbered and m.chance(0.6):
        parts[m.rng.choice(numbered)] = number
        return ".".join(parts)
    prefix = m.rng.choice(
        ("module.", "model.", "_orig_mod.", "net.", "ema_model.module.", "x.", ".")
    )
    return m.rng.choice((
        prefix + name, prefix * 50 + name, name + ".extra", name.upper(), "", ".", "a" * 10_000,
        "layers.999999999." + name, "model." + name, name[1:], name.replace(".", "/")))  # fmt: skip


# Pickle

EVIL = (
    b"cos\nsystem\n(S'touch canary'\ntR.",
    b"cbuiltins\nexec\n(S'open(\"canary\", \"w\")'\ntR.",
    b"cposix\nsystem\n(S'touch canary'\ntR0",
    b"csubprocess\ncheck_output\n((S'touch'\nS'canary'\nltR0",
    b"\x80\x02cbuiltins\neval\nX\x14\0\0\0open('canary', 'w+')\x85R0",
    b"ctorch.serialization\nload\n(S'x'\ntR0", b"cbuiltins\ngetattr\n(cos\npath\nS'sep'\ntR0",
)  # fmt: skip
"""Calls that must not run; they would create the file `canary`."""
GLOBALS = (b"os\nsystem", b"builtins\neval", b"torch\nload", b"torch._utils\n_rebuild_tensor",
           b"collections\nOrderedDict", b"torch\nDoubleStorage", b"numpy\nndarray", b"a\nb", b"\n",
           b"torch._utils\n_rebuild_sparse_tensor", b"torch\nSize", b"builtins\nbytearray",
           b"torch._utils\n_rebuild_qtensor", b"torch\nIntStorage", b"builtins\nset")  # fmt: skip


def mutate_pickle(m: Mutator, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A pickle with some changed instructions."""
    starts = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(starts)]
    for _ in range(m.rng.choice((1, 1, 2, 3))):
        at = m.rng.randrange(len(parts))
        kind = m.rng.choice(("global", "global", "number", "number", "number", "drop", "copy",
                             "swap",
                             "evil", "insert", "text", "deep", "bytes"))  # fmt: skip
        m.note(f"pickle {kind} at instruction {at}")
        if kind == "global":
            places = [i for i, part in enumerate(parts) if part[:1] == b"c"]
            if places:
                parts[m.rng.choice(places)] = b"c" + m.rng.choice(GLOBALS) + b"\n"
        elif kind == "number":
            places = [i for i, part in enumerate(parts) if part[:1] in b"KMJ"]
            if places:
                value = m.rng.choice((0, 1, -1, 2**31 - 1, -(2**31), 255, m.number() % 2**31))
                parts[m.rng.choice(places)] = b"J" + struct.pack("<i", value)
        elif kind == "drop" and len(parts) > 1:
            del parts[at]
        elif kind == "copy":
            parts[at:at] = [parts[at]] * m.rng.choice((1, 3, 1000))
        elif kind == "swap":
            other = m.rng.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == "evil":
            parts.insert(m.rng.choice((0, 1, at)), m.rng.choice(EVIL))
        elif kind == "insert":
            parts.insert(at, m.rng.choice((
                b"\x8a\xff" + bytes(255), b"\x8b" + struct.pack("<i", 2**31 - 1),
                b"\x95" + struct.pack("<Q", 2**62), b"\x8d" + struct.pack("<Q", 2**62),
                b"r" + struct.pack("<I", 2**32 - 1), b"j" + struct.pack("<I", 2**32 - 1),
                b"Q", b"0", b"2", b"(", b"t", b"s", b"u", b"b", b"R", b"\x81", b"\x80\xff",
                b"N")))  # fmt: skip
        elif kind == "text":
            places = [i for i, part in enumerate(parts) if part[:1] == b"X"]
            if places:
                text = odd_key(m, parts[m.rng.choice(places)][5:].decode(errors="replace")).encode()
                parts[m.rng.choice(places)] = b"X" + struct.pack("<I", len(text)) + text
        elif kind == "deep":
            parts.insert(at, m.rng.choice((b"]", b"(", b"}", b")")) * 100_000)
        else:
            return m.bytes(b"".join(parts), others)
    return b"".join(parts)


# Protobuf


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # as protobuf writes a negative number
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def read_fields(data: bytes) -> list[tuple[int, int, bytes]] | None:
    """(field, wire type, content) of a message; None if the bytes are not a message."""
    found, at = [], 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    try:
        while at < len(data):
            field, kind = divmod(number(), 8)
            start = at
            if kind == 0:
                number()
                content = data[start:at]
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
                content = data[start:at]
            elif kind == 2:
                size = number()
                content = data[at : at + size]
                at += size
            else:
                return None
            if at > len(data) or field == 0:
                return None
            found.append((field, kind, content))
    except IndexError:
        return None
    return found


def write_fields(fields: Sequence[tuple[int, int, bytes]]) -> bytes:
    return b"".join(
        varint(field * 8 + kind) + (varint(len(content)) if kind == 2 else b"") + content
        for field, kind, content in fields
    )


def mutate_protobuf(m: Mutator, data: bytes, others: Sequence[bytes] = (), depth: int = 0) -> bytes:
    """A message with one changed field at any depth; the outer lengths are corrected."""
    fields = read_fields(data)
    if not fields:
        return m.bytes(data, others, rounds=1)
    at = m.rng.randrange(len(fields))
    field, kind, content = fields[at]
    if kind == 2 and depth < 8 and m.chance(0.75):
        fields[at] = (field, kind, mutate_protobuf(m, content, others, depth + 1))
        return write_fields(fields)
    change = m.rng.choice(("value", "value", "drop", "copy", "swap", "number", "kind", "length"))
    m.note(f"protobuf {change} of field {field} at depth {depth}")
    if change == "value":
        fields[at] = (field, kind, varint(m.number()) if kind == 0 else m.bytes(content, others, 1))
    elif change == "drop":
        del fields[at]
    elif change == "copy":
        fields[at:at] = [fields[at]] * m.rng.choice((1, 2, 100))
    elif change == "swap":
        other = m.rng.randrange(len(fields))
        fields[at], fields[other] = fields[other], fields[at]
    elif change == "number":
        fields[at] = (m.rng.choice((1, 2, 3, 5, 7, 8, 11, 12, 14, 20, 2**28)), kind, content)
    elif change == "kind":
        fields[at] = (field, m.rng.choice((0, 1, 2, 3, 5, 6, 7)), content)
    else:
        made = write_fields(fields[:at])
        return (
            made
            + varint(field * 8 + 2)
            + varint(m.number())
            + content
            + write_fields(fields[at + 1 :])
        )
    return write_fields(fields)
