from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from eomt_deploy.errors import OutputError
from eomt_deploy.files import check_writable, save_picture, staging_folder, write_atomically


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


def test_pipes_and_links_stay_what_they_are(tmp_path):
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    write_atomically(Path(os.devnull), b"gone")
    assert not Path(os.devnull).is_file()


def test_checking_leaves_no_folders(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c.txt")
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_the_format_cannot_hold(tmp_path):
    with pytest.raises(OutputError, match="70000x1"):
        save_picture(Image.new("RGB", (70000, 1)), tmp_path / "long.jpg")
    assert list(tmp_path.iterdir()) == []
