from __future__ import annotations

import hashlib
import http.server
import threading

import pytest

from eomt_deploy.checkpoints.download import download, shown
from eomt_deploy.errors import CheckpointError

CONTENT = b"weights" * 1000


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A real web server with one file; what was asked of it is in ``asked``."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path.endswith("w.pt") else 404)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    running.asked = asked
    running.address = f"http://127.0.0.1:{running.server_port}"
    yield running
    running.shutdown()
    running.server_close()


def test_a_file_is_fetched_once(server):
    address = f"{server.address}/some/w.pt#sha256={hashlib.sha256(CONTENT).hexdigest()}"
    first = download(address)
    assert first.read_bytes() == CONTENT
    assert download(address) == first
    assert server.asked == ["/some/w.pt"]
    first.write_bytes(b"damaged")
    assert download(address).read_bytes() == CONTENT


def test_without_a_hash_it_is_fetched_anew(server):
    for _ in range(2):
        assert download(f"{server.address}/w.pt").read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_another_file_than_expected_is_refused(server, tmp_path):
    with pytest.raises(CheckpointError, match="not the file that its hash says"):
        download(f"{server.address}/w.pt#sha256={'0' * 64}")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    "end",
    ["/w.pt#md5=0", "/w.pt#sha256=12", "/w.pt#sha256:" + "0" * 64, "/", ":99999999/w.pt"],
)
def test_addresses_that_make_no_sense(server, end):
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        download(server.address + end)
    assert server.asked == []


def test_the_hash_may_be_in_capitals(server):
    digest = hashlib.sha256(CONTENT).hexdigest().upper()
    assert download(f"{server.address}/w.pt#SHA256={digest}").read_bytes() == CONTENT


def test_files_of_one_name_from_two_places(server):
    paths = {download(f"{server.address}/{folder}/w.pt") for folder in "ab"}
    assert len(paths) == 2


def test_secrets_are_not_shown(server):
    assert shown("https://host/a/w.pt?signature=abc#sha256=00") == "https://host/a/w.pt"
    with pytest.raises(CheckpointError) as caught:
        download(f"{server.address}/none.pt?signature=abc")
    assert "signature" not in str(caught.value)


def test_no_such_file_and_no_network(server, monkeypatch):
    with pytest.raises(CheckpointError, match="404"):
        download(f"{server.address}/none.pt")
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        download("http://127.0.0.1:9/w.pt")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        download(f"{server.address}/w.pt")
    assert "/w.pt" not in server.asked
