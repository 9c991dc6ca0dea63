"""What OpenVINO compiled, kept for the next start.

OpenVINO has a cache of its own, but believes what it finds there: a few damaged bytes give wrong
results without an error. So we keep the compiled model ourselves, with a hash. The next start then
needs neither the graph nor OpenVINO's copy of the weights: the file is mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from eomt_deploy import cache, devices
from eomt_deploy.backends.openvino import graph
from eomt_deploy.errors import OutputError
from eomt_deploy.external_data import side_files
from eomt_deploy.files import cache_folder, through_links
from eomt_deploy.privacy import import_openvino
from eomt_deploy.sidecar import sha256

openvino = import_openvino()
VARIABLES = ("DNNL_", "ONEDNN_", "OV_", "OPENVINO_")
"""First letters of environment variables that OpenVINO and its kernels read."""
FileFacts = list[tuple[int, int, int]]
"""Size, time of the last change in nanoseconds, and inode of each file of a model."""


class CompiledFile:
    """The compiled model of one model file, in one setting, on this machine.

    Args:
        core: an ``openvino.Core``.
        model: ``.onnx`` or ``.xml`` file.
        settings: of the compilation.
        reshape: whether the graph is reshaped before.

    Attributes:
        remarks: why it could not be used or kept.
    """

    def __init__(self, core: Any, model: Path, settings: Mapping[str, Any], reshape: bool) -> None:
        self._core, self._settings = core, dict(settings)
        self._model = model
        self._files = _files(model)
        self._facts = _facts(self._files)
        self.remarks: list[str] = []
        key = {
            "model": [sha256(*self._files), *(size for size, *_ in self._facts)],
            "openvino": openvino.__version__,
            "cpu": [core.get_property("CPU", "FULL_DEVICE_NAME"), devices.cpu_flags()],
            "able": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
            "cores": devices.usable_cores(),
            "settings": self._settings,
            "variables": {n: v for n, v in sorted(os.environ.items()) if n.startswith(VARIABLES)},
            # Another way to reshape gives another compiled model.
            "graph": reshape and sha256(Path(graph.__file__)),
        }
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        self.path = cache_folder() / "openvino" / f"{name}.blob"

    def load(self) -> tuple[Any, Any] | None:
        """The compiled model, and the memory that it reads as long as it lives."""
        content = cache.load(self.path)
        if content is None:
            if self.path.exists():
                self.remarks.append(
                    f"The compiled model in the cache ({self.path}) was damaged. It was compiled "
                    "again."
                )
            return None
        memory = np.frombuffer(content, np.uint8)
        try:
            return _import(self._core, memory, self._settings), memory
        except RuntimeError as error:
            self.remarks.append(
                f"OpenVINO did not take the compiled model in the cache ({self.path}: "
                f"{str(error).strip().splitlines()[-1]}). It was compiled again."
            )
            return None

    def keep(self, compiled: Any) -> None:
        """Write it for the next start, if the model file is still the same."""
        if cache.size_limit() == 0:
            return
        with suppress(OSError):
            if _facts(self._files) != self._facts:
                return
        try:
            cache.store(
                self.path, compiled.export_model, estimate=sum(size for size, *_ in self._facts)
            )
        except (OutputError, RuntimeError) as error:
            reason = error.what if isinstance(error, OutputError) else str(error)
            self.remarks.append(f"Each start compiles the model again: {reason}")


def _import(core: Any, memory: Any, settings: dict[str, Any]) -> Any:
    try:
        return core.import_model(openvino.Tensor(memory, shared_memory=True), "CPU", settings)
    except TypeError:  # before OpenVINO 2025.3 only from bytes
        return core.import_model(memory.tobytes(), "CPU", settings)


def _files(model: Path) -> list[Path]:
    if model.suffix.lower() == ".xml":
        real = through_links(model)  # its .bin is beside the real file
        return [real, real.with_suffix(".bin")]
    return [model, *side_files(model)]


def _facts(files: list[Path]) -> FileFacts:
    found = [file.stat() for file in files]
    return [(facts.st_size, facts.st_mtime_ns, facts.st_ino) for facts in found]
