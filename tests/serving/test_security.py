"""Tokens, limits and hostile clients."""

from __future__ import annotations

import gzip
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from served import TOKEN, encoded, running

from eomt_deploy.errors import UsageError
from eomt_deploy.serving import run
from eomt_deploy.serving.config import check_access, is_local, named_models
from eomt_deploy.serving.run import Running

IMAGE = encoded(5)
PROTECTED = ("/models", "/v2", "/v2/models/m", "/metrics", "/openapi.json")


@pytest.fixture(scope="module")
def model(exported: Any) -> Path:
    return exported("semantic")


@pytest.fixture(scope="module")
def private(model: Path) -> Iterator[Running]:
    """A server with a token."""
    with running({"m": model}, token=TOKEN, grpc_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    """A server with small limits."""
    with running(
        {"m": model},
        body_bytes=1 << 20,
        body_seconds=1.5,
        header_seconds=1.0,
        idle_seconds=2,
        memory_bytes=2 << 20,
    ) as found:
        yield found


@pytest.fixture
def web(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=30) as client:
        yield client


def connect(server: Running) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    client.settimeout(10)
    return client


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}",
     TOKEN, "Bearer ÄÖÜ", "bearer wrong"],
)  # fmt: skip
def test_a_wrong_token(private, header):
    headers = {} if header is None else {"authorization": header.encode()}
    with httpx.Client(base_url=private.address) as web:
        for path in PROTECTED:
            answer = web.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.text
        assert web.post("/segment", content=IMAGE, headers=headers).status_code == 401
        load = "/v2/repository/models/m/load"
        assert web.post(load, headers=headers).status_code == 401


def test_the_right_token(private):
    with httpx.Client(
        base_url=private.address, headers={"authorization": f"Bearer {TOKEN}"}
    ) as web:
        for path in PROTECTED:
            assert web.get(path).status_code == 200
        assert web.post("/segment", content=IMAGE).status_code == 200


def test_health_and_the_page_need_no_token(private):
    with httpx.Client(base_url=private.address) as web:
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/page/main.js"):
            assert web.get(path).status_code == 200


def test_tokens_over_grpc(private):
    client = tritonclient.grpc.InferenceServerClient(private.grpc_address)
    assert client.is_server_ready()
    for headers in ({}, {"authorization": "Bearer wrong"}):
        with pytest.raises(tritonclient.grpc.InferenceServerException) as found:
            client.get_model_metadata("m", headers=headers)
        assert found.value.status() == "StatusCode.UNAUTHENTICATED"
    known = client.get_model_metadata("m", headers={"authorization": f"Bearer {TOKEN}"})
    assert known.name == "m"


def test_a_large_message_over_grpc(model):
    with running({"m": model}, grpc_port=0, body_bytes=1 << 20) as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_address)
        tensor = tritonclient.grpc.InferInput("image", [1], "BYTES")
        array = np.empty(1, object)
        array[0] = bytes(2 << 20)
        tensor.set_data_from_numpy(array)
        with pytest.raises(tritonclient.grpc.InferenceServerException) as found:
            client.infer("m", [tensor])
        assert found.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "[", "", "127.0.0.1.evil"])
