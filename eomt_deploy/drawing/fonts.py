"""Text as pixels, in a font that has its characters."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

BUNDLED = str(Path(__file__).with_name("DejaVuSans.ttf"))
"""DejaVu Sans 2.37: Latin, Greek, Cyrillic and more, so most overlays are equal on all machines."""
FONTS = (
    "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Nirmala.ttc", "segoeui.ttf",  # Windows
    "Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc",  # macOS
)  # fmt: skip
"""Fonts for other scripts, by the names of their files in the folders of the system."""
MISSING = "\U0010ffff"
"""Not a character, so every font draws its sign for a missing character."""
SAMPLE_SIZE = 16
Mask = npt.NDArray[np.uint8]


@lru_cache(maxsize=512)
def text_mask(text: str, size: int) -> Mask:
    """The opacity of a text, uint8 [H, W], whose height depends on ``size`` and the script only.

    A character that no installed font has appears as a rectangle.

    Args:
        text: one line.
        size: height of the font in pixels.
    """
    font = _sized(_font_of(frozenset(c for c in text if not c.isascii())), size)
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    _, usual_top, _, usual_bottom = font.getbbox("Hgß%0", anchor="ls")
    top, bottom = min(top, usual_top), max(bottom, usual_bottom)
    shape = max(1, int(np.ceil(right - left))), max(1, int(np.ceil(bottom - top)))
    picture = Image.new("L", shape)
    ImageDraw.Draw(picture).text((-left, -top), text, 255, font, anchor="ls")
    return np.array(picture)


@lru_cache(maxsize=512)
def _font_of(characters: frozenset[str]) -> str:
    """File of the first font with all of some characters; else of the one with most of them."""
    best, fewest = BUNDLED, missing(BUNDLED, characters)
    if fewest:
        for name in (*_fontconfig(characters), *FONTS):
            with suppress(OSError):  # not installed
                count = missing(name, characters)
                if count < fewest:
                    best, fewest = name, count
                if not count:
                    break
    return best


def _fontconfig(characters: frozenset[str]) -> list[str]:
    """The font that fontconfig (Linux) prefers for some characters."""
    program = shutil.which("fc-match")
    if program is None:
        return []
    codes = " ".join(f"{ord(c):x}" for c in sorted(characters))
    command = [program, "-f", "%{file}", f":charset={codes}"]
    with suppress(OSError, subprocess.SubprocessError, UnicodeDecodeError):
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
        return [done.stdout.decode()]
    return []


def missing(name: str, characters: frozenset[str]) -> int:
    """How many of the characters a font does not have.

    Raises:
        OSError: the font is not installed.
    """
    font = _sized(name, SAMPLE_SIZE)
    sign = _drawn(font, MISSING)
    return sum(_drawn(font, character) == sign for character in characters)


def _drawn(font: Any, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@lru_cache(maxsize=64)
def _sized(name: str, size: int) -> Any:
    return ImageFont.truetype(name, size)
