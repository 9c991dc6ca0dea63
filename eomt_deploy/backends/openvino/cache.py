"""Cache of the models that OpenVINO compiled.

OpenVINO's own cache does not verify its files: a few damaged bytes give wrong results without an
error. So we store the compiled model ourselves, with a hash. The next start needs neither the graph
nor OpenVINO's copy of the weights, because the file is memory-mapped.
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
"""Prefixes of the environment variables that OpenVINO and its kernels read."""
FileFacts = list[tuple[int, int, int]]
"""(size in bytes, modification time in nanoseconds, inode) of each file of a model."""


class CompiledFile:
    """Cache file with the compiled model of one model file, for one configuration and machine.

    Args:
        core: an ``openvino.Core``.
        model: ``.onnx`` or ``.xml`` file.
        settings: properties of the compilation.
        reshape: whether the graph is rewritten before.

    Attributes:
        path: the cache file.
        remarks: why the file could not be used or written.
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
            # A change of the graph rewrites changes the compiled model.
            "graph": reshape and sha256(Path(graph.__file__)),
        }
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        self.path = cache_folder() / "openvino" / f"{name}.blob"

    def load(self) -> tuple[Any, Any] | None:
        """The compiled model, and the memory that must stay alive as long as the model.

        Returns:
            None if there is no usable file.
        """
        content = cache.load(self.path)
        if content is None:
            if self.path.exists():
                self.remarks.append(
                    f"The compiled model in the cache ({self.path}) was damaged, so the model was "
                    "compiled again."
                )
            return None
        memory = np.frombuffer(content, np.uint8)
        try:
            return _import(self._core, memory, self._settings), memory
        except RuntimeError as error:
            self.remarks.append(
                f"OpenVINO rejected the compiled model in the cache ({self.path}: "
                f"{str(error).strip().splitlines()[-1]}), so the model was compiled again."
            )
            return None

    def keep(self, compiled: Any) -> None:
        """Write the compiled model to the cache, unless the model file has changed meanwhile."""
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
            self.remarks.append(f"The model is compiled again at each start: {reason}")


def _import(core: Any, memory: Any, settings: dict[str, Any]) -> Any:
    try:
        return core.import_model(openvino.Tensor(memory, shared_memory=True), "CPU", settings)
    except TypeError:  # OpenVINO before 2025.3 accepts only bytes
        return core.import_model(memory.tobytes(), "CPU", settings)


def _files(model: Path) -> list[Path]:
    if model.suffix.lower() == ".xml":
        real = through_links(model)  # its .bin is beside the real file
        return [real, real.with_suffix(".bin")]
    return [model, *side_files(model)]


def _facts(files: list[Path]) -> FileFacts:
    found = [file.stat() for file in files]
    return [(facts.st_size, facts.st_mtime_ns, facts.st_ino) for facts in found]