def test_a_foreign_host_name(web, host):
    """DNS rebinding: a web page makes its own name point to 127.0.0.1."""
    assert web.get("/models", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost", "http://["])
def test_a_foreign_web_page(web, origin):
    answer = web.post("/segment", content=IMAGE, headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_our_own_page(web, server):
    answer = web.post("/segment", content=IMAGE, headers={"origin": server.address})
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body(web, chunked):
    def parts() -> Iterator[bytes]:
        for _ in range(48):
            yield bytes(1 << 16)

    content: Any = parts() if chunked else b"".join(parts())
    answer = web.post("/segment", content=content)
    assert answer.status_code == 413
    assert "1 MiB" in answer.json()["error"]


def test_memory_of_all_requests(server, web):
    """Many bodies that arrive slowly do not fill the memory."""
    head = b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    clients = [connect(server) for _ in range(2)]
    for client in clients:
        client.sendall(head + bytes(999_000))
    time.sleep(0.3)
    answer = web.post("/segment", content=bytes(500_000))
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    for client in clients:
        assert b" 408 " in client.recv(4096)
        client.close()
    assert web.post("/segment", content=IMAGE).status_code == 200


def test_a_slow_body(server):
    with connect(server) as client:
        client.sendall(b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n")
        began = time.monotonic()
        client.sendall(b"x")
        assert b" 408 " in client.recv(4096)
        assert time.monotonic() - began < 8


def test_a_slow_header(server):
    """Slow loris: a byte of the header from time to time does not keep a connection open."""
    with connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        assert any(_is_closed(client) for _ in range(40))


def _is_closed(client: socket.socket) -> bool:
    """Whether the server has closed the connection; otherwise send a line of the header."""
    time.sleep(0.2)
    try:
        client.sendall(b"X: y\r\n")
    except OSError:  # reset or broken pipe
        return True
    return False


@pytest.mark.parametrize("path", ["/v2/health/live", "/unknown"])
def test_a_body_that_nobody_needs(server, path, monkeypatch):
    """A slow body after the answer does not keep a connection open."""
    monkeypatch.setattr(run, "LINGER_SECONDS", 0.5)
    with connect(server) as client:
        client.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n".encode()
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 ")
        assert any(_is_closed(client) for _ in range(60))


def test_the_answer_to_a_large_body_without_permission(private):
    """The client receives the refusal although it is still sending."""
    answer = httpx.post(f"{private.address}/segment", content=bytes(20 << 20), timeout=30)
    assert answer.status_code == 401


def test_a_forged_client_address(model, capfd):
    with running({"m": model}, log="text") as server:
        httpx.get(f"{server.address}/models", headers={"x-forwarded-for": "9.9.9.9 status=999"})
    line = capfd.readouterr().err
    assert "client=127.0.0.1" in line
    assert "9.9.9.9" not in line


def test_a_long_header(server):
    with connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 50_000)
        assert b" 400 " in client.recv(4096)


def test_a_thousand_idle_connections(server, web):
    clients = [connect(server) for _ in range(1000)]
    try:
        assert web.post("/segment", content=IMAGE).status_code == 200
        end = time.monotonic() + 10
        for client in clients:
            client.settimeout(max(0.1, end - time.monotonic()))
            assert client.recv(1) == b""  # the server has closed it
    finally:
        for client in clients:
            client.close()


def test_a_connection_without_a_next_request(model):
    """It is closed after the idle time, not only after the time for a header."""
    with (
        running({"m": model}, idle_seconds=1.0, header_seconds=300.0) as server,
        connect(server) as client,
    ):
        client.settimeout(60)
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        found = b""
        while part := client.recv(4096):
            found += part
        assert b" 200 " in found


def bomb(side: int) -> bytes:
    """A PNG file of a few kB with side x side black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    compressor = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    rows = b"".join([compressor.compress(row) for _ in range(side)]) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb(web):
    content = bomb(40_000)
    assert len(content) < 1 << 20
    answer = web.post("/segment", content=content)
    assert answer.status_code == 400
    assert "pixels" in answer.json()["error"]


def test_a_compressed_body(web):
    answer = web.post(
        "/segment", content=gzip.compress(IMAGE), headers={"content-encoding": "gzip"}
    )
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "path", ["/page/../config.py", "/page/%2e%2e/config.py", "/page/..%2fconfig.py", "/page//etc"]
)
def test_files_outside_of_the_page(server, path):
    with connect(server) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert b" 404 " in client.recv(4096)


@pytest.mark.parametrize(
    "image", [b"http://127.0.0.1/x.png", b"/etc/passwd", b"file:///etc/passwd"]
)
def test_addresses_and_paths_are_not_read(web, image):
    answer = web.post("/segment", content=image)
    assert answer.status_code == 400
    assert "passwd" not in answer.text


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.2", False), ("localhost.evil", False)],
)  # fmt: skip
def test_local_addresses(host, local):
    assert is_local(host) is local


def test_other_machines_need_a_token():
    check_access("127.0.0.1", None, no_auth=False)
    check_access("0.0.0.0", None, no_auth=True)
    check_access("0.0.0.0", TOKEN, no_auth=False)
    for token, no_auth, text in [
        (None, False, "no token"),
        ("short", False, "at least 16"),
        ("ä" * 20, False, "ASCII"),
        (TOKEN, True, "conflict"),
    ]:
        with pytest.raises(UsageError, match=text) as found:
            check_access("0.0.0.0", token, no_auth=no_auth)
        assert found.value.fix


def test_names_of_models(tmp_path):
    odd = tmp_path / "a=b.onnx"
    odd.touch()
    found = named_models(["x/street.onnx", "city=y/street.onnx", str(odd), "my model.onnx"])
    assert list(found) == ["street", "city", "a-b", "my-model"]
    assert found["city"] == Path("y/street.onnx")
    with pytest.raises(UsageError, match="Two models have the name m"):
        named_models(["m.onnx", "other/m.xml"])
    with pytest.raises(UsageError, match="cannot be used as the name"):
        named_models(["§.onnx"])
