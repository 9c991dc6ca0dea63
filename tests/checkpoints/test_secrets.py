"""Passwords and tokens in a URL are never shown or stored."""

from __future__ import annotations

import base64
import json

import pytest
from web_server import HALF, fetch

from eomt_deploy.addresses import without_secrets
from eomt_deploy.checkpoints.download import download
from eomt_deploy.errors import CheckpointError

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
