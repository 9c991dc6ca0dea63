"""Try a package in another process, before this one opens it on a GPU.

On an NVIDIA H200, PyTorch 2.11 crashed while it opened a large package for a CUDA graph. A crash
cannot be caught, so the first opening of a package on a machine is a trial that may crash.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from eomt_deploy import cache, devices
from eomt_deploy.errors import DeviceError, EomtDeployError
from eomt_deploy.files import cache_folder

GRAPH, PLAIN = "graph", "plain"
"""With and without a CUDA graph."""
SECONDS = 600
"""Maximum time of a trial; one that takes longer counts as a crash."""
REFUSED = 3
"""Exit status of a trial that ended with one of our errors, which the caller will get, too."""


def can_record(path: Path) -> bool:
    """Whether PyTorch can run a package as a CUDA graph.

    The answer is kept in the cache folder, for this package, GPU, driver and version of PyTorch.

    Args:
        path: a package for a GPU.

    Raises:
        DeviceError: PyTorch crashes without a CUDA graph, too.
    """
    file = cache_folder() / "aotinductor" / f"{_key(path)}.way"
    known = cache.load(file)
    if known is not None:
        return bytes(known) == GRAPH.encode()
    for way in (GRAPH, PLAIN):
        if _survives(path, way):
            with suppress(EomtDeployError):  # the folder is full or read-only
                cache.store(file, partial(_write, way))
            return way == GRAPH
    raise DeviceError(
        f"PyTorch crashed while it opened {path.name} on the GPU, in a process that tried it.",
        why="Its version of PyTorch, CUDA or the driver has a fault.",
        fix="Compile it again with another version of PyTorch, or use the .onnx file.",
    )


def _write(way: str, sink: BinaryIO) -> None:
    sink.write(way.encode())


def _key(path: Path) -> str:
    import torch

    with zipfile.ZipFile(path) as archive:
        content = sorted((e.filename, e.CRC, e.file_size) for e in archive.infolist())
    place = torch.__version__, torch.version.cuda, devices.current_gpu()
    return hashlib.sha256(repr((content, place)).encode()).hexdigest()


def _survives(path: Path, way: str) -> bool:
    try:
        return (
            subprocess.run(_command(path, way), timeout=SECONDS, capture_output=True).returncode
            >= 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def _command(path: Path, way: str) -> list[str]:
    return [sys.executable, "-m", __name__, str(path), way]


def main() -> None:
    """Run a package as often as a CUDA graph needs, in a process of its own."""
    import numpy as np

    from eomt_deploy.backends.aotinductor.gpu import AotInductorGpuEngine

    path, way = sys.argv[1:]
    try:
        with AotInductorGpuEngine(Path(path), graphs=way == GRAPH) as engine:
            images = np.zeros((engine.spec.batch or 1, *engine.spec.image_size, 3), np.uint8)
            for _ in range(3):
                engine.run(images)
    except EomtDeployError:
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
