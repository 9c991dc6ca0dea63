"""Run a batch job: list the images, start the workers, collect the finished shards."""

from __future__ import annotations

import pickle
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from eomt_deploy.backends.backend import load
from eomt_deploy.backends.registry import BACKENDS, choose_backend
from eomt_deploy.batch import shards
from eomt_deploy.batch.cluster import import_ray, running_ray
from eomt_deploy.batch.config import BatchConfig
from eomt_deploy.batch.listing import Listing
from eomt_deploy.batch.model import AT_ONCE, ShardModel
from eomt_deploy.batch.places import Place
from eomt_deploy.batch.progress import Progress
from eomt_deploy.batch.report import SUMMARY, BatchReport, make_report, summary
from eomt_deploy.batch.rows import Pictures
from eomt_deploy.batch.settings import (
    Output,
    locked,
    model_sha256,
    prepare_output,
    read_spec,
    settings_of,
)
from eomt_deploy.batch.shards import ShardFacts, Totals
from eomt_deploy.batch.sizes import Sizes, choose_sizes
from eomt_deploy.batch.workers import Job
from eomt_deploy.devices import cuda_device_count, usable_cores
from eomt_deploy.errors import DeviceError, EomtDeployError, ImageError, UsageError
from eomt_deploy.processing import Processor
from eomt_deploy.spec import ModelSpec, Thresholds

WAVE = 50_000
"""Shards that Ray Data gets at once: it keeps a few kB for each until the end of its run."""
POLL_SECONDS = 0.5
END_SECONDS = 10.0
"""Maximum time in which the threads of a stopped run must end."""
RAY_DATA_THREADS = ("iter_threaded", "ray-data-metadata-prefetch")
"""Names of the threads in which Ray Data fetches results."""
RATE_SECONDS = 60.0
"""The shown throughput is that of the last minute."""


@dataclass(frozen=True)
class State:
    """The progress of a run.

    Attributes:
        done: number of images that are done, without those of earlier runs.
        left: number of images of this run.
        failed: number of images without a result, in all runs.
        kept: number of images that earlier runs finished.
        images_per_second: throughput of the last minute; None before the first images.
        where: what the models run on, one entry for each open model.
        remarks: lines for the user.
    """

    done: int
    left: int
    failed: int
    kept: int
    images_per_second: float | None = None
    where: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


Show = Callable[[State], None]


def run(config: BatchConfig, show: Show = lambda state: None) -> BatchReport:
    """Segment all images, or those that an earlier run with the same settings left.

    Finished shards are kept whenever the run stops, also after kill -9.

    Args:
        config: what to do.
        show: function that is called twice a second with the progress.

    Raises:
        UsageError: an option is wrong, or the folder contains a run with other settings.
        ImageError: a source has no images, or more than ``max_errors`` images have no result.
        ModelFileError: the model file is missing or damaged.
        OutputError: the results cannot be written, or would replace foreign files.
        MissingDependencyError: Ray or a backend is not installed.
        DeviceError: the device cannot be used, or Ray cannot be started.
        VerificationError: the model returns NaN or infinity.
    """
    spec = read_spec(config.model)
    processor = Processor(spec)
    thresholds = processor.thresholds(
        config.score_threshold, config.mask_threshold, config.overlap_threshold
    )
    if config.labels and spec.task == "instance":
        raise UsageError(
            "--labels is not for instance models: their masks overlap.",
            fix="Leave it out: the column `segments` contains the exact masks.",
        )
    import_ray(config.address)  # before the work of listing, if it is missing
    place = Place.of(config.output)
    model = model_sha256(config.model)
    images = Listing(config.sources)
    with locked(place):
        output = prepare_output(
            place, images, settings_of(config, thresholds, model), overwrite=config.overwrite
        )
        work = _Work(config, output, spec, thresholds, model)
        seconds = work.process(show) if work.left else 0.0
        names = (f"{shards.FOLDER}/{name}" for name in place.names(shards.FOLDER))
        shards.check_complete(work.totals, names, output.plan.shards, output.plan.images)
        report = make_report(work.totals, spec, kept=work.kept, seconds=seconds, notes=images.notes)
        place.write(SUMMARY, summary(report, output.settings))
        return report


