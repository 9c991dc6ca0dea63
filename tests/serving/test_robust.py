"""Workers that die or hang, overload, clients that leave, and stopping."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import forked
import httpx
import numpy as np
import pytest
from served import IMPORTS, encoded, running

from eomt_deploy import Segmenter

IMAGES = [encoded(seed) for seed in range(8)]


@pytest.fixture(scope="module")
def model(exported: Any) -> Path:
    return exported("semantic")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[Any]:
    with Segmenter(model, backend="onnxruntime", threads=1) as segmenter:
        return [segmenter.predict(image).to_dict(masks="rle") for image in IMAGES]


def start(command: list[str]) -> forked.Started:
    """A server with a process group of its own."""
    return forked.start(command, imports=IMPORTS, stdout=subprocess.DEVNULL, start_new_session=True)


def until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_workers_are_killed_under_load(model, expected):
    """Every request gets the right answer, although workers die all the time."""
    with (
        running({"m": model}, workers=2, max_queue=1000) as server,
        httpx.Client(base_url=server.address, timeout=60) as web,
    ):
        killed: list[int] = []

        def kill() -> None:
            while len(killed) < 3:
                time.sleep(0.7)
                for victim in set(server.workers()) - set(killed):
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)
                    break

        def send(number: int) -> tuple[int, Any]:
            answer = web.post("/segment", content=IMAGES[number % len(IMAGES)])
            return answer.status_code, answer.json()

        killer = threading.Thread(target=kill)
        killer.start()
        sent = 0
        with ThreadPoolExecutor(8) as threads:
            while killer.is_alive():
                for number, (status, content) in enumerate(threads.map(send, range(40))):
                    assert status == 200, content
                    assert content == expected[number % len(IMAGES)]
                    sent += 1
        until(lambda: not set(server.workers()) & set(killed))
        text = web.get("/metrics").text
        (line,) = [x for x in text.splitlines() if x.startswith("eomt_worker_restarts_total{")]
        assert float(line.split()[-1]) == 3
        assert sent >= 40


def test_a_dead_worker_is_replaced_without_a_request(model):
    with running({"m": model}) as server, httpx.Client(base_url=server.address) as web:
        (first,) = server.workers()
        os.kill(first, signal.SIGKILL)
        until(lambda: web.get("/v2/health/ready").status_code == 503)
        until(lambda: web.get("/v2/health/ready").status_code == 200)
        assert server.workers() != [first]
        assert web.post("/segment", content=IMAGES[0]).status_code == 200


def test_a_worker_that_hangs(model, expected):
    """The time limit ends the request, and the worker is replaced."""
    with (
        running({"m": model}, timeout=2.0) as server,
        httpx.Client(base_url=server.address, timeout=60) as web,
    ):
        (first,) = server.workers()
        os.kill(first, signal.SIGSTOP)
        large = web.post("/segment", content=bytes(4_000_000))  # more than the pipe can hold
        assert large.status_code == 504
        until(lambda: server.workers() != [first])
        until(lambda: web.post("/segment", content=IMAGES[0]).status_code == 200)
        (first,) = server.workers()
        os.kill(first, signal.SIGSTOP)
        answer = web.post("/segment", content=IMAGES[0])
        assert answer.status_code == 504
        assert "2 s" in answer.json()["error"]
        until(
            lambda: web.get("/v2/health/ready").status_code == 200 and first not in server.workers()
        )
        assert web.post("/segment", content=IMAGES[0]).json() == expected[0]


def test_overload_and_clients_that_leave(model, expected):
    """A full queue refuses at once; requests of clients that left are not computed."""
    with (
        running({"m": model}, max_queue=3, max_batch=1, timeout=20.0) as server,
        httpx.Client(base_url=server.address, timeout=60) as web,
    ):
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        with ThreadPoolExecutor(16) as threads:

            def send(count: int) -> list[Any]:
                return [
                    threads.submit(web.post, "/segment", content=IMAGES[0]) for _ in range(count)
                ]

            taken = send(2)
            until(lambda: _waiting(web) == 0)
            time.sleep(0.5)
            waiting = send(3)
            until(lambda: _waiting(web) == 3)
            refused = [answer.result() for answer in send(7)]
            assert {a.status_code for a in refused} == {503}
            assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
            os.kill(worker, signal.SIGCONT)
            assert [a.result().status_code for a in taken + waiting] == [200] * 5

        os.kill(worker, signal.SIGSTOP)
        body = b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        clients = []
        for number in range(5):
            client = socket.create_connection(_place(server.address))
            client.sendall(body % (len(IMAGES[0]), IMAGES[0]))
            clients.append(client)
            until(lambda: _waiting(web) == max(0, number - 1))  # noqa: B023
            time.sleep(0.1)
        for client in clients:
            client.close()
        time.sleep(0.3)
        with ThreadPoolExecutor(3) as threads:
            late = [threads.submit(web.post, "/segment", content=IMAGES[1]) for _ in range(3)]
            time.sleep(0.5)
            os.kill(worker, signal.SIGCONT)
            assert [a.result().json() for a in late] == [expected[1]] * 3


def _waiting(web: httpx.Client) -> int:
    """Number of requests in the queue."""
    (line,) = [x for x in web.get("/metrics").text.splitlines() if x.startswith("eomt_queue_r")]
    return round(float(line.split()[-1]))


def _place(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM for processes")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_finishes_the_queue(model, expected, name):
    """The signal goes to all processes of the group, as Ctrl-C and service managers send it."""
    command = [
        "serve", f"m={model}", "--port", "0", "--no-grpc",
        "--backend", "onnxruntime", "--threads", "1", "--log", "json", "--max-batch", "1",
    ]  # fmt: skip
    process = start(command)
    try:
        lines = []
        for line in process.stderr or ():
            lines.append(line)
            if line.startswith("serving at "):
                break
        address = lines[-1].split()[2].rstrip(";")
        with httpx.Client(base_url=address, timeout=60) as web, ThreadPoolExecutor(12) as threads:
            web.get("/v2/health/live")
            answers = [
                threads.submit(web.post, "/segment", content=IMAGES[i % 8]) for i in range(24)
            ]
            until(lambda: any(a.done() for a in answers))
            os.killpg(process.pid, getattr(signal, name))
            found = []
            for answer in answers:
                try:
                    found.append(answer.result())
                except httpx.TransportError:
                    found.append(None)  # it was not accepted any more
        assert process.wait(60) == 0
        accepted = [(i, a) for i, a in enumerate(found) if a is not None]
        assert accepted
        for number, answer in accepted:
            assert answer.status_code in (200, 503)
            if answer.status_code == 200:
                assert answer.json() == expected[number % 8]
        rest = process.stderr.read() if process.stderr else ""
        logged = [json.loads(x) for x in rest.splitlines() if x.startswith("{")]
        # What the server counted as answered has reached the clients.
        assert sum(r["status"] == 200 and r["route"] == "/segment" for r in logged) == sum(
            a.status_code == 200 for _, a in accepted
        )
        assert "Traceback" not in rest
        assert rest.rstrip().endswith("stopped")
        until(lambda: not _group(process.pid), 10)
    finally:
        if _group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_second_signal_does_not_wait(model):
    """The first one waits for a worker that hangs, the second one kills it."""
    command = [
        "serve", f"m={model}", "--port", "0", "--no-grpc",
        "--backend", "onnxruntime", "--threads", "1", "--drain-seconds", "60", "--timeout", "60",
        "--max-batch", "1",
    ]  # fmt: skip
    process = start(command)
    try:
        address = next(x for x in process.stderr or () if x.startswith("serving at ")).split()[2]
        with httpx.Client(base_url=address.rstrip(";"), timeout=60) as web:
            for worker in _workers(process.pid):
                os.kill(worker, signal.SIGSTOP)
            with ThreadPoolExecutor(4) as threads:
                answers = [
                    threads.submit(web.post, "/segment", content=IMAGES[0]) for _ in range(4)
                ]
                until(lambda: _waiting(web) > 0)  # the others are in the worker
                process.send_signal(signal.SIGTERM)
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(1)
                process.send_signal(signal.SIGTERM)
                process.wait(30)
                for answer in answers:
                    with suppress(httpx.TransportError):  # the server was faster than its answer
                        assert answer.result().status_code in (500, 503)
        until(lambda: not _group(process.pid), 10)
    finally:
        if _group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_drain_time_ends_a_call_over_grpc(model):
    """A call whose worker hangs ends with an error, and the server stops (checked by running)."""
    import tritonclient.grpc

    with running({"m": model}, grpc_port=0, drain_seconds=1.0, max_batch=1) as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_address)
        tensor = tritonclient.grpc.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([IMAGES[0]], object))
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        with ThreadPoolExecutor(4) as threads, httpx.Client(base_url=server.address) as web:
            answers = [threads.submit(client.infer, "m", [tensor]) for _ in range(4)]
            until(lambda: _waiting(web) > 0)  # the others are in the worker
            server.stop()
            for answer in answers:
                with pytest.raises(tritonclient.grpc.InferenceServerException):
                    answer.result(60)


def _workers(server: int) -> list[int]:
    """The worker processes of a server, without the process that cleans up after Python."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    names = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
    return [child for child, name in names.items() if "resource_tracker" not in name]


def _group(number: int) -> bool:
    """Whether a process of the group is alive."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_workers_end_when_the_server_is_killed(model):
    command = [
        "serve", f"m={model}", "--port", "0", "--no-grpc",
        "--backend", "onnxruntime", "--threads", "1",
    ]  # fmt: skip
    process = start(command)
    for line in process.stderr or ():
        if line.startswith("serving at "):
            break
    process.kill()
    process.wait()
    until(lambda: not _group(process.pid), 20)
