"""Run a program in a separate home folder, and record its connections and the files it writes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

SOURCE = Path(__file__).with_name("network.c")
REPOSITORY = Path(__file__).parents[1]
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class Proxy:
    """Counts connections without answering them."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            with connection:
                connection.settimeout(1)
                try:
                    request = connection.recv(200)
                except OSError:
                    request = b""
                self.requests.append(request.split(b"\r\n")[0].decode(errors="replace"))

    def close(self) -> None:
        self._server.close()


def compile_shim(folder: Path) -> Path | None:
    """A library that records network calls; None without a C compiler or without Linux."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "network.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


@dataclass
class Watched:
    """A new home folder, and the actions of programs that run in it.

    Attributes:
        root: folder that contains all files.
        shim: library of :func:`compile_shim`.
        variables: additional environment variables.
    """

    root: Path
    shim: Path | None
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.proxy = Proxy()
        self.home.mkdir(parents=True)
        for name in ("cache", "config", "data", "temporary"):
            (self.home / name).mkdir()

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def log(self) -> Path:
        return self.root / "network.log"

    @cached_property
    def environment(self) -> dict[str, str]:
        kept = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "HOME": str(self.home),
            "USERPROFILE": str(self.home),
            "LOCALAPPDATA": str(self.home / "cache"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_DATA_HOME": str(self.home / "data"),
            "TMPDIR": str(self.home / "temporary"),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
            **dict.fromkeys(VARIABLES, self.proxy.address),
            **({"LD_PRELOAD": str(self.shim), "NETWORK_LOG": str(self.log)} if self.shim else {}),
            **self.variables,
        }

    def run(self, *arguments: object) -> str:
        """Run Python with these arguments, which must succeed, and return its output."""
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    @property
    def contacts(self) -> list[str]:
        """Connections to the proxy, and network calls that bypass it."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        return [*self.proxy.requests, *calls]

    def files(self, allowed: Sequence[str] = ("cache/eomt-deploy/",)) -> list[str]:
        """Files and folders in the home folder that are not below ``allowed``."""
        made = {"cache", "config", "data", "temporary", *(a.rstrip("/") for a in allowed)}
        found = (path.relative_to(self.home).as_posix() for path in self.home.rglob("*"))
        return sorted(p for p in found if p not in made and not p.startswith(tuple(allowed)))
