from __future__ import annotations

import subprocess

import numpy as np
import pytest
from PIL import ImageFont

from eomt_deploy.drawing import fonts
from eomt_deploy.drawing.fonts import BUNDLED, missing, text_mask


@pytest.fixture(autouse=True)
def no_cache():
    for function in (text_mask, fonts._font_of):
        function.cache_clear()
    yield
    for function in (text_mask, fonts._font_of):
        function.cache_clear()


def test_the_bundled_font_has_european_scripts():
    text = "Straße Müller façade кошка γάτα Łódź çiçek 0123456789 ×…%"
    assert missing(BUNDLED, frozenset(text) - {" "}) == 0
    assert missing(BUNDLED, frozenset("猫a")) == 1


def test_characters_that_differ_look_different():
    masks = [text_mask(character, 20) for character in "aßщγ"]
    assert len({mask.tobytes() for mask in masks}) == len(masks)


@pytest.mark.parametrize("text", ["a", "Hg", "gypsy", "x 0.98", "Straße"])
@pytest.mark.parametrize("size", [6, 13, 42])
def test_all_latin_texts_have_the_same_height(text, size):
    mask = text_mask(text, size)
    assert mask.dtype == np.uint8
    assert mask.max() > 128
    assert mask.shape[0] == text_mask("", size).shape[0]
    assert size * 0.7 < mask.shape[0] < size * 1.4


def test_nothing_of_a_text_is_cut_off():
    for text in ("fjord", "Åg", "Ắy"):
        mask, font = text_mask(text, 40), ImageFont.truetype(BUNDLED, 40)
        wanted = np.asarray(font.getmask(text), np.uint8).reshape(font.getmask(text).size[::-1])
        assert (
            abs(int(mask.astype(int).sum()) - int(wanted.astype(int).sum())) < 0.02 * wanted.sum()
        )


def test_another_font_is_taken_if_it_has_the_characters(monkeypatch):
    """`missing` decides; the bundled font plays the part of a Chinese one."""
    counts = {BUNDLED: 1, "a.ttf": 1, "b.ttf": 0, "c.ttf": 0}

    def fake(name, characters):
        if name == "absent.ttf":
            raise OSError
        return counts[name]

    monkeypatch.setattr(fonts, "missing", fake)
    monkeypatch.setattr(fonts, "_fontconfig", lambda characters: ["absent.ttf", "a.ttf"])
    monkeypatch.setattr(fonts, "FONTS", ("b.ttf", "c.ttf"))
    assert fonts._font_of("猫") == "b.ttf"
    counts["b.ttf"] = counts["c.ttf"] = 1
    fonts._font_of.cache_clear()
    assert fonts._font_of("猫") == BUNDLED


def test_fontconfig_is_asked_for_the_characters(monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, b"/fonts/cjk.ttc")

    monkeypatch.setattr(fonts.shutil, "which", lambda name: "/usr/bin/fc-match")
    monkeypatch.setattr(fonts.subprocess, "run", run)
    assert fonts._fontconfig(frozenset("猫a")) == ["/fonts/cjk.ttc"]
    assert commands == [["/usr/bin/fc-match", "-f", "%{file}", ":charset=61 732b"]]
    monkeypatch.setattr(fonts.shutil, "which", lambda name: None)
    assert fonts._fontconfig(frozenset("猫")) == []


def test_chinese_is_not_tofu_if_a_font_has_it():
    name = fonts._font_of("猫")
    if missing(name, frozenset("猫")):
        pytest.skip("no installed font has this character")
    assert text_mask("猫", 20).tobytes() != text_mask("犬", 20).tobytes()


def test_a_font_is_looked_for_once_for_the_same_characters(monkeypatch):
    calls = []
    monkeypatch.setattr(fonts, "_fontconfig", lambda characters: calls.append(characters) or [])
    fonts._font_of.cache_clear()
    for score in range(50):
        text_mask(f"狐 {score / 100:.2f}", 12)
    fonts._font_of.cache_clear()
    assert calls == [frozenset("狐")]
