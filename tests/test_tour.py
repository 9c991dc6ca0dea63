"""The tour of the documentation: its page has the steps of its program, and steps can fail."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from eomt_deploy.exporting import ExportConfig, export

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "tour.md").read_text(encoding="utf-8")
specification = importlib.util.spec_from_file_location("tour", DOCS / "tour.py")
tour = importlib.util.module_from_spec(specification)
sys.modules["tour"] = tour  # dataclasses look their module up
specification.loader.exec_module(tour)
checks = sys.modules["tour_checks"]
SCENE = "examples/scenes/scene-1.png"
BY_TITLE = {row.title: row for row in tour.ROWS}
CHEAP = (
    "An image file",
    "Filter by class, score, area and thing",
    "Files of other programs stay",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the steps read, except for the models."""
    path = tmp_path_factory.mktemp("tour")
    tour.write_inputs(path)
    return path


@pytest.fixture(scope="module")
def folder(inputs):
    """What the cheap steps read."""
    export(ExportConfig("eomt-tiny-scenes", inputs / "tiny.onnx"))
    return inputs


def test_the_page_has_the_steps_of_the_program():
    """`python docs/tour.py --write` writes it."""
    assert len(tour.ROWS) == len(BY_TITLE) == 36
    table = re.findall(r"^\| (\d+) \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert [title for _, title, _ in table] == list(BY_TITLE)
    marks = [mark for _, _, mark in table]
    assert set(marks) <= {tour.WORKED, tour.ABSENT}
    assert f"{marks.count(tour.WORKED)} of 36 steps worked" in PAGE
    sections = dict(
        re.findall(r"^### \d+\. ([^\n]*)\n\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.S)
    )
    assert list(sections) == list(BY_TITLE)
    for title, text in sections.items():
        row = BY_TITLE[title]
        if row.language == "python":
            assert f"```python\n{row.code}\n```" in text
            continue
        places = [text.index(f"\n$ {line}\n") for line in row.code.splitlines()]
        assert places == sorted(places), title
    assert f"```python\n{tour.OPENING}\n```" in PAGE


def test_the_page_has_no_path_of_a_machine():
    assert not re.search(r"/tmp/|/home/|/root/|/work/|/Users/|[A-Z]:\\", PAGE)


@pytest.mark.parametrize("title", CHEAP)
def test_cheap_steps_work(folder, title):
    found = tour.try_row(BY_TITLE[title], folder, {})
    assert (found.mark, found.wrong) == (tour.WORKED, "")


@pytest.mark.parametrize(
    ("code", "check", "words"),
    [
        ("false", (), "the exit codes are (1,), not (0,)"),
        ("echo yes", checks.prints("no"), "'no' is not printed"),
        ("echo error E201", checks.has_fixes(1), "'fix:' is printed 0 times"),
        ("cp examples/scenes/scene-1.png a.png", checks.overlay("a.png", SCENE), "without colours"),
        ("cp examples/scenes/scene-2.png b.png", checks.overlay("b.png", SCENE), "pixels"),
        ("true", checks.is_json("missing.json"), "FileNotFoundError"),
        ("mkdir -p o/overlay", checks.result_folder("o", 1), "o has 0 overlays, not 1"),
        ("true", checks.same_video("phone.mov", "clip.mp4"), "phone.mov has 10 frames"),
        ("true", checks.video_times("phone.mov", (0, 0.04)), "phone.mov has the times"),
    ],
)  # fmt: skip
def test_a_step_with_another_result_fails(inputs, code, check, words):
    row = checks.Row("a step", code, (check,) if check else ())
    found = tour.try_row(row, inputs, {})
    assert found.mark == tour.FAILED
    assert words in found.wrong
    assert found.output.startswith(f"$ {code}")


def test_missing_hardware_is_not_success(inputs):
    row = checks.Row("a camera", "echo no camera; false", (), absent="no camera")
    assert tour.try_row(row, inputs, {}).mark == tour.ABSENT
    tried = {row.title: tour.Tried(tour.WORKED, "") for row in (tour.BEFORE, *tour.ROWS)}
    tried["A camera"] = tour.Tried(tour.ABSENT, "")
    tried["A glob"] = tour.Tried(tour.FAILED, "", "no file")
    page = tour.page(tried)
    assert "34 of 36 steps worked." in page
    assert "the hardware for step 11," in page
    assert "1 failed." in page
    assert "| 3 | A glob | ✗ |" in page
    assert "✗ no file." in page
