"""The models of a server, and how an answer is awaited. Independent of HTTP and gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from eomt_deploy import __version__
from eomt_deploy.serving.config import ServeConfig
from eomt_deploy.serving.guard import MemoryBudget
from eomt_deploy.serving.inference import PLATFORM
from eomt_deploy.serving.metrics import Metrics
from eomt_deploy.serving.pool import ModelPool
from eomt_deploy.serving.tracing import span
from eomt_deploy.serving.work import Answer, RequestError, ServedModel, Work

GRACE = 1.0
"""Seconds that a late answer of a worker may need to arrive."""


class DisconnectedError(Exception):
    """The client does not wait any more."""


class ModelServer:
    """All models of a server.

    Args:
        config: the configuration.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.budget = MemoryBudget(config.limits.memory_bytes)
        self.stopping = False
        self.deadline = float("inf")  # of the requests in the queues, after a signal
        self._pools = {
            name: ModelPool(name, path, config.pool, config.worker, self.metrics)
            for name, path in config.models.items()
        }

    def start(self) -> dict[str, ServedModel]:
        """Open all models.

        Raises:
            EomtDeployError: a model cannot be opened.
        """
        return {name: pool.start() for name, pool in self._pools.items()}

    @property
    def names(self) -> list[str]:
        """The names of the models; the first is the default."""
        return list(self._pools)

    def pool(self, name: str | None, version: str | None = None) -> ModelPool:
        """A model by its name; None is the first.

        Raises:
            RequestError: there is no such model.
        """
        known = ", ".join(self.names)
        if name is None:
            return next(iter(self._pools.values()))
        if name not in self._pools:
            raise RequestError(404, f"There is no model {name[:100]!r}.", fix=f"Models: {known}.")
        if version not in (None, "", "1"):
            raise RequestError(
                404, f"Model {name} has no version {version[:100]!r}.", fix="Use version 1."
            )
        return self._pools[name]

    @property
    def ready(self) -> bool:
        """Whether all models can answer requests."""
        return not self.stopping and all(pool.ready for pool in self._pools.values())

    def description(self) -> dict[str, Any]:
        """The metadata of the server."""
        return {"name": PLATFORM, "version": __version__, "extensions": ["model_repository"]}

    def models(self) -> list[dict[str, Any]]:
        """What clients may know about the models."""
        return [_described(name, pool) for name, pool in self._pools.items()]

    def index(self) -> list[dict[str, str]]:
        """The models and their states, as in the model repository extension."""
        return [
            {
                "name": name,
                "version": "1",
                "state": "READY" if pool.ready else "UNAVAILABLE",
                "reason": "" if pool.ready else "its worker is starting",
            }
            for name, pool in self._pools.items()
        ]

    async def reload(self, name: str, parameters: Mapping[str, Any] | None) -> None:
        """Open the file of a model again.

        Raises:
            RequestError: the file cannot be opened, or the client wants to send a model.
        """
        if parameters:
            raise RequestError(
                400,
                "A model is reloaded from the file that the server was started with.",
                why="Clients cannot send models, settings or paths.",
                fix="Send the request without parameters.",
            )
        await asyncio.to_thread(self.pool(name).reload)

    async def answer(
        self,
        pool: ModelPool,
        works: Sequence[Work],
        disconnected: Callable[[], Awaitable[None]] | None = None,
    ) -> list[Answer]:
        """Segment the images of a request.

        Args:
            pool: the model.
            works: the images.
            disconnected: returns when the client has left; then requests in the queue are dropped.

        Raises:
            RequestError: the queue is full, or an image cannot be segmented.
            DisconnectedError: the client has left.
        """
        if len(works) > pool.options.max_queue:
            raise RequestError(
                400,
                f"The request has {len(works)} images, more than the queue can hold "
                f"({pool.options.max_queue}).",
                fix="Split the request.",
            )
        futures: list[Future[Answer]] = []
        with span("segment", {"model": pool.name, "images": len(works)}) as attributes:
            try:
                futures += [pool.submit(work) for work in works]
                answers = await self._wait(pool, futures, disconnected)
            finally:
                for future in futures:
                    future.cancel()
            for stage, seconds in answers[0].seconds.items():
                attributes(f"{stage}_seconds", seconds)
        return answers

    async def _wait(
        self,
        pool: ModelPool,
        futures: Sequence[Future[Answer]],
        disconnected: Callable[[], Awaitable[None]] | None,
    ) -> list[Answer]:
        answers = asyncio.gather(*map(asyncio.wrap_future, futures))
        waiting: set[asyncio.Future[Any]] = {answers}
        if disconnected is not None:
            waiting.add(asyncio.ensure_future(disconnected()))
        try:
            await asyncio.wait(
                waiting, timeout=pool.options.timeout + GRACE, return_when=asyncio.FIRST_COMPLETED
            )
            if answers.done():
                return list(answers.result())
            if any(task.done() for task in waiting):
                raise DisconnectedError
            raise RequestError(
                503,
                f"Model {pool.name} did not answer in {pool.options.timeout:g} s.",
                fix="Try again later.",
                retry_after=5,
            )
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def close(self) -> None:
        """Finish the requests in the queues, and stop the workers."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(len(self._pools)) as threads:
            seconds = max(0.0, self.deadline - time.monotonic())
            closing = [
                loop.run_in_executor(threads, pool.close, seconds) for pool in self._pools.values()
            ]
            await asyncio.gather(*closing)

    def workers(self) -> list[int]:
        """The process ids of all workers."""
        return [number for pool in self._pools.values() for number in pool.process_ids]

    def kill(self) -> None:
        """Stop all workers at once."""
        for pool in self._pools.values():
            pool.close(0)


def _described(name: str, pool: ModelPool) -> dict[str, Any]:
    model = pool.model
    assert model is not None  # start() comes first
    return {
        "name": name,
        "ready": pool.ready,
        "task": model.task,
        "precision": model.precision,
        "backend": model.where,
        "image_size": list(model.image_size),
        "thresholds": dict(model.thresholds),
        "classes": [dict(entry) for entry in model.classes],
    }
