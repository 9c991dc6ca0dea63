"""Mutations that know image formats: sizes in headers, chunks, EXIF tags, bombs."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence

from .mutations import Mutator

PNG = b"\x89PNG\r\n\x1a\n"
SIZES = (0, 1, 2, 3, 7, 400, 4000, 12000, 13000, 16383, 16384, 23170, 30000, 46341, 65500, 65535,
         65536, 100_000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)  # fmt: skip
TIFF_TYPES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}
TIFF_TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 284, 292, 296, 305,
             306, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347, 513, 514, 529, 530, 700, 33432,
             34665, 34675, 34853, 36864, 37500, 40965)  # fmt: skip


def mutate_image(m: Mutator, data: bytes, others: Sequence[bytes]) -> bytes:
    """Mutate one image: half of the time by its format, else as bytes."""
    if m.chance(0.45):
        return m.bytes(data, others)
    try:
        if data.startswith(PNG):
            return _png(m, data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg(m, data)
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(m, data)
        if data.startswith(b"RIFF"):
            return _webp(m, data)
        if data[:1] == b"P" and data[1:2].isalnum():
            return _ppm(m, data)
        return _sized(m, data)
    except (struct.error, IndexError, ValueError, ZeroDivisionError):  # already mutated once
        return m.bytes(data, others)


def zeros(megabytes: int, wrapper: int = 15) -> bytes:
    """A deflate stream of zeros, created quickly for any size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    raw = piece * megabytes + b"\x03\0"
    return raw if wrapper < 0 else b"\x78\xda" + raw + b"\0\0\0\1"


def odd_exif(m: Mutator) -> bytes:
    """A TIFF structure with unusual tags, types, counts and values; often with an orientation."""
    order = m.rng.choice("<>")
    entries, extra = [], b""
    tags = m.rng.sample(TIFF_TAGS, m.rng.randint(1, 6)) + [274] * m.chance(0.7)
    base = 8 + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        kind = m.rng.choice((*TIFF_TYPES, 0, 99)) if tag != 274 or m.chance(0.2) else 3
        count = m.rng.choice((0, 1, 1, 1, 2, 3, 4, 1000, 2**31)) if tag != 274 else 1
        size = TIFF_TYPES.get(kind, 1) * count
        if tag == 274 and kind == 3:
            value = struct.pack(
                order + "HH", m.rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535)), 0
            )
        elif size <= 4 or size > 1 << 16:
            value = struct.pack(order + "I", m.number() & 0xFFFFFFFF)
        else:
            value = struct.pack(order + "I", base + len(extra))
            extra += m.rng.choice((bytes(size), m.rng.randbytes(size), b"\xff" * size))
        entries.append(struct.pack(order + "HHI", tag, kind, count) + value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    following = m.rng.choice((0, 0, 8, m.number() & 0xFFFFFFFF))
    m.note(f"EXIF with tags {sorted(tags)}")
    return head + struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(
        order + "I", following
    ) + extra  # fmt: skip


# PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(PNG)
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _png(m: Mutator, data: bytes) -> bytes:
    chunks = _png_chunks(data)
    for _ in range(m.rng.choice((1, 1, 2, 3))):
        kind = m.rng.choice(("size", "size", "header", "bomb", "drop", "copy", "swap", "body",
                             "add",
                             "add", "exif"))  # fmt: skip
        m.note(f"PNG {kind}")
        at = m.rng.randrange(len(chunks))
        name, body = chunks[at]
        if kind == "size":
            width, height = m.rng.choice(SIZES), m.rng.choice(SIZES)
            chunks[0] = (b"IHDR", struct.pack(">II", width, height) + chunks[0][1][8:])
            m.note(f"{width}x{height}")
        elif kind == "header":
            depth, color = m.rng.choice((1, 2, 4, 8, 16, 0, 3, 255)), m.rng.randrange(8)
            rest = bytes([depth, color, m.rng.randrange(2), m.rng.randrange(2), m.rng.randrange(3)])
            chunks[0] = (b"IHDR", chunks[0][1][:8] + rest)
        elif kind == "bomb":
            side = m.rng.choice((400, 5000, 12000, 13000, 30000))
            depth, color = m.rng.choice(((1, 0), (8, 0), (8, 2), (8, 6), (16, 6), (1, 3)))
            head = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, m.rng.randrange(2))
            chunks = [(b"IHDR", head), (b"PLTE", bytes(6)),
                      (b"IDAT", zeros(m.rng.choice((1, 20, 200)))), (b"IEND", b"")]  # fmt: skip
            m.note(f"{side}x{side}, {depth} bits, colour type {color}")
        elif kind == "drop" and len(chunks) > 1:
            del chunks[at]
        elif kind == "copy":
            chunks[at:at] = [chunks[at]] * m.rng.choice((1, 2, 200))
        elif kind == "swap":
            other = m.rng.randrange(len(chunks))
            chunks[at], chunks[other] = chunks[other], chunks[at]
        elif kind == "body":
            chunks[at] = (name, m.bytes(body))
        elif kind == "exif":
            chunks.insert(1, (b"eXIf", odd_exif(m)))
        else:
            packed = b"k\0\0" + zeros(m.rng.choice((1, 60)))
            frames = struct.pack(">II", m.number() & 0xFFFFFFFF, 0)
            new = m.rng.choice(((b"zTXt", packed), (b"iCCP", packed), (b"tEXt",
                                b"k\0" + bytes(9**5)),
                                (b"acTL", frames), (b"tRNS", m.rng.randbytes(m.rng.randrange(300))),
                                (b"PLTE", m.rng.randbytes(m.rng.choice((0, 1, 3, 768, 769)))),
                                (b"iTXt", b"k\0\1\0\0\0" + zeros(60)),
                                (b"cHRM", bytes(3)), (b"gAMA", bytes(4)),
                                (b"fcTL", m.rng.randbytes(26)), (b"zzzz", bytes(4))))  # fmt: skip
            chunks.insert(m.rng.randrange(len(chunks)) + 1, new)
            m.note(new[0].decode())
    made = PNG + b"".join(chunk(name, body) for name, body in chunks)
    return m.bytes(made, rounds=1) if m.chance(0.1) else made


