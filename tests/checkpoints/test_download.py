from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import FileLock

from eomt_deploy.addresses import without_secrets
from eomt_deploy.checkpoints import download as module
from eomt_deploy.checkpoints import read_checkpoint, transfer
from eomt_deploy.checkpoints.download import download
from eomt_deploy.errors import CheckpointError

CONTENT = bytes(range(256)) * 2000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    trusts: bool = False
    """Continues a range although the file is another one than If-Range says."""
    stop_at: int | None = None
    """Closes the connection after so many bytes of the file."""
    stall_at: int | None = None
    """Sends nothing any more after so many bytes of the file."""
    extra: dict = field(default_factory=dict)
    chunked: bool = False
    redirect: str | None = None
    asked: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    address: str = ""
    released: threading.Event = field(default_factory=threading.Event)


def handler_of(server: Behaviour):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            server.headers.append(dict(self.headers))
            if self.path.startswith("/redirected"):
                self.send_response(302)
                self.send_header("Location", server.redirect)
                self.end_headers()
            elif not self.path.partition("?")[0].endswith("w.pt"):
                self.send_error(404)
            else:
                self.send_file()

        def send_file(self):
            start, total = 0, len(server.content)
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            same = self.headers.get("If-Range") in (None, server.etag, server.modified)
            if match and server.ranges and (same or server.trusts):
                start = int(match[1])
            if start > total or (start and start == total):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if server.etag:
                self.send_header("ETag", server.etag)
            if server.modified:
                self.send_header("Last-Modified", server.modified)
            for name, value in server.extra.items():
                self.send_header(name, value)
            if server.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(total - start))
            self.end_headers()
            end = min(
                total, *(x for x in (server.stop_at, server.stall_at) if x is not None), total
            )
            body = server.content[start:end]
            if server.chunked:
                body = f"{len(body):x}\r\n".encode() + body + b"\r\n"
                body += b"0\r\n\r\n" if end == total else b""
            self.wfile.write(body)
            self.wfile.flush()
            if server.stall_at is not None:
                server.released.wait(20)

        def log_message(self, *_):
            pass

    return Handler


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A real web server with one file."""
    behaviour = Behaviour()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(behaviour))
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(transfer, "TIMEOUT", 0.5)
    behaviour.address = f"http://127.0.0.1:{running.server_port}"
    yield behaviour
    behaviour.released.set()
    running.shutdown()
    running.server_close()


def kept(tmp_path):
    """Names of the files in the cache, without the locks."""
    found = (tmp_path / "cache").rglob("*")
    return sorted(p.name for p in found if p.is_file() and p.parent.name != ".locks")


def fetch(server, path="w.pt", **options):
    return download(f"{server.address}/{path}", **{"insecure": True} | options)


def test_a_file_is_fetched_once(server, tmp_path):
    address = f"some/w.pt#sha256={DIGEST}"
    first = fetch(server, address, insecure=False)
    assert first.read_bytes() == CONTENT
    assert fetch(server, address, insecure=False) == first
    assert server.asked == ["/some/w.pt"]
    first.write_bytes(b"damaged")
    assert fetch(server, address, insecure=False).read_bytes() == CONTENT
    assert kept(tmp_path) == ["w.pt"]


def test_without_a_hash_it_is_fetched_anew(server, tmp_path):
    for _ in range(2):
        assert fetch(server).read_bytes() == CONTENT
    assert len(server.asked) == 2
    assert kept(tmp_path) == ["w.pt"]


def test_another_file_than_expected_is_refused(server, tmp_path):
    with pytest.raises(CheckpointError, match="not the file that its hash says") as caught:
        fetch(server, f"w.pt#sha256={'0' * 64}")
    assert DIGEST in caught.value.why
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    "end",
    ["/w.pt#md5=0", "/w.pt#sha256=12", "/w.pt#sha256:" + "0" * 64, "/", "/..", "/a/%2e%2e/..",
     ":99999999/w.pt", ":port/w.pt", "#tok-en"],
)  # fmt: skip
def test_addresses_that_make_no_sense(server, end):
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        download(server.address + end, insecure=True)
    assert server.asked == []


def test_the_hash_may_be_in_capitals(server):
    assert fetch(server, f"w.pt#SHA256={DIGEST.upper()}").read_bytes() == CONTENT


def test_the_scheme_may_be_in_capitals(server):
    address = server.address.replace("http", "HTTP")
    assert download(f"{address}/w.pt", insecure=True).read_bytes() == CONTENT


def test_files_of_one_name_from_two_places(server):
    assert len({fetch(server, f"{folder}/w.pt") for folder in "ab"}) == 2


def test_no_such_file_and_no_network(server, monkeypatch):
    with pytest.raises(CheckpointError, match="404"):
        fetch(server, "none.pt")
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        download("http://127.0.0.1:9/w.pt", insecure=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        fetch(server)
    assert "/w.pt" not in server.asked


# http://


def test_plain_http_needs_a_hash_or_insecure(server, tmp_path, cli):
    with pytest.raises(CheckpointError, match="anyone on the network could replace") as caught:
        fetch(server, insecure=False)
    assert "--insecure" in caught.value.fix
    with pytest.raises(CheckpointError, match="anyone on the network"):
        read_checkpoint(f"{server.address}/w.pt")
    assert server.asked == []
    fetch(server, f"w.pt#sha256={DIGEST}", insecure=False)
    output = tmp_path / "m.onnx"
    code, _, err = cli("export", f"{server.address}/w.pt", "-o", output, "--task", "semantic")
    assert code == 2
    assert "anyone on the network" in err
    code, _, err = cli("export", f"{server.address}/w.pt", "-o", output, "--task", "semantic",
                       "--insecure")  # fmt: skip
    assert code == 2
    assert "is not a PyTorch or safetensors checkpoint" in err
    code, _, err = cli("export", "eomt-tiny-scenes", "-o", output, "--insecure")
    assert code == 2
    assert "--insecure does nothing here" in err


def test_redirects_are_followed(server):
    server.redirect = "/w.pt"
    assert fetch(server, "redirected/a.pt").read_bytes() == CONTENT


def test_redirects_to_what_is_not_secure(server):
    """As over https://: the first server is the user's, the second is anyone's."""
    server.redirect = "http://127.0.0.1:1/w.pt"
    request = transfer.Request(f"{server.address}/redirected/w.pt", None, False, plain=False)
    with pytest.raises(transfer.TransferError, match="redirects to http:// on 127"):
        transfer.fetch(request, Path("unused.partial"))


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://host/w.pt", "data:,w"])
def test_redirects_to_what_is_not_the_web(server, to):
    server.redirect = to
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch(server, "redirected/w.pt")


