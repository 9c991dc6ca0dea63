"""A real server in a thread of the test process, with its worker processes."""

from __future__ import annotations

import io
import multiprocessing
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import forked
import numpy as np
from PIL import Image

from eomt_deploy.serving import supervision
from eomt_deploy.serving.config import Limits, ServeConfig
from eomt_deploy.serving.pool import PoolOptions
from eomt_deploy.serving.run import Running, serve
from eomt_deploy.serving.worker import WorkerOptions

TOKEN = "0123456789abcdef-of-a-test"
IMPORTS = (*forked.IMAGES, "eomt_deploy.serving.run")
"""What `serve` imports."""


@contextmanager
def forked_workers() -> Iterator[None]:
    """Fork workers from a process that has imported what they need.

    Servers of the command line start them in new interpreters.
    """
    if sys.platform != "linux":
        yield
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eomt_deploy.serving.worker", "onnxruntime"])
    forking = SimpleNamespace(get_context=lambda _: context)
    with patch.object(supervision, "multiprocessing", forking):
        yield


@contextmanager
def running(models: dict[str, Path], **settings: Any) -> Iterator[Running]:
    """Serve models until the end of the block.

    Args:
        models: model files by name.
        settings: fields of :class:`ServeConfig`, :class:`PoolOptions` and :class:`Limits`.
    """

    def part(kind: Any, **defaults: Any) -> Any:
        names = kind.__dataclass_fields__
        return kind(**{**defaults, **{k: settings.pop(k) for k in list(settings) if k in names}})

    pool = part(PoolOptions)
    limits = part(Limits)
    worker = part(WorkerOptions, backend="onnxruntime", threads=1, max_pixels=4_000_000)
    config = ServeConfig(
        models, port=0, pool=pool, limits=limits, worker=worker,
        **{"grpc_port": None, "log": "off", "drain_seconds": 10.0, **settings},
    )  # fmt: skip
    ready = threading.Event()
    found: list[Any] = []

    def started(server: Running) -> None:
        found.append(server)
        ready.set()

    def run() -> None:
        try:
            serve(config, started)
        except BaseException as error:
            found.append(error)
            raise
        finally:
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    with forked_workers():
        thread.start()
        assert ready.wait(60), "the server did not start"
        assert isinstance(found[0], Running), found
        try:
            yield found[0]
        finally:
            found[0].stop()
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"


def encoded(seed: int, size: tuple[int, int] = (48, 64), kind: str = "PNG") -> bytes:
    """An image file with smooth colours that depend on the seed."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (5, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()
