"""Commands in processes that are forked from one that has imported what they need.

The imports take most of the time of a short command. This module is for tests of what a command
does, above all after a signal, and not of its start.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
COMMAND = 'import runpy; runpy.run_module("eomt_deploy", run_name="__main__", alter_sys=True)'
"""The program of `python -m eomt_deploy`."""
PARSER = ("eomt_deploy.cli.app", "typer._adapters")
"""What every command imports."""
IMAGES = (*PARSER, "eomt_deploy.cli.predict_images", "eomt_deploy.backends.onnxruntime.engine",
          "eomt_deploy.backends.openvino.engine")  # fmt: skip
"""What `predict` imports for images."""
EXPORT = f"import traces; traces.install(); {COMMAND}"
EXPORTS = (*PARSER, "traces", "eomt_deploy.exporting.run", "torch._dynamo")
"""`export` with the graphs that are traced already, and what it imports."""
MESSAGE = 1 << 17
"""Maximum size of a request in bytes; most of it are the variables of the environment."""


class Forked:
    """What the tests need of :class:`subprocess.Popen`, for a process that is not a child."""

    def __init__(self, reply: socket.socket, outputs: Sequence[IO[str] | None]) -> None:
        self.returncode: int | None = None
        self.stdout, self.stderr = outputs
        self._reply = reply
        self.pid = self._receive()

    def _receive(self) -> int:
        message = self._reply.recv(MESSAGE)
        assert message, f"the process to fork from has ended; {__file__} starts it"
        return int(message)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._reply.settimeout(timeout)
            try:
                self.returncode = self._receive()
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
            self._reply.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        texts = ["", ""]

        def read(number: int, file: IO[str]) -> None:
            with file:
                texts[number] = file.read()

        readers = [
            threading.Thread(target=read, args=(number, file), daemon=True)
            for number, file in enumerate((self.stdout, self.stderr))
            if file
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Started = Forked | subprocess.Popen[str]


def start(
    arguments: Sequence[object],
    *,
    code: str = COMMAND,
    imports: Sequence[str] = IMAGES,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    env: Mapping[str, str] | None = None,
    start_new_session: bool = False,
) -> Started:
    """Run a program in a process of its own, with the signal handlers of a new interpreter.

    Args:
        arguments: arguments of the program.
        code: the program, with which the process ends.
        imports: modules that are imported before, once for all processes.
        stdout: PIPE, DEVNULL or a file descriptor.
        stderr: as ``stdout``.
        env: variables of the environment; None takes those of this process.
        start_new_session: the process has a session and a process group of its own.
    """
    words = list(map(str, arguments))
    if sys.platform != "linux":  # where libraries do not survive a fork
        return subprocess.Popen(
            [sys.executable, "-c", code, *words], stdin=subprocess.DEVNULL, stdout=stdout,
            stderr=stderr, env=env, start_new_session=start_new_session, text=True,
        )  # fmt: skip
    reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outputs: list[IO[str] | None] = []
    files: list[int] = []
    for target in (stdout, stderr):
        if target == subprocess.PIPE:
            here, there = os.pipe()
            outputs.append(os.fdopen(here, encoding="utf-8"))
        else:
            outputs.append(None)
            there = os.open(os.devnull, os.O_WRONLY) if target < 0 else os.dup(target)
        files.append(there)
    request = [words, code, list(imports), dict(env or os.environ), str(Path.cwd()),
               start_new_session]  # fmt: skip
    socket.send_fds(_server(), [json.dumps(request).encode()], [theirs.fileno(), *files])
    theirs.close()
    for file in files:
        os.close(file)
    return Forked(reply, outputs)


@cache
def _server() -> socket.socket:
    """The connection to the process from which others are forked; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        env=os.environ | {"PYTHONPATH": path},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        # Python's streams find out once whether a file is a terminal, or has a position.
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)  # runs first
    return ours


def _serve(requests: socket.socket) -> str:
    """Fork a process for each request; returns only in these, with their program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while True:
        message, files, _, _ = socket.recv_fds(requests, MESSAGE, 3)
        if not message:
            os._exit(0)
        words, code, imports, environment, folder, new_session = json.loads(message)
        for module in imports:
            with suppress(ImportError):  # the program itself reports what is missing
                importlib.import_module(module)
        gc.freeze()
        if os.fork() == 0:
            requests.close()
            if _is_command(socket.socket(fileno=files[0]), files[1:], new_session):
                break
        for file in files:
            os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[1:] = words
    return code


def _is_command(reply: socket.socket, files: list[int], new_session: bool) -> bool:
    """Fork again: the first process waits for the second one, and reports its id and its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        for file in files:
            os.close(file)
        reply.send(str(child).encode())
        _, status = os.waitpid(child, 0)
        reply.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    reply.close()
    if new_session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    return True


if __name__ == "__main__":
    # At the top level, so that the interpreter handles the end of the program as it always does.
    exec(_serve(socket.socket(fileno=int(sys.argv[1]))), {"__name__": "__main__"})
