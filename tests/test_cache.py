from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eomt_deploy import cache
from eomt_deploy.errors import OutputError, UsageError
from eomt_deploy.files import cache_folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv(cache.LIMIT, raising=False)
    return tmp_path / "home" / "eomt-deploy"


def keep(name: str, content: bytes = b"content", used: float | None = None) -> Path:
    path = cache_folder() / name
    cache.store(path, lambda file: file.write(content))
    if used is not None:
        os.utime(path, (used, used))
    return path


def test_what_is_stored_is_loaded(folder):
    path = keep("kernels/a.cubin", b"x" * 1000)
    found = cache.load(path)
    assert found == b"x" * 1000
    assert not found.readonly  # OpenVINO needs writable memory; changes stay in this process
    found[0] = 0
    assert cache.load(path) == b"x" * 1000
    assert [p.name for p in path.parent.iterdir()] == ["a.cubin"]
    keep("kernels/a.cubin", b"new")
    assert cache.load(path) == b"new"
    assert keep("kernels/empty.cubin", b"").stat().st_size == cache.HEADER_BYTES
    assert cache.load(folder / "kernels/empty.cubin") == b""


def test_a_writer_may_go_back(folder):
    """OpenVINO also seeks back to fill in sizes."""

    def write(file: io.BytesIO) -> None:
        file.write(b"size?")
        place = file.tell()
        file.write(b" content")
        end = file.seek(0, os.SEEK_CUR)
        file.seek(0)
        file.write(b"%05d" % (end - place))
        file.seek(0, os.SEEK_END)
        file.write(b".")

    cache.store(folder / "a.jit", write)
    assert cache.load(folder / "a.jit") == b"00008 content."


@pytest.mark.parametrize("place", [0, 25, 60, 100, 127, 128, 600, -1])
def test_one_wrong_bit_anywhere_is_seen(folder, place):
    path = keep("a.timing", b"y" * 1000)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert cache.load(path) is None


def test_what_is_not_ours_is_not_loaded(folder):
    path = keep("a.timing")
    foreign = keep("b.timing", b"other")
    path.write_bytes(foreign.read_bytes())
    assert cache.load(path) is None  # valid as b, but not as a
    for content in (b"", b"plain", foreign.read_bytes()[:-1], foreign.read_bytes() + b"x"):
        foreign.write_bytes(content)
        assert cache.load(foreign) is None
    assert cache.load(folder) is None
    assert cache.load(folder / "missing.timing") is None
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.timing")
        assert cache.load(folder / "pipe.timing") is None  # and does not block