@dataclass
class _Work:
    """The shards that are not finished.

    Attributes:
        totals: sum of all finished shards.
        kept: number of images that earlier runs finished.
    """

    config: BatchConfig
    output: Output
    spec: ModelSpec
    thresholds: Thresholds
    model: str
    totals: Totals = field(init=False)
    kept: int = field(init=False)

    def __post_init__(self) -> None:
        self.totals = self.output.finished
        self.kept = self.totals.images
        self._times: deque[tuple[float, int]] = deque()

    @property
    def left(self) -> list[int]:
        """Numbers of the unfinished shards."""
        return [
            shard for shard in range(self.output.plan.shards) if shard not in self.totals.shards
        ]

    def process(self, show: Show) -> float:
        """Process all unfinished shards.

        Returns:
            seconds from the first open model to the last shard.
        """
        config = self.config
        gpus = _local_gpus(config)
        sizes = _sizes(config, usable_cores(), gpus)
        slots = sizes.models + 1  # the decoders and writers need none
        with running_ray(config.address, slots=slots, gpus=gpus) as ray:
            local = config.address is None
            sizes = replace(sizes, cpus=1) if local else _cluster_sizes(config, ray)
            progress = ray.remote(num_cpus=0, max_restarts=-1)(Progress).remote()
            began: float | None = None
            self._check_errors(0)
            # Closed before Ray, also if an error or a signal ends the run.
            with closing(self._results(ray, sizes, progress)) as results:
                for found in results:
                    fresh = [facts.shard for facts in found]
                    for facts in found:
                        self.totals.add(facts)
                    state = self._state(ray, progress, fresh)
                    if began is None and state.where:
                        began = time.perf_counter()
                    show(state)
                    self._check_errors(state.failed)
            return 0.0 if began is None else time.perf_counter() - began

    def _results(self, ray: Any, sizes: Sizes, progress: Any) -> Generator[list[ShardFacts]]:
        """Facts of newly finished shards, possibly none, twice a second."""
        left = self.left
        for start in range(0, len(left), WAVE):
            wave = left[start : start + WAVE]
            arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
            data = self._dataset(ray, wave, sizes, progress)
            executors = _kept_executors(data)
            others = set(threading.enumerate())
            # In a thread, so that a signal reaches the main thread at once.
            consumer = threading.Thread(
                target=_consume, args=(data, arrived), name="batch-results", daemon=True
            )
            consumer.start()
            try:
                expected = set(wave)
                ended = False
                while expected and not ended:
                    found, ended = _take(arrived)
                    expected.difference_update(facts.shard for facts in found)
                    yield found
            finally:
                _end(executors, consumer, others)

    def _dataset(self, ray: Any, wave: Sequence[int], sizes: Sizes, progress: Any) -> Any:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False  # a slow shard delays no other
        models = min(sizes.models, len(wave))
        pool = ray.data.ActorPoolStrategy(
            size=models,
            max_concurrent_calls_per_actor=AT_ONCE,
            max_tasks_in_flight_per_actor=AT_ONCE,
            enable_true_multi_threading=True,
        )
        # One block per shard: a block is what Ray Data gives to an actor, and repeats.
        rows = ray.data.from_items([{"shard": s} for s in wave], override_num_blocks=len(wave))
        return rows.map_batches(
            ShardModel, batch_size=1, batch_format="numpy", compute=pool,
            fn_constructor_args=(self._job(sizes), progress),
            num_cpus=sizes.cpus, num_gpus=sizes.gpus or None,
        )  # fmt: skip

    def _job(self, sizes: Sizes) -> Job:
        config = self.config
        # Not None, so that each machine of a cluster uses the same backend.
        backend = choose_backend(config.model, config.backend, config.device)
        opening: dict[str, Any] = {
            "backend": backend, "device": config.device or ("cuda" if sizes.gpus else None),
            "threads": sizes.threads, "arithmetic": config.arithmetic,
        }  # fmt: skip
        return Job(
            model=config.model.absolute(), model_sha256=self.model, opening=opening,
            spec=self.spec, thresholds=self.thresholds, max_pixels=config.max_pixels,
            place=self.output.place, pictures=Pictures(config.labels, config.overlays),
            run=self.output.run, shard_size=config.shard_size, decoders=sizes.decoders,
            writers=sizes.writers,
        )  # fmt: skip

    def _state(self, ray: Any, progress: Any, fresh: list[int]) -> State:
        done, failed = self.totals.images - self.kept, self.totals.failed
        where: list[str] = []
        remarks: list[str] = []
        try:
            call = progress.finished.remote(fresh)
            running, broken, where, remarks = ray.get(call, timeout=POLL_SECONDS)
            done, failed = done + running, failed + broken
        except ray.exceptions.RayError:
            pass  # it is busy or starts again; finished shards are known without it
        rate = self._rate(done)
        left = self.output.plan.images - self.kept
        return State(done, left, failed, self.kept, rate, tuple(where), tuple(remarks))

    def _rate(self, done: int) -> float | None:
        now = time.monotonic()
        self._times.append((now, done))
        while now - self._times[0][0] > RATE_SECONDS and len(self._times) > 1:
            self._times.popleft()
        since, before = self._times[0]
        return (done - before) / (now - since) if done > before else None

    def _check_errors(self, failed: int) -> None:
        limit = self.config.max_errors
        failed = max(failed, self.totals.failed)
        if limit is not None and failed > limit:
            raise ImageError(
                f"{failed} images have no result, and --max-errors allows {limit}.",
                why="The column `error` of the shards names the reasons.",
                fix="Repair the images and choose another folder, or run the same command with a "
                "higher --max-errors: it continues.",
            )


