"""Start the servers, wait for a signal, and stop in order."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from eomt_deploy.errors import UsageError
from eomt_deploy.serving.app import make_app
from eomt_deploy.serving.config import Limits, ServeConfig
from eomt_deploy.serving.log import RequestLog
from eomt_deploy.serving.server import ModelServer
from eomt_deploy.serving.supervision import kill_processes
from eomt_deploy.serving.work import ServedModel

MAX_HEADER = 16 << 10
"""Maximum size of the header of a request in bytes."""
LINGER_SECONDS = 5.0
"""Time for the rest of a body after the answer."""
BACKLOG = 2048
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True)
class Running:
    """A server that accepts requests.

    Attributes:
        address: ``http://HOST:PORT``.
        grpc_address: ``HOST:PORT``; None without gRPC.
        models: the models by name.
        workers: returns the process ids of the workers.
        stop: stops the server as a signal does; can be called from any thread.
    """

    address: str
    grpc_address: str | None
    models: dict[str, ServedModel]
    workers: Callable[[], list[int]]
    stop: Callable[[], None]


def serve(config: ServeConfig, started: Callable[[Running], None]) -> None:
    """Serve until a signal arrives: the first lets the queue finish, the second stops at once.

    Args:
        config: the configuration.
        started: called when the server accepts requests.

    Raises:
        EomtDeployError: a model cannot be opened.
        UsageError: a port cannot be used.
    """
    config = replace(config, host=config.host.strip("[]"))
    if config.grpc_port and config.grpc_port == config.port:
        raise UsageError(
            f"HTTP and gRPC cannot both use port {config.port}.",
            fix="Choose another one with --grpc-port, or leave gRPC out with --no-grpc.",
        )
    _allow_connections(config.limits.connections)
    listener = _listen(config.host, config.port)
    with listener:
        server = ModelServer(config)
        try:
            models = server.start()
            asyncio.run(_serve(config, server, listener, models, started))
        finally:
            server.kill()


async def _serve(
    config: ServeConfig,
    server: ModelServer,
    listener: socket.socket,
    models: dict[str, ServedModel],
    started: Callable[[Running], None],
) -> None:
    log = RequestLog(config.log)
    web = _Uvicorn(
        uvicorn.Config(
            make_app(server, log),
            http=patient_protocol(config.limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(config.limits.idle_seconds),
            timeout_graceful_shutdown=int(config.drain_seconds) + 1,
            limit_concurrency=config.limits.connections,
            h11_max_incomplete_event_size=MAX_HEADER,
        )
    )
    grpc_server, grpc_address = None, None
    if config.grpc_port is not None:
        from eomt_deploy.serving.grpc_server import GrpcServer

        grpc_server = GrpcServer(server, log)
        try:
            port = await grpc_server.start(config.host, config.grpc_port)
        except UsageError:
            await grpc_server.stop(0)
            raise
        grpc_address = _address(config.host, port)

    stopped: list[asyncio.Task[None]] = []

    def stop() -> None:
        if server.stopping:  # the second signal
            web.force_exit = True
            kill_processes()
            return
        server.stopping = web.should_exit = True
        server.deadline = time.monotonic() + config.drain_seconds
        if grpc_server is not None:
            stopped.append(asyncio.ensure_future(grpc_server.stop(config.drain_seconds)))

    loop = asyncio.get_running_loop()
    address = f"http://{_address(config.host, listener.getsockname()[1])}"
    try:
        with _signals(stop):
            started(
                Running(
                    address, grpc_address, models, server.workers, partial(_call_soon, loop, stop)
                )
            )
            await web.serve([listener])
            await asyncio.gather(*stopped)
            if not web.force_exit:
                await server.close()
    finally:
        if grpc_server is not None:
            await grpc_server.stop(0)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(function)


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Our own handlers stop both servers."""
        yield


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` for each signal that ends the server."""
    loop = asyncio.get_running_loop()
    numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    wanted = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in wanted:
        try:
            loop.add_signal_handler(number, stop)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows, or another thread
            with suppress(ValueError):
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        yield
    finally:
        for number in wanted:
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)
            with suppress(ValueError):
                signal.signal(number, before[number])


def patient_protocol(limits: Limits) -> type[H11Protocol]:
    """Uvicorn's protocol, which also closes connections whose header does not arrive in time."""

    class PatientProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_header()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait_for_header()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.SEND_BODY:
                # Many clients look at a refusal only after they have sent the complete body.
                self._stop_waiting()
                self._timer = self.loop.call_later(LINGER_SECONDS, self._close)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_header(self) -> None:
            """Start the timer if a header is expected; a partial header does not extend it."""
            if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
                return  # the rest of a body that nobody needs
            if self.conn.their_state is not h11.IDLE:
                self._stop_waiting()
            elif self._timer is None:
                seconds = max(limits.header_seconds, 0.01)
                self._timer = self.loop.call_later(seconds, self._close)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _close(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return PatientProtocol


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)  # now, so that a used port is found before the models are opened
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(
            f"The server cannot listen on {_address(host, port)}: "
            f"{getattr(error, 'strerror', None) or error}.",
            fix="Choose another port with --port, or another address with --host.",
        ) from error
    return listener


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _allow_connections(count: int) -> None:
    """Raise the number of files that this process may open; each connection is one."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count + 256
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