# JPEG


def _jpeg(m: Mutator, data: bytes) -> bytes:
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        segments.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
    scan = data[at:]
    kind = m.rng.choice(("size", "size", "frame", "exif", "exif", "exif", "drop", "copy", "swap",
                         "body", "scan", "icc", "mpf"))  # fmt: skip
    m.note(f"JPEG {kind}")
    where = m.rng.randrange(len(segments))
    frames = [i for i, (marker, _) in enumerate(segments) if 0xC0 <= marker <= 0xC2]
    if kind in ("size", "frame") and frames:
        marker, body = segments[frames[0]]
        if kind == "size":
            height, width = (m.rng.choice(SIZES) & 0xFFFF for _ in range(2))
            body = body[:1] + struct.pack(">HH", height, width) + body[5:]
            m.note(f"{width}x{height}")
        else:
            at = m.rng.randrange(len(body))
            body = body[:at] + m.rng.randbytes(1) + body[at + 1 :]
            marker = m.rng.choice((marker, 0xC0, 0xC1, 0xC2, 0xC3, 0xC9))
        segments[frames[0]] = (marker, body)
    elif kind == "exif":
        segments = [s for s in segments if s[0] != 0xE1]
        segments.insert(m.rng.randrange(2), (0xE1, b"Exif\0\0" + odd_exif(m)))
    elif kind == "icc":
        head = b"ICC_PROFILE\0" + bytes([m.rng.randrange(4), m.rng.randrange(4)])
        segments.insert(1, (0xE2, head + m.rng.randbytes(m.rng.choice((0, 10, 3000)))))
    elif kind == "mpf":
        segments.insert(1, (0xE2, b"MPF\0" + odd_exif(m)))
    elif kind == "drop":
        del segments[where]
    elif kind == "copy":
        segments[where:where] = [segments[where]] * m.rng.choice((1, 2, 300))
    elif kind == "swap":
        other = m.rng.randrange(len(segments))
        segments[where], segments[other] = segments[other], segments[where]
    elif kind == "body":
        segments[where] = (segments[where][0], m.bytes(segments[where][1]))
    else:
        scan = m.bytes(scan)
    head = b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", (len(body) + 2) & 0xFFFF) + body
        for marker, body in segments
    )
    return b"\xff\xd8" + head + scan


# TIFF