def _consume(data: Any, arrived: queue.SimpleQueue[Any]) -> None:
    try:
        for row in data.iter_rows():
            arrived.put(pickle.loads(row["facts"]))
        arrived.put(None)
    except BaseException as error:
        arrived.put(error)


def _kept_executors(data: Any) -> list[Any]:
    """A list that receives each executor of this dataset as soon as it exists.

    Ray Data itself keeps it only after the first result, and a run can be stopped earlier.
    """
    executors: list[Any] = []
    create: Any = getattr(data, "_create_executor", None)

    def keep(*arguments: Any, **options: Any) -> Any:
        executors.append(create(*arguments, **options))
        return executors[-1]

    if create is not None:  # another version of Ray may not have it
        data._create_executor = keep
    return executors


def _end(executors: list[Any], consumer: threading.Thread, others: set[threading.Thread]) -> None:
    """End the threads of Ray Data, except those that ran before.

    If Ray is used after its shutdown, its C++ code ends the process at once with exit code 1.
    """
    for executor in executors:
        with suppress(Exception):  # Ray itself may have failed
            executor.shutdown(force=True)
    consumer.join(END_SECONDS)
    ends = time.monotonic() + END_SECONDS
    for thread in set(threading.enumerate()) - others:
        if thread in executors or thread.name in RAY_DATA_THREADS:
            thread.join(max(0.0, ends - time.monotonic()))


def _take(arrived: queue.SimpleQueue[Any]) -> tuple[list[ShardFacts], bool]:
    """What has arrived in a short time, and whether that was all.

    Raises:
        EomtDeployError: a model returned it.
        DeviceError: Ray failed.
    """
    found: list[ShardFacts] = []
    ends = time.monotonic() + POLL_SECONDS
    while (wait := ends - time.monotonic()) > 0:
        try:
            item = arrived.get(timeout=wait)
        except queue.Empty:
            break
        if isinstance(item, ShardFacts):
            found.append(item)
            continue
        if isinstance(item, EomtDeployError):
            raise item
        if item is None:
            return found, True
        raise DeviceError(
            f"Ray stopped the run: {_reason(item)}",
            fix="Run the same command again to continue; use fewer models with --concurrency if "
            "the memory was full.",
        ) from item
    return found, False


def _reason(error: BaseException) -> str:
    """The first exception in Ray's text about nested ones."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b[^(]*:", line)]
    return next(iter(named or lines[-1:]), type(error).__name__)


def _local_gpus(config: BatchConfig) -> int:
    """GPUs of this machine that the chosen backend can use."""
    backend = BACKENDS[choose_backend(config.model, config.backend, config.device)]
    if config.device == "cpu" or "cuda" not in backend.devices:
        return 0
    if config.device is None and backend.problem and load(backend.problem)("cuda"):
        return 0
    return cuda_device_count()


def _sizes(config: BatchConfig, cores: int, gpus: int, nodes: int = 1) -> Sizes:
    return choose_sizes(
        cores, gpus, threads=config.threads, concurrency=config.concurrency, nodes=nodes
    )


def _cluster_sizes(config: BatchConfig, ray: Any) -> Sizes:
    """Sizes for the machines of a cluster."""
    resources: Mapping[str, float] = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    backend = BACKENDS[choose_backend(config.model, config.backend, config.device)]
    on_gpu = config.device != "cpu" and "cuda" in backend.devices
    gpus = int(resources.get("GPU", 0)) if on_gpu else 0
    return _sizes(config, int(resources.get("CPU", 1)), gpus, max(1, nodes))
