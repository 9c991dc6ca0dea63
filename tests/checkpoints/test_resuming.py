"""Downloads that were interrupted are resumed, or started again."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time

import pytest
from filelock import FileLock
from web_server import CONTENT, DIGEST, HALF, fetch, kept

from eomt_deploy.checkpoints import transfer
from eomt_deploy.checkpoints.download import download
from eomt_deploy.cli import main, stopping
from eomt_deploy.errors import CheckpointError


@pytest.fixture
def interrupted(server):
    """Put half of the file into the cache."""
    server.stop_at = HALF
    with pytest.raises(CheckpointError, match="ended"):
        fetch(server)
    server.stop_at = None
    return server


def test_a_server_that_ignores_ranges(interrupted):
    interrupted.ranges = False
    assert fetch(interrupted).read_bytes() == CONTENT


@pytest.mark.parametrize("trusts", [False, True])
def test_a_file_that_changed_meanwhile(interrupted, trusts):
    interrupted.content, interrupted.etag, interrupted.trusts = CONTENT[::-1], '"two"', trusts
    assert fetch(interrupted).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("size", [10, HALF])
def test_a_file_that_became_shorter(interrupted, size):
    interrupted.content = b"x" * size
    if size == HALF:  # the ETag is unchanged, so the file is complete
        assert fetch(interrupted).read_bytes() == CONTENT[:HALF]
    else:
        assert fetch(interrupted).read_bytes() == b"x" * size


def test_all_but_the_last_step_was_done(server, tmp_path):
    server.stop_at = HALF
    address = f"w.pt#sha256={DIGEST}"
    with pytest.raises(CheckpointError, match="ended"):
        fetch(server, address)
    (partial,) = (tmp_path / "cache").rglob("*.partial")
    partial.write_bytes(CONTENT)
    server.stop_at = None
    assert fetch(server, address).read_bytes() == CONTENT
    assert kept(tmp_path) == ["w.pt"]


@pytest.mark.parametrize(("etag", "modified", "resumed"), [
    (None, None, False),
    ('W/"weak"', None, False),
    (None, "Wed, 21 Oct 2026 07:28:00 GMT", True),
])  # fmt: skip
def test_only_what_is_known_to_be_the_same_is_resumed(server, etag, modified, resumed):
    server.etag, server.modified, server.stop_at = etag, modified, HALF
    with pytest.raises(CheckpointError, match="ended") as caught:
        fetch(server)
    assert ("are kept" in caught.value.fix) == resumed
    server.stop_at = None
    assert fetch(server).read_bytes() == CONTENT
    assert ("Range" in server.headers[-1]) == resumed


def test_with_a_hash_everything_is_resumed_and_checked(server, tmp_path):
    server.etag, server.stop_at = None, HALF
    address = f"w.pt#sha256={DIGEST}"
    with pytest.raises(CheckpointError, match="ended"):
        fetch(server, address)
    (partial,) = (tmp_path / "cache").rglob("*.partial")
    partial.write_bytes(bytes(HALF))  # another file, which only the hash reveals
    server.stop_at = None
    assert fetch(server, address).read_bytes() == CONTENT
    assert [("Range" in h) for h in server.headers] == [False, True, False]


def test_notes_that_were_cut_off(interrupted, tmp_path):
    (notes,) = (tmp_path / "cache").rglob("*.partial.json")
    for text in ("", "{", "[1]", '{"validator": 5}'):
        notes.write_text(text)
        assert fetch(interrupted).read_bytes() == CONTENT


def test_a_body_in_another_encoding(server):
    server.extra = {"Content-Encoding": "gzip"}
    with pytest.raises(CheckpointError, match="encoded the file as gzip"):
        fetch(server)
    assert server.headers[-1]["Accept-Encoding"] == "identity"


@pytest.fixture
def stalled(server, tmp_path):
    """A server that sends half of the file, the command that loads it, and a wait for the half."""
    server.stall_at = HALF
    command = [
        "eomt-deploy", "export", f"{server.address}/w.pt", "--insecure", "--task", "semantic",
        "-o", str(tmp_path / "m.onnx"),
    ]  # fmt: skip

    def until_half(running=lambda: True):
        deadline = time.monotonic() + 120
        while not any(p.stat().st_size == HALF for p in (tmp_path / "cache").rglob("*.partial")):
            assert time.monotonic() < deadline
            assert running()
            time.sleep(0.05)

    yield command, until_half
    server.stall_at = None
    assert fetch(server).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == f"bytes={HALF}-"


@pytest.fixture
def handlers(monkeypatch):
    """Restore what a command that owns the process changes."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in stopping.NAMES}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(stopping, "_received", [])
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_can_be_resumed(stalled, capsys, monkeypatch, number):
    command, until_half = stalled
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(transfer, "TIMEOUT", 60)  # the signal comes first

    def interrupt():
        until_half()
        signal.pthread_kill(threading.main_thread().ident, number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 128 + number
    err = capsys.readouterr().err
    assert "the next run resumes from there" in err
    assert "Traceback" not in err


def test_a_killed_process_leaves_what_can_be_resumed(stalled, capfd):
    command, until_half = stalled
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    process = context.Process(target=download, args=(command[2],), kwargs={"insecure": True})
    process.start()
    until_half(process.is_alive)
    process.kill()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    err = capfd.readouterr().err
    assert "the next run resumes from there" not in err
    assert "Traceback" not in err


def test_two_processes_do_not_write_one_file(server, capfd, tmp_path):
    address = f"w.pt#sha256={DIGEST}"
    target = fetch(server, address)
    target.unlink()
    lock = FileLock(tmp_path / "cache/eomt-deploy/checkpoints/.locks" / f"{DIGEST[:16]}.lock")
    found = []
    with lock:
        other = threading.Thread(target=lambda: found.append(fetch(server, address)))
        other.start()
        time.sleep(2.5)
        assert len(server.requests) == 1
        target.write_bytes(CONTENT)  # the first process has downloaded it
    other.join(30)
    assert found == [target]
    assert len(server.requests) == 1
    assert "Waiting for another process" in capfd.readouterr().err
