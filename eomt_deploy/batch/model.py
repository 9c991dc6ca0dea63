"""The model actor: segments all images of a shard, one shard after the other."""

from __future__ import annotations

import pickle
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy.typing as npt

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.engine import DeviceEngine
from eomt_deploy.batch import plan
from eomt_deploy.batch.rows import Done, shown
from eomt_deploy.batch.settings import model_sha256
from eomt_deploy.batch.sizes import IMAGES_PER_CALL
from eomt_deploy.batch.workers import Call, Decoder, HelperDiedError, Helpers, Job, Ready, Writer
from eomt_deploy.errors import EomtDeployError, ImageError, ModelFileError, OutputError
from eomt_deploy.overlap import overlap
from eomt_deploy.pipeline import DevicePipeline, HostPipeline, OnDevice, Pipeline
from eomt_deploy.processing import Processor
from eomt_deploy.result import Segmentation

DECODE_SECONDS = 300.0
"""Time after which reading a few images counts as hanging."""
WRITE_SECONDS = 1800.0
BYTES_IN_FLIGHT = 256 << 20
"""Approximate maximum size of the prepared images that wait for the network, per shard."""
REPORT_SECONDS = 1.0
AT_ONCE = 2
"""Shards that a model works on: while the last results of one are written, the next one begins."""


@dataclass(frozen=True)
class Prepared:
    """One prepared image."""

    index: int
    path: str
    ready: Ready | ImageError


class ShardModel:
    """A model with its decoders and writers; Ray Data calls it with the number of a shard.

    Args:
        job: what to do.
        progress: the actor that collects the progress.
    """

    def __init__(self, job: Job, progress: Any) -> None:
        self.job, self.progress = job, progress
        self.network = threading.Lock()
        self._failure: EomtDeployError | None = None
        # Their processes start while the model is opened.
        self.decoders = Helpers(Decoder, job.decoders, job)
        self.writers = Helpers(Writer, job.writers, job)
        try:
            self.pipeline = self._open()
        except EomtDeployError as error:  # returned by the first call, which keeps its text
            self._failure = error

    @property
    def on_device(self) -> bool:
        """Whether the model resizes images on a GPU."""
        return isinstance(self.pipeline, DevicePipeline)

    def _open(self) -> Pipeline:
        job = self.job
        found = model_sha256(job.model) if job.model.is_file() else "missing"
        if found != job.model_sha256:
            raise ModelFileError(
                f"The model {job.model} on this machine is another file (SHA-256 {found[:12]}…, "
                f"expected {job.model_sha256[:12]}…).",
                fix="Copy the same model file to each machine of the cluster.",
            )
        engine = open_engine(job.model, **job.opening)
        self.progress.opened.remote(engine.where, list(engine.remarks))
        if hasattr(engine, "run_device"):
            return DevicePipeline(OnDevice(cast("DeviceEngine", engine)), job.request)
        processor = Processor(job.spec, threads=job.opening["threads"], backend=engine.backend)
        return HostPipeline(engine, processor, job.request)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """Process the shard ``batch["shard"][0]``.

        Returns:
            one row: the pickled facts of the shard, or the error that ends the run.
        """
        (shard,) = batch["shard"].tolist()
        try:
            if self._failure is not None:
                raise self._failure
            facts: Any = ShardRun(self, shard).run()
        except EomtDeployError as error:
            facts = error
        return {"facts": [pickle.dumps(facts)]}


