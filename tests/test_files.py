from __future__ import annotations

import os
import subprocess
import sys
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


def test_files_of_killed_processes_are_removed_and_no_others(tmp_path):
    """A file that is being written is locked; the user's files have other names."""
    writer = (
        "import sys, time\nfrom pathlib import Path\n"
        "from eomt_deploy.files import write_atomically\n"
        "def parts():\n    yield b'x'\n    print(flush=True)\n    time.sleep(60)\n"
        "write_atomically(Path(sys.argv[1]), parts())"
    )

    def start(name):
        process = subprocess.Popen(
            [sys.executable, "-c", writer, tmp_path / name], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        return process

    def write_from_new_process():
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from eomt_deploy.files import write_atomically\n"
            "write_atomically(Path(sys.argv[1]), b'done')"
        )
        subprocess.run([sys.executable, "-c", code, tmp_path / "c"], check=True)

    mine = [tmp_path / ".eomt-deploy-notes", tmp_path / ".eomt-deploy-notes.part"]
    for path in mine:
        path.write_text("of the user")
    killed, alive = start("a"), start("b")
    staged = set(tmp_path.glob("*.part")) - set(mine)
    assert len(staged) == 2
    killed.kill()
    killed.communicate()
    write_from_new_process()
    left = set(tmp_path.glob("*.part")) - set(mine)
    assert len(left) == 1
    alive.kill()
    alive.communicate()
    write_from_new_process()
    assert set(tmp_path.iterdir()) == {*mine, tmp_path / "c"}


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
