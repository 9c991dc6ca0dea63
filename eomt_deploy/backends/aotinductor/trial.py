"""Try a package in another process, before this one opens it on a GPU.

On an NVIDIA H200, PyTorch 2.11 crashed while it opened a large package for a CUDA graph. A crash
cannot be caught, so the first opening of a package on a machine is a trial that may crash.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from eomt_deploy import cache, devices
from eomt_deploy.errors import DeviceError, EomtDeployError
from eomt_deploy.files import cache_folder

GRAPH, PLAIN = "graph", "plain"
"""With and without a CUDA graph."""
SECONDS = 600
"""Maximum time of a trial."""
FINISHED = "the package ran"
"""What a trial prints at its end."""
CRASHES = {
    -getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
    if hasattr(signal, name)
}
"""Exit statuses of a process that crashed. Others are killed, e.g. when the memory is full."""
WINDOWS_CRASH = 0xC0000000
"""Smallest exit status of a process that crashed on Windows."""
START = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from eomt_deploy.backends.aotinductor.trial import main
main()
"""
CRASHED = "PyTorch crashed when it recorded this package, in a process that tried it"
NOT_TRIED = "the process that tries a new package first did not finish"
NO_PYTHON = "no Python interpreter was found that could try the new package in a process of its own"


def why_no_graph(path: Path) -> str:
    """Why PyTorch shall not run a package as a CUDA graph; empty if it can.

    A finding is kept in the cache folder, for this package, GPU, driver and version of PyTorch.

    Args:
        path: a package for the GPU of this machine, which can be used.

    Raises:
        DeviceError: PyTorch crashes without a CUDA graph, too.
    """
    file = _cache_file(path)
    known = cache.load(file) if file else None
    if known is not None:
        return "" if bytes(known) == GRAPH.encode() else CRASHED
    if not sys.executable or getattr(sys, "frozen", False):
        return NO_PYTHON
    for way in (GRAPH, PLAIN):
        ended = _try(path, way)
        if ended == "unknown":
            return NOT_TRIED
        if ended == "finished":
            with suppress(EomtDeployError):  # the folder is full or read-only
                if file:
                    cache.store(file, partial(_write, way))
            return "" if way == GRAPH else CRASHED
    raise DeviceError(
        f"PyTorch crashed while it opened {path.name} on the GPU, in a process that tried it.",
        why="Its version of PyTorch, CUDA or the driver has a fault.",
        fix="Compile it again with another version of PyTorch, or use the .onnx file.",
    )


def _write(way: str, sink: BinaryIO) -> None:
    sink.write(way.encode())


def _cache_file(path: Path) -> Path | None:
    """The file of a finding; None without a cache folder."""
    import torch

    with zipfile.ZipFile(path) as archive:
        content = sorted((e.filename, e.CRC, e.file_size) for e in archive.infolist())
    place = torch.__version__, torch.version.cuda, devices.current_gpu()
    key = hashlib.sha256(repr((content, place)).encode()).hexdigest()
    try:
        return cache_folder() / "aotinductor" / f"{key}.way"
    except EomtDeployError:
        return None


def _try(path: Path, way: str) -> Literal["finished", "crashed", "unknown"]:
    try:
        done = subprocess.run(
            _command(path, way), timeout=SECONDS, capture_output=True, text=True, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if FINISHED in done.stdout:
        return "finished"
    crashed = done.returncode in CRASHES or done.returncode >= WINDOWS_CRASH
    return "crashed" if crashed else "unknown"


def _command(path: Path, way: str) -> list[str]:
    # -I and the parent's folders: Python would look for modules in the current folder first.
    folders = [folder for folder in sys.path if folder]
    return [sys.executable, "-I", "-c", START, json.dumps(folders), str(path.absolute()), way]


def main() -> None:
    """Run a package as often as a CUDA graph needs, in a process of its own."""
    import numpy as np

    from eomt_deploy.backends.aotinductor.gpu import AotInductorGpuEngine

    path, way = sys.argv[1:]
    with AotInductorGpuEngine(Path(path), no_graph="" if way == GRAPH else "not tried") as engine:
        images = np.zeros((engine.spec.batch or 1, *engine.spec.image_size, 3), np.uint8)
        for _ in range(3):
            engine.run(images)
    sys.stdout.write(f"{FINISHED}\n")
