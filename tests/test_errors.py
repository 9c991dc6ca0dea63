from __future__ import annotations

import re
from pathlib import Path

import pytest

from eomt_deploy import errors
from eomt_deploy.errors import FILE_SYSTEM_ID, EomtDeployError, first_line

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
CLASSES = [
    entry
    for entry in vars(errors).values()
    if isinstance(entry, type) and issubclass(entry, EomtDeployError)
]


def test_ids_are_unique_and_begin_with_the_exit_code():
    ids = [entry.id for entry in CLASSES] + [FILE_SYSTEM_ID]
    assert len(set(ids)) == len(ids)
    for entry in CLASSES:
        assert "id" in vars(entry), f"{entry.__name__} needs an id of its own"
        assert re.fullmatch(rf"E{entry.exit_code}\d\d", entry.id), entry


def test_the_page_explains_every_id_and_no_other():
    headings = re.findall(r"^## (E\d+): (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    expected = {entry.id: entry.__name__ for entry in CLASSES}
    assert dict(headings) == expected | {FILE_SYSTEM_ID: "file system"}
    assert len(headings) == len(expected) + 1


def test_every_section_has_causes_and_fixes():
    text = PAGE.read_text(encoding="utf-8")
    for section in re.split(r"^## (?=E\d)", text, flags=re.MULTILINE)[1:]:
        assert "| cause | fix |" in section, section[:40]


def test_the_command_line_prints_the_id(cli, tmp_path):
    code, _, err = cli("inspect", tmp_path / "missing.onnx")
    assert code == 2
    assert err.startswith("error E205: ")


def test_the_file_system_has_an_id(cli, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied", "secret.onnx")

    monkeypatch.setattr("eomt_deploy.cli.app._parse_and_run", refuse)
    code, _, err = cli("inspect", "secret.onnx")
    assert code == 2
    first, second = err.splitlines()
    assert first == f"error {FILE_SYSTEM_ID}: secret.onnx: Permission denied"
    assert second.startswith("  fix: Change the permissions")


@pytest.mark.parametrize("entry", CLASSES, ids=lambda entry: entry.__name__)
def test_a_docstring_says_what_happened(entry):
    assert entry.__doc__
    assert entry.__doc__.strip().endswith(".") or "Args:" in entry.__doc__


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("\n the reason\nand details"), "the reason"),
        (MemoryError(), "MemoryError"),
        (AssertionError("  \n"), "AssertionError"),
    ],
)
def test_the_first_line_of_errors_of_libraries(error, line):
    assert first_line(error) == line
