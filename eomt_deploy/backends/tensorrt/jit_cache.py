"""What TensorRT-RTX compiles for a GPU when an engine first runs there, kept for the next start."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from threading import Lock
from typing import Any

from eomt_deploy import cache
from eomt_deploy.errors import OutputError
from eomt_deploy.files import cache_folder


def cache_file(plan_sha256: str, version: str, gpu: str) -> Path | None:
    """One file an engine, library version and GPU: the library takes no other.

    Returns:
        None for a user without a cache folder.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"tensorrt-rtx-{version}-{gpu}-{plan_sha256[:16]}")
    with contextlib.suppress(OutputError):
        return cache_folder() / f"{name}.jit"
    return None


class JitCache:
    """The run-time cache that all execution contexts of one engine share.

    Args:
        module: TensorRT-RTX.
        engine: its ``ICudaEngine``.
        path: where it is kept; None keeps it nowhere. A file that is damaged, cannot be read, or
            is of another machine, is replaced.
        lock: what is held while execution contexts are made.
    """

    def __init__(self, module: Any, engine: Any, path: Path | None, lock: Lock) -> None:
        self._module, self._engine, self._path, self._lock = module, engine, path, lock
        self._cache: Any = engine.create_runtime_config().create_runtime_cache()
        self._batches: set[int] = set()
        kept = None if path is None else cache.load(path)
        if kept is not None:
            self._cache.deserialize(bytes(kept))  # False: not of this machine; stays empty

    def config(self) -> Any:
        """An ``IRuntimeConfig`` for one execution context, with the library's own CUDA graphs."""
        module = self._module
        config = self._engine.create_runtime_config()
        config.set_runtime_cache(self._cache)
        config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # We run few different batches: compile for each at once, and be as quick from then on.
        # Else a slower kernel runs for a while, and times change under the user's eyes.
        strategy = module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
        return config

    def remember(self, batch: int) -> None:
        """Write the file after the first run of a batch, which compiled something.

        Args:
            batch: that the network ran, not the caller's.
        """
        with self._lock:
            if self._path is None or batch in self._batches:
                return
            self._batches.add(batch)
            blob = self._cache.serialize()
        if blob is None:  # nothing to keep
            return
        content = bytes(memoryview(blob))
        with contextlib.suppress(OutputError):  # it costs seconds at the next start, no more
            cache.store(self._path, lambda file: file.write(content))