# Time-outs and bodies that end early


def test_a_server_that_never_answers(tmp_path, monkeypatch):
    import socket

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=r"did not answer within 0\.5 seconds"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/w.pt", insecure=True)
        assert time.monotonic() - start < 10


def test_a_server_that_stalls_in_the_middle(server, tmp_path):
    server.stall_at = HALF
    with pytest.raises(CheckpointError, match=rf"nothing came for 0\.5 seconds after {HALF:,} of"):
        fetch(server)
    server.stall_at = None
    assert fetch(server).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == f"bytes={HALF}-"
    assert kept(tmp_path) == ["w.pt"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_ends_early(server, tmp_path, chunked):
    server.stop_at, server.chunked = HALF, chunked
    with pytest.raises(CheckpointError, match="the connection ended after") as caught:
        fetch(server)
    assert f"{HALF:,} bytes that are kept" in caught.value.fix
    assert kept(tmp_path) == ["w.pt.partial", "w.pt.partial.json"]
    server.stop_at = None
    assert fetch(server).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == f"bytes={HALF}-"
    assert server.headers[-1]["If-Range"] == '"one"'
    assert kept(tmp_path) == ["w.pt"]


# Resuming


@pytest.fixture
def interrupted(server):
    """Half of the file is in the cache."""
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
    if size == HALF:  # the same version as its ETag says: that is all of it
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
    partial.write_bytes(bytes(HALF))  # of another file: seen only by the hash
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
    with pytest.raises(CheckpointError, match="sent it as gzip"):
        fetch(server)
    assert server.headers[-1]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_what_can_be_resumed(server, tmp_path, number):
    server.stall_at = HALF
    command = [
        sys.executable, "-m", "eomt_deploy", "export", f"{server.address}/w.pt", "--insecure",
        "--task", "semantic", "-o", str(tmp_path / "m.onnx"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(p.stat().st_size == HALF for p in (tmp_path / "cache").rglob("*.partial")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert ("the next run resumes from there" in err) == (number != signal.SIGKILL)
    assert "Traceback" not in err
    server.stall_at = None
    assert fetch(server).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == f"bytes={HALF}-"


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
        assert len(server.asked) == 1
        target.write_bytes(CONTENT)  # the first one has it
    other.join(30)
    assert found == [target]
    assert len(server.asked) == 1
    assert "Waiting for another process" in capfd.readouterr().err


# Leftovers


def test_leftovers_are_removed(server, tmp_path):
    cache = tmp_path / "cache/eomt-deploy/checkpoints"
    target = fetch(server, f"w.pt#sha256={DIGEST}")
    target.unlink()
    old, fresh, torch_hub = cache / "old", cache / "fresh", target.parent
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "x.pt.partial").write_bytes(b"x")
        (folder / "x.pt.partial.json").write_text("{}")
    long_ago = time.time() - module.KEPT_SECONDS - 60
    for path in old.iterdir():
        os.utime(path, (long_ago, long_ago))
    (torch_hub / "w.pt.0123456789abcdef.partial").write_bytes(b"x")
    fetch(server, f"w.pt#sha256={DIGEST}")
    assert not old.exists()
    assert kept(tmp_path) == ["w.pt", "x.pt.partial", "x.pt.partial.json"]


def test_an_earlier_version_of_the_address_is_removed(server, tmp_path):
    server.stop_at = HALF
    with pytest.raises(CheckpointError, match="ended"):
        fetch(server, f"w.pt?signature=first#sha256={DIGEST}")
    server.stop_at, server.content, server.etag = None, CONTENT[::-1], '"two"'
    fetch(server, f"w.pt?signature=second#sha256={hashlib.sha256(CONTENT[::-1]).hexdigest()}")
    assert kept(tmp_path) == ["w.pt"]


# Secrets


SECRETS = ("tok-en", "pass-word", "us-er")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host/a/w.pt?signature=tok-en#sha256=00", "https://host/a/w.pt"),
        ("https://us-er:pass-word@host:8080/w.pt", "https://host:8080/w.pt"),
        ("https://us-er:p@ss@pass-word@host/w.pt", "https://host/w.pt"),
        ("https://tok-en@host/w.pt", "https://host/w.pt"),
        ("https://us-er:pass-word@[::1]:80/w.pt", "https://[::1]:80/w.pt"),
        ("https://host:pass-word?x@y/w.pt", "https://host"),
        ("https://host/w.pt\n?tok-en", "https://host/w.pt\n"),
        ("HTTPS://host?tok-en", "HTTPS://host"),
        ("folder/w.pt?x", "folder/w.pt?x"),
        ("hf://owner/name@main", "hf://owner/name@main"),
    ],
)
def test_addresses_are_shown_without_secrets(address, shown):
    assert without_secrets(address) == shown


@pytest.mark.parametrize(
    "address",
    [
        "http://us-er:pass-word@127.0.0.1:9/w.pt?signature=tok-en",
        "http://us-er:pass-word@127.0.0.1:9/w.pt?signature=tok-en#sha256=1",
        "http://us-er:pass-word@127.0.0.1:99999/w.pt?signature=tok-en",
        "http://us-er:pass-word@host:pass-word/w.pt?signature=tok-en",
        "http://us-er:pass-word@/w.pt?signature=tok-en",
        "http://us-er:pass-word@[::1/w.pt?signature=tok-en",
        "http://us-er:pass-word@127.0.0.1:9/w.pt?a b\tc signature=tok-en",
        "http://us-er:pass-word@127.0.0.1:9/w.pt?\ud800=tok-en#tok-en",
        "http://us-er:pass-word\ud800@127.0.0.1:9/w.pt?tok-en",
        "{server}/none.pt?signature=tok-en",
        "{server}/redirected/w.pt?signature=tok-en",
    ],
)
@pytest.mark.parametrize("insecure", [True, False])
def test_no_error_has_the_secrets_of_an_address(server, cli, tmp_path, address, insecure):
    server.redirect = "http://us-er:pass-word@127.0.0.1:9/w.pt?signature=tok-en"
    address = address.format(server=server.address)
    with pytest.raises(CheckpointError) as caught:
        download(address, insecure=insecure)
    error, texts = caught.value, []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    _, out, err = cli("export", address, "-o", tmp_path / "m.onnx", "--task", "semantic",
                      *["--insecure"] * insecure)  # fmt: skip
    for text in (*texts, out, err):
        assert not any(secret in text for secret in SECRETS), text


def test_the_password_goes_to_its_host_only(server, tmp_path):
    address = server.address.replace("://", "://us%2Der:pass-word@")
    download(f"{address}/w.pt", insecure=True)
    wanted = "Basic " + base64.b64encode(b"us-er:pass-word").decode()
    assert server.headers[-1]["Authorization"] == wanted
    server.redirect = server.address.replace("127.0.0.1", "localhost") + "/w.pt"
    download(f"{address}/redirected/w.pt", insecure=True)
    assert [h.get("Authorization") for h in server.headers[-2:]] == [wanted, None]
    for path in (tmp_path / "cache").rglob("*"):
        assert not path.is_file() or b"pass-word" not in path.read_bytes()


def test_secrets_are_not_kept_beside_a_partial_file(server, tmp_path):
    server.stop_at = HALF
    with pytest.raises(CheckpointError):
        fetch(server, "w.pt?signature=tok-en")
    (notes,) = (tmp_path / "cache").rglob("*.partial.json")
    assert "tok-en" not in notes.read_text()
    assert json.loads(notes.read_text())["validator"] == '"one"'