class ShardRun:
    """The work on one shard."""

    def __init__(self, model: ShardModel, shard: int) -> None:
        self._model, self._shard = model, shard
        self._job = model.job
        self._started = time.perf_counter()
        self._reported = 0.0
        self._done = self._failed = 0
        self._images: dict[int, list[Any]] = {}
        """For each group of images, by its first: lists with their pixels, as Ray objects."""

    def run(self) -> Any:
        paths = plan.paths_of(self._job.place, self._shard)
        self._report(now=True)
        prepared = self._prepared(paths)
        results = overlap(
            range(len(paths)), lambda _: next(prepared), self._run, self._finish, ahead=2
        )
        encoding: deque[Call] = deque()
        rows: list[dict[str, Any]] = []
        group: list[Done] = []
        for done in results:
            group.append(done)
            self._done += 1
            self._failed += isinstance(done.outcome, ImageError)
            if len(group) == IMAGES_PER_CALL or self._done == len(paths):
                encoding.append(self._encode(group))
                group = []
            while len(encoding) > 2 * len(self._model.writers):
                rows += self._get(encoding.popleft())
            self._report()
        while encoding:
            rows += self._get(encoding.popleft())
        seconds = time.perf_counter() - self._started
        return self._get(self._model.writers.start("write", self._shard, rows, seconds))

    def _prepared(self, paths: list[str]) -> Iterator[Prepared]:
        """The images in their order, decoded ahead by a number that their size limits."""
        first = self._shard * self._job.shard_size
        starts = deque(range(0, len(paths), IMAGES_PER_CALL))
        window = len(self._model.decoders) + 1
        waiting: deque[tuple[int, list[str], Call]] = deque()
        while starts or waiting:
            while starts and len(waiting) < window:
                start = starts.popleft()
                part = paths[start : start + IMAGES_PER_CALL]
                call = self._model.decoders.start(
                    "prepare", part, self._model.on_device, attempts=1
                )
                waiting.append((start, part, call))
            start, part, call = waiting.popleft()
            items, self._images[start] = self._decoded(part, call)
            size = sum(item.bytes for item in items if isinstance(item, Ready))
            window = max(1, min(len(self._model.decoders) + 1, BYTES_IN_FLIGHT // max(1, size)))
            for offset, (path, item) in enumerate(zip(part, items, strict=True)):
                yield Prepared(first + start + offset, path, item)

    def _decoded(self, part: list[str], call: Call) -> tuple[list[Ready | ImageError], list[Any]]:
        """The prepared images of a call, and Ray objects with lists of their pixels."""
        try:
            return call.get(seconds=DECODE_SECONDS), [call.refs[1]]
        except HelperDiedError:
            pass
        # One by one: an image that kills or hangs its process must not take others with it.
        found: list[Ready | ImageError] = []
        pixels: list[Any] = []
        for path in part:
            single = self._model.decoders.start("prepare", [path], self._model.on_device)
            try:
                found += single.get(seconds=DECODE_SECONDS)
                pixels.append(single.refs[1])
            except HelperDiedError as error:
                pixels.append([None])
                found.append(
                    ImageError(
                        f"{shown(path)} cannot be read: {error}.",
                        fix="Check this image, or use a machine with more memory.",
                    )
                )
        return found, pixels

    def _run(self, item: Prepared) -> tuple[Prepared, Any, float]:
        if isinstance(item.ready, ImageError):
            return item, item.ready, 0.0
        with self._model.network:
            start = time.perf_counter()
            try:
                outputs = self._model.pipeline.run([item.ready.input])
            except ImageError as error:
                outputs = error
            return item, outputs, (time.perf_counter() - start) * 1000

    def _finish(self, state: tuple[Prepared, Any, float]) -> Done:
        item, outputs, network = state
        if isinstance(item.ready, ImageError) or isinstance(outputs, ImageError):
            return Done(item.index, item.path, outputs)
        start = time.perf_counter()
        try:
            (result,) = self._model.pipeline.finish(outputs)
        except ImageError as error:
            return Done(item.index, item.path, error)
        times = item.ready.milliseconds, network, (time.perf_counter() - start) * 1000
        return Done(item.index, item.path, _without_image(result), times)

    def _encode(self, group: list[Done]) -> Call:
        start = group[0].index - self._shard * self._job.shard_size
        images = self._images.pop(start)
        if not self._job.pictures.overlays:
            images = [[None] * len(group)]
        return self._model.writers.start("encode", self._shard, group, *images)

    def _get(self, call: Call) -> Any:
        try:
            found = call.get(seconds=WRITE_SECONDS)
        except HelperDiedError as error:
            raise OutputError(
                f"The results of shard {self._shard} cannot be written: {error}.",
                fix="Use a machine with more memory, or a smaller --shard-size.",
            ) from error
        if isinstance(found, EomtDeployError):
            raise found
        return found

    def _report(self, *, now: bool = False) -> None:
        if now or time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            self._model.progress.report.remote(self._shard, self._done, self._failed)


def _without_image(result: Segmentation) -> Segmentation:
    return result if result.image is None else replace(result, image=None)
