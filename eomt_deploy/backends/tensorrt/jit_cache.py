"""Cache of the code that TensorRT-RTX compiles when an engine first runs on a GPU."""

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
    """Cache file for an engine, library version and GPU: the library rejects files of other ones.

    Returns:
        None if there is no cache folder.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"tensorrt-rtx-{version}-{gpu}-{plan_sha256[:16]}")
    with contextlib.suppress(OutputError):
        return cache_folder() / f"{name}.jit"
    return None


class JitCache:
    """The runtime cache (``IRuntimeCache``) that all execution contexts of one engine share.

    Args:
        module: TensorRT-RTX.
        engine: its ``ICudaEngine``.
        path: cache file; None means that the cache is not saved. A file that is damaged,
            unreadable or from another machine is replaced.
        lock: lock that is held while execution contexts are created.
    """

    def __init__(self, module: Any, engine: Any, path: Path | None, lock: Lock) -> None:
        self._module, self._engine, self._path, self._lock = module, engine, path, lock
        self._cache: Any = engine.create_runtime_config().create_runtime_cache()
        self._batches: set[int] = set()
        kept = None if path is None else cache.load(path)
        if kept is not None:
            # For a file from another machine this returns False, and the cache stays empty.
            self._cache.deserialize(bytes(kept))

    def config(self) -> Any:
        """An ``IRuntimeConfig`` for one execution context; the library manages the CUDA graphs."""
        module = self._module
        config = self._engine.create_runtime_config()
        config.set_runtime_cache(self._cache)
        config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # There are few different batch sizes, so compile for each at once. Otherwise a slower
        # kernel runs for a while, and the latency changes during use.
        strategy = module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
        return config

    def remember(self, batch: int) -> None:
        """Write the file after the first run of a batch size, which compiles new code.

        Args:
            batch: batch size that the network ran, which may differ from the caller's.
        """
        with self._lock:
            if self._path is None or batch in self._batches:
                return
            self._batches.add(batch)
            blob = self._cache.serialize()
        if blob is None:
            return
        content = bytes(memoryview(blob))
        with contextlib.suppress(OutputError):  # without the file the next start is only slower
            cache.store(self._path, lambda file: file.write(content))