def test_a_file_that_cannot_be_read_is_not_loaded(folder, monkeypatch):
    path = keep("a.timing")

    def denied(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert cache.load(path) is None


def test_a_full_disk_leaves_what_was_there(folder):
    path = keep("a.jit", b"old")

    def full(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        cache.store(path, full)
    assert cache.load(path) == b"old"
    assert [p.name for p in folder.iterdir()] == ["a.jit"]


def test_an_error_that_the_writer_hides_is_found(folder):
    """OpenVINO continues after a failed write."""
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from eomt_deploy import cache\n"
        "def write(file):\n"
        "    for _ in range(100):\n"
        "        try:\n"
        "            file.write(b'x' * 1000)\n"
        "            file.seek(0, 1)\n"
        "        except OSError:\n"
        "            print('the writer saw it')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    cache.store(Path(sys.argv[1]), write)\n"
        "except cache.OutputError as error:\n"
        "    print(error.what)\n"
    )
    pytest.importorskip("resource")
    command = [sys.executable, "-c", program, str(folder / "a.jit")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder / 'a.jit'} cannot be written: File too large.\n"
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(folder):
    folder.parent.mkdir()
    folder.write_text("a file stands in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        keep("a.jit")
    assert cache.entries() == []
    assert cache.unknown_files() == []


def test_no_home_folder_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without a home folder
    with pytest.raises(OutputError, match=r"no home folder(.|\n)*XDG_CACHE_HOME"):
        cache_folder()


def test_the_least_recently_used_go_first(folder, monkeypatch):
    size = 1000 + cache.HEADER_BYTES
    monkeypatch.setenv(cache.LIMIT, str(3 * size))
    now = time.time()
    old, used, new = (
        keep(f"openvino/{name}.blob", b"z" * 1000, now - age)
        for name, age in (("old", 300), ("used", 500), ("new", 100))
    )
    assert cache.load(used) is not None  # used now
    fourth = keep("openvino/fourth.blob", b"z" * 1000)
    assert not old.exists()
    assert used.exists()
    assert new.exists()
    assert fourth.exists()
    fifth = keep("a.timing", b"z" * 2000)  # needs as much space as two others
    assert not new.exists()
    assert fifth.exists()
    assert sum(entry.bytes for entry in cache.entries()) <= 3 * size


def test_downloads_do_not_count(folder, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "2000")
    download = folder / "checkpoints" / "abc" / "weights.bin"
    download.parent.mkdir(parents=True)
    download.write_bytes(b"w" * 10_000)
    os.utime(download, (1, 1))
    path = keep("a.jit")
    assert path.exists()
    assert download.exists()


def test_folders_of_other_libraries_go_when_nobody_uses_them(folder, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "2000")
    code = folder / "torchinductor" / "deep" / "code.so"
    code.parent.mkdir(parents=True)
    code.write_bytes(b"c" * 10_000)
    keep("a.jit")
    assert code.exists()  # it may be in use
    os.utime(code, (1, 1))
    keep("a.jit")
    assert not (folder / "torchinductor").exists()


def test_what_is_larger_than_the_limit_is_not_written(folder, monkeypatch):
    old = keep("a.jit")
    monkeypatch.setenv(cache.LIMIT, "1K")
    with pytest.raises(OutputError, match=f"the limit of the cache is(.|\n)*{cache.LIMIT}"):
        keep("b.jit", b"x" * 2000)
    with pytest.raises(OutputError, match="the limit of the cache is"):
        cache.store(folder / "b.jit", None, estimate=2000)  # `write` is not called
    assert old.exists()
    monkeypatch.setenv(cache.LIMIT, "some")
    with pytest.raises(UsageError, match="not a size"):
        keep("b.jit")


def test_links_are_neither_followed_nor_removed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "500")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.blob").write_bytes(b"p" * 10_000)
    folder.mkdir(parents=True)
    (folder / "openvino").symlink_to(outside)
    (folder / "precious.jit").symlink_to(outside / "precious.blob")
    (folder / "matplotlib").mkdir()
    (folder / "matplotlib" / "link").symlink_to(outside)
    (folder / "checkpoints").symlink_to(outside)
    keep("a.timing")
    assert {entry.path.name for entry in cache.entries()} == {"a.timing", "matplotlib"}
    for entry in cache.entries():
        cache.remove(entry)
    assert (outside / "precious.blob").exists()
    assert {p.name for p in cache.unknown_files()} == {"openvino", "precious.jit", "checkpoints"}


def test_several_processes_write_and_read_at_once(folder):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from eomt_deploy import cache\n"
        "path, content = Path(sys.argv[1]), sys.argv[2].encode() * 100_000\n"
        "for _ in range(50):\n"
        "    cache.store(path, lambda file: file.write(content))\n"
        "    found = cache.load(path)\n"
        "    assert found is not None and bytes(found[:1]) * 100_000 == found\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(folder / "a.jit"), letter])
        for letter in "xyz"
    ]
    assert [one.wait() for one in running] == [0, 0, 0]
    assert [p.name for p in folder.iterdir()] == ["a.jit"]


def test_torch_keeps_its_files_in_our_folder(folder, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "chosen by the user")
    cache.keep_files_of_torch()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "chosen by the user"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    cache.keep_files_of_torch()
    assert os.environ.pop("TORCHINDUCTOR_CACHE_DIR") == str(folder / "torchinductor")
    (folder / "torchinductor").rmdir()
    folder.rmdir()
    folder.write_text("in the way")
    cache.keep_files_of_torch()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