def _tiff(m: Mutator, data: bytes) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    changed = bytearray(data)
    start = struct.unpack_from(order + "I", data, 4)[0]
    count = struct.unpack_from(order + "H", data, start)[0]
    for _ in range(m.rng.choice((1, 1, 2, 4))):
        at = start + 2 + 12 * m.rng.randrange(count)
        tag, field, number, value = struct.unpack_from(order + "HHII", changed, at)
        kind = m.rng.choice(("value", "value", "size", "tag", "type", "count", "next", "many"))
        if kind == "size":
            for place in range(start + 2, start + 2 + 12 * count, 12):
                name = struct.unpack_from(order + "H", changed, place)[0]
                if name in (256, 257, 278):
                    size = m.rng.choice(SIZES) & 0xFFFFFFFF
                    struct.pack_into(order + "HII", changed, place + 2, 4, 1, size)
                    m.note(f"TIFF tag {name} = {size}")
        elif kind == "value":
            value = m.number() & 0xFFFFFFFF
            struct.pack_into(order + "I", changed, at + 8, value)
        elif kind == "tag":
            struct.pack_into(order + "H", changed, at, m.rng.choice(TIFF_TAGS))
        elif kind == "type":
            struct.pack_into(order + "H", changed, at + 2, m.rng.choice((*TIFF_TYPES, 0, 77)))
        elif kind == "count":
            struct.pack_into(order + "I", changed, at + 4, m.number() & 0xFFFFFFFF)
        elif kind == "next":  # a directory that is its own successor
            struct.pack_into(order + "I", changed, start + 2 + 12 * count, start)
        else:
            struct.pack_into(order + "H", changed, start, m.number() & 0xFFFF)
        m.note(f"TIFF {kind} of tag {tag}, type {field}, count {number}, value {value}")
    return bytes(changed)


# WebP, PPM and other formats


def _webp(m: Mutator, data: bytes) -> bytes:
    chunks, at = [], 12
    while at + 8 <= len(data):
        size = struct.unpack_from("<I", data, at + 4)[0]
        chunks.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    kind = m.rng.choice(("canvas", "frames", "size", "drop", "copy", "body", "exif", "swap"))
    m.note(f"WebP {kind}")
    where = m.rng.randrange(len(chunks))
    name, body = chunks[where]
    side = (m.rng.choice(SIZES) - 1) & 0xFFFFFF
    if kind in ("canvas", "exif"):
        chunks = [c for c in chunks if c[0] != b"VP8X"]
        flags = m.rng.choice((0, 2, 8, 0x10, 0x3E)) if kind == "canvas" else 8
        size = struct.pack("<I", side)[:3] * 2
        chunks.insert(0, (b"VP8X", bytes([flags, 0, 0, 0]) + size))
        if kind == "exif":
            chunks.append((b"EXIF", odd_exif(m)))
    elif kind == "frames":
        animated = [c for c in chunks if c[0] == b"ANMF"] or chunks
        chunks += animated * m.rng.choice((1, 20, 2000))
    elif kind == "size":
        at = m.rng.randrange(min(10, len(body)) or 1)
        chunks[where] = (name, body[:at] + m.rng.randbytes(3) + body[at + 3 :])
    elif kind == "drop":
        del chunks[where]
    elif kind == "copy":
        chunks.insert(where, chunks[where])
    elif kind == "swap":
        other = m.rng.randrange(len(chunks))
        chunks[where], chunks[other] = chunks[other], chunks[where]
    else:
        chunks[where] = (name, m.bytes(body))
    rest = b"".join(n + struct.pack("<I", len(b)) + b + b"\0" * (len(b) % 2) for n, b in chunks)
    return b"RIFF" + struct.pack("<I", len(rest) + 4) + b"WEBP" + rest


def _ppm(m: Mutator, data: bytes) -> bytes:
    tokens = re.split(rb"(\s+)", data[:40], maxsplit=8)
    at = m.rng.randrange(len(tokens))
    tokens[at] = m.rng.choice((b"", b"-1", b"0", b"1e9", b"99999999999", b"256", b"65535", b"70000",
                               b"# c\n", b"#" + b"c" * 300 + b"\n", b"P6", b"P7", b"Pf", b"\0",
                               b"12000", b"13000", b"30000", str(m.number()).encode()))  # fmt: skip
    m.note(f"PPM header {b''.join(tokens)[:30]!r}")
    return b"".join(tokens) + data[40:]


def _sized(m: Mutator, data: bytes) -> bytes:
    """Change the size in the header: GIF at byte 6, BMP 18, PSD 14, TGA 12, DDS 12, ICO 6."""
    changed = bytearray(data)
    for _ in range(m.rng.choice((1, 2, 2))):
        kind = m.rng.choice(("<H", ">H", "<I", ">I"))
        at = m.rng.choice((6, 8, 12, 14, 16, 18, 22, 26, 28, 32, 46, 50))
        value = m.rng.choice(SIZES) % (1 << 8 * struct.calcsize(kind))
        struct.pack_into(kind, changed, at, value)
        m.note(f"{value} at byte {at}")
    return bytes(changed)
