from __future__ import annotations

import pytest

from eomt_deploy.errors import OutputError
from eomt_deploy.files import check_writable, staging_folder, write_atomically


def test_write_makes_folders_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_failure_while_staging_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")

    def stage_and_fail():
        with staging_folder(path) as folder:
            (folder / path.name).write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage_and_fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_places(tmp_path):
    occupied = tmp_path / "occupied"
    occupied.write_text("a file, not a folder")
    for path in (occupied / "x.onnx", occupied / "deep" / "x.onnx"):
        with pytest.raises(OutputError, match="cannot be written"):
            check_writable(path)
        with pytest.raises(OutputError, match="cannot be written"):
            write_atomically(path, b"")
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)
