"""`eomt-deploy serve`: its messages. The server itself is tested in tests/serving."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import forked
import httpx
import pytest
import served


@pytest.fixture(autouse=True)
def _forked_workers():
    """Only the servers of the command line in their own processes start new interpreters."""
    with served.forked_workers():
        yield


@pytest.mark.parametrize(
    ("arguments", "text", "fix"),
    [
        (["--host", "0.0.0.0"], "there is no token", "EOMT_DEPLOY_TOKEN"),
        (["--token", "secret"], "at least 16", "openssl rand"),
        (["--token", "a" * 16, "--no-auth"], "conflict", "Leave one"),
        (["--log", "xml"], "log format 'xml' is unknown", "text, json, off"),
        (["--backend", "no-such"], "no-such", "onnxruntime"),
    ],
)
def test_wrong_options(cli, exported, arguments, text, fix):
    code, _, err = cli("serve", exported("semantic"), "--port", 0, "--no-grpc", *arguments)
    assert code == 2
    assert text in err
    assert fix in err
    assert "Traceback" not in err


def test_a_missing_and_a_damaged_model(cli, tmp_path):
    code, _, err = cli("serve", tmp_path / "none.onnx", "--port", 0)
    assert code == 2
    assert "none.onnx" in err
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"damaged")
    code, _, err = cli("serve", damaged, "--port", 0)
    assert code == 2
    assert "E205" in err


def test_one_port_for_both(cli, exported):
    code, _, err = cli("serve", exported("semantic"), "--port", 18555, "--grpc-port", 18555)
    assert code == 2
    assert "cannot both use port 18555" in err


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_used_port(cli, exported, option):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = {"--port": 0, "--grpc-port": 0} | {option: port}
        arguments = [part for pair in ports.items() for part in pair]
        code, _, err = cli("serve", exported("semantic"), "--backend", "onnxruntime", *arguments)
    assert code == 2
    assert "Traceback" not in err
    assert f"127.0.0.1:{port}" in err
    assert f"another one with {option}" in err or f"another port with {option}" in err


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
def test_token_from_the_environment_and_log(exported):
    """Neither the token nor the query is in the log."""
    model = exported("panoptic")
    command = [
        "serve", f"first={model}", f"second={model}", "--port", "0", "--grpc-port", "0",
        "--host", "0.0.0.0", "--log", "json", "--backend", "onnxruntime", "--threads", "1",
    ]  # fmt: skip
    environment = os.environ | {"EOMT_DEPLOY_TOKEN": served.TOKEN}
    process = forked.start(
        command, imports=served.IMPORTS, env=environment, stdout=subprocess.DEVNULL
    )
    lines = []
    for line in process.stderr or ():
        lines.append(line)
        if line.startswith("serving at "):
            break
    try:
        port = lines[-1].split()[2].rstrip(",;").rpartition(":")[2]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as web:
            assert web.get("/models").status_code == 401
            web.headers["authorization"] = f"Bearer {served.TOKEN}"
            assert [m["name"] for m in web.get("/models").json()] == ["first", "second"]
            params = {"classes": "car", "model": "second"}
            assert web.post("/segment", params=params, content=served.encoded(1)).is_success
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read() if process.stderr else ""
        assert process.wait(30) == 0
    logged = [json.loads(line) for line in rest.splitlines() if line.startswith("{")]
    assert [entry["status"] for entry in logged] == [401, 200, 200]
    assert logged[2]["route"] == "/segment"
    assert served.TOKEN not in "".join(lines) + rest
    assert "car" not in rest
