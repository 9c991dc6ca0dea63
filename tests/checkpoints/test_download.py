from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from web_server import CONTENT, DIGEST, HALF, fetch, kept

from eomt_deploy.checkpoints import download as module
from eomt_deploy.checkpoints import read_checkpoint, transfer
from eomt_deploy.checkpoints.download import download
from eomt_deploy.errors import CheckpointError


def test_a_file_is_fetched_once(server, tmp_path):
    address = f"some/w.pt#sha256={DIGEST}"
    first = fetch(server, address, insecure=False)
    assert first.read_bytes() == CONTENT
    assert fetch(server, address, insecure=False) == first
    assert server.requests == ["/some/w.pt"]
    first.write_bytes(b"damaged")
    assert fetch(server, address, insecure=False).read_bytes() == CONTENT
    assert kept(tmp_path) == ["w.pt"]


def test_without_a_hash_it_is_fetched_anew(server, tmp_path):
    for _ in range(2):
        assert fetch(server).read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert kept(tmp_path) == ["w.pt"]


def test_another_file_than_expected_is_refused(server, tmp_path):
    with pytest.raises(CheckpointError, match="does not have the expected hash") as caught:
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
    assert server.requests == []


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
    assert "/w.pt" not in server.requests


# http://


def test_plain_http_needs_a_hash_or_insecure(server, tmp_path, cli):
    with pytest.raises(CheckpointError, match="anyone on the network could replace") as caught:
        fetch(server, insecure=False)
    assert "--insecure" in caught.value.fix
    with pytest.raises(CheckpointError, match="anyone on the network"):
        read_checkpoint(f"{server.address}/w.pt")
    assert server.requests == []
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
    assert "--insecure has no effect here" in err


def test_redirects_are_followed(server):
    server.redirect = "/w.pt"
    assert fetch(server, "redirected/a.pt").read_bytes() == CONTENT


def test_redirects_to_what_is_not_secure(server):
    """As over https://: the user trusts only the first server."""
    server.redirect = "http://127.0.0.1:1/w.pt"
    request = transfer.Request(f"{server.address}/redirected/w.pt", None, False, plain=False)
    with pytest.raises(transfer.TransferError, match="redirects to http:// on 127"):
        transfer.fetch(request, Path("unused.partial"))


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://host/w.pt", "data:,w"])
def test_redirects_to_what_is_not_the_web(server, to):
    server.redirect = to
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch(server, "redirected/w.pt")


# Timeouts and bodies that end early


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
    with pytest.raises(
        CheckpointError, match=rf"no data was received for 0\.5 seconds after {HALF:,} of"
    ):
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
