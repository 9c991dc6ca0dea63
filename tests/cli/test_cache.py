from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from eomt_deploy import cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.platform", "linux")
    return tmp_path / "home" / "eomt-deploy"


@pytest.fixture
def filled(folder) -> Path:
    """Two compiled models, a kernel, a download, an unfinished file, and a user's own."""
    for name in ("openvino/a.blob", "openvino/b.blob", "kernels/c.cubin"):
        cache.store(folder / name, lambda file: file.write(b"x" * 1_000_000))
    for name in ("checkpoints/0123/weights.bin", ".eomt-deploy-abc/content", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"y" * 500_000)
    return folder


def files(folder: Path) -> set[str]:
    found = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return {p.relative_to(folder).as_posix() for p in found}


def test_show(cli, filled, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "100MiB")
    code, out, _ = cli("cache", "show")
    assert code == 0
    assert f"{filled}: at most 104.9 MB" in out
    assert cache.LIMIT in out
    line = next(line for line in out.splitlines() if "compiled by OpenVINO" in line)
    assert line.split()[-5:-2] == ["2", "2.0", "MB"]
    assert "downloaded checkpoints" in out
    assert "notes.txt" in out
    data = json.loads(cli("cache", "show", "--json")[1])
    assert data["folder"] == str(filled)
    assert data["limit_bytes"] == 100 << 20
    assert len(data["entries"]) == 5
    assert data["bytes"] == sum(entry["bytes"] for entry in data["entries"]) > 4_000_000
    assert [Path(path).name for path in data["unknown"]] == ["notes.txt"]


def test_clear_keeps_downloads_and_what_is_not_ours(cli, filled):
    code, out, _ = cli("cache", "clear")
    assert code == 0
    assert "removed 4 files (3.5 MB: CUDA kernels, models compiled by OpenVINO, unfinished" in out
    assert "kept 1 files (0.5 MB: downloaded checkpoints); --all removes them, too" in out
    assert "left 1 other files" in out
    assert files(filled) == {"checkpoints/0123/weights.bin", "notes.txt"}
    code, out, _ = cli("cache", "clear", "--all")
    assert code == 0
    assert "removed 1 files" in out
    assert files(filled) == {"notes.txt"}


def test_an_empty_cache(cli, folder):
    for _ in range(2):  # there is no folder, then an empty one
        assert "It is empty." in cli("cache", "show")[1]
        assert json.loads(cli("cache", "show", "--json")[1])["entries"] == []
        assert "removed nothing" in cli("cache", "clear")[1]
        folder.mkdir(parents=True, exist_ok=True)


def test_clear_removes_nothing_through_links(cli, filled, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "d.blob").write_text("precious")
    (filled / "openvino" / "d.blob").symlink_to(outside / "d.blob")
    (filled / "matplotlib").symlink_to(outside)
    assert cli("cache", "clear", "--all")[0] == 0
    assert (outside / "d.blob").read_text() == "precious"
    assert files(filled) == {"notes.txt", "openvino/d.blob", "matplotlib"}

    moved = tmp_path / "moved"
    filled.rename(moved)
    filled.symlink_to(moved)
    code, _, err = cli("cache", "clear", "--all")
    assert code == 2
    assert "is a link" in err
    assert (moved / "notes.txt").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do it all")
def test_what_cannot_be_removed_is_named(cli, filled):
    (filled / "kernels").chmod(0o500)
    code, _, err = cli("cache", "clear")
    (filled / "kernels").chmod(0o700)
    assert code == 2
    assert "c.cubin cannot be removed: Permission denied" in err


def test_an_error_in_removing_is_named(cli, filled, monkeypatch):
    remove = cache.remove

    def refuse(entry):
        if entry.path.name == "c.cubin":
            raise PermissionError(13, "Permission denied")
        remove(entry)

    monkeypatch.setattr(cache, "remove", refuse)
    code, out, err = cli("cache", "clear")
    assert code == 2
    assert "removed 3 files" in out
    assert "c.cubin cannot be removed: Permission denied" in err
    assert "1 of 4 entries cannot be removed" in err


def test_without_a_home_folder(cli, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without one
    for verb in ("show", "clear"):
        code, _, err = cli("cache", verb)
        assert code == 2
        assert "the user has no home folder" in err
        assert "fix:" in err
