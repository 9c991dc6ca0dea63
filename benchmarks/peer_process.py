"""The other end of `benchmarks/peers/worker.py`: a row in a process of its own."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class PeerError(Exception):
    """A row failed; the message is the peer's own."""


class Peer:
    """A process that answers each line of JSON with a line of JSON.

    Args:
        command: program and arguments.
        log: file that gets what the process prints to stderr; it is appended to.
        seconds: maximum time until its first line, which says that it is ready.

    Raises:
        PeerError: the process could not start, or was not ready in time.
    """

    def __init__(self, command: Sequence[Any], log: Path, seconds: float) -> None:
        self._log = log
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, text=True,
            )  # fmt: skip
        try:
            self.versions: dict[str, str] = self._answer(seconds).get("versions", {})
        except PeerError:
            self.close()
            raise

    def ask(self, request: Mapping[str, str], seconds: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            PeerError: the answer is an error, the process ended, or did not answer in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._ending()) from None
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], seconds)[0]:
            raise PeerError(f"no answer within {seconds:g} s, see {self._log.name}")
        line = stdout.readline()
        if not line:
            raise PeerError(self._ending())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def _ending(self) -> str:
        return f"the process ended with code {self._process.wait(10)}, see {self._log.name}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
