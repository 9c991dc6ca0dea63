"""The Ray actors: decoders read images, models segment them, writers store the results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from eomt_deploy.batch import rows, shards
from eomt_deploy.batch.places import Place, is_remote, read_image_bytes
from eomt_deploy.batch.rows import Done, Pictures
from eomt_deploy.batch.shards import ShardFacts
from eomt_deploy.decoding import ENCODED_BYTES_PER_PIXEL, check_max_pixels
from eomt_deploy.errors import EomtDeployError, ImageError
from eomt_deploy.pipeline import LoadedImage, NetworkInput, Request, name_of
from eomt_deploy.processing import Processor
from eomt_deploy.sources import RgbImage, decode_image, load_image
from eomt_deploy.spec import ModelSpec, Thresholds


@dataclass(frozen=True)
class Job:
    """Everything that the workers need to know.

    Attributes:
        model: model file.
        model_sha256: its hash; another machine must have the same file.
        opening: arguments of :func:`eomt_deploy.open_engine`.
        spec: the model's description.
        thresholds: all thresholds.
        max_pixels: maximum number of pixels of an image file.
        place: the output folder.
        pictures: pictures to write beside the shards.
        run: identity of the settings.
        shard_size: number of images of a shard, except for the last.
        decoders: number of decoders of each model.
        writers: number of writers of each model.
    """

    model: Path
    model_sha256: str
    opening: dict[str, Any]
    spec: ModelSpec
    thresholds: Thresholds
    max_pixels: int | None
    place: Place
    pictures: Pictures
    run: str
    shard_size: int
    decoders: int
    writers: int

    @property
    def request(self) -> Request:
        return Request("rgb", self.thresholds, self.max_pixels)


class Ready(NamedTuple):
    """An image that is ready for the network.

    Attributes:
        input: what ``run`` of the pipeline takes.
        milliseconds: time to read and to prepare it.
        bytes: size of the arrays that wait in memory for it.
    """

    input: NetworkInput | LoadedImage
    milliseconds: float
    bytes: int


def read_image(path: str, max_pixels: int | None) -> RgbImage:
    """Read an image from a file, an http(s) address or another file system.

    Raises:
        ImageError: it cannot be read.
    """
    if not is_remote(path):
        return load_image(path, max_pixels=max_pixels)
    limit = check_max_pixels(max_pixels) * ENCODED_BYTES_PER_PIXEL + (1 << 20)
    return decode_image(read_image_bytes(path, limit), path, max_pixels=max_pixels)


class Decoder:
    """Reads, decodes and resizes images in its own process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._processor = Processor(job.spec, threads=1)

    def prepare(
        self, paths: Sequence[str], on_device: bool
    ) -> tuple[list[Ready | ImageError], list[RgbImage | None]]:
        """Prepare some images.

        Args:
            paths: their paths or addresses.
            on_device: whether the model resizes them on a GPU.

        Returns:
            the inputs of the network, or errors; and the images, if overlays are drawn from them.
        """
        ready: list[Ready | ImageError] = []
        images: list[RgbImage | None] = []
        keep = self._job.pictures.overlays
        for path in paths:
            pixels = None
            try:
                start = time.perf_counter()
                pixels = read_image(path, self._job.max_pixels)
                item = self._input(path, pixels, on_device)
                took = (time.perf_counter() - start) * 1000
                size = pixels.nbytes if keep or on_device else 0
                size += item.images.nbytes if isinstance(item, NetworkInput) else 0
                ready.append(Ready(item, took, size))
            except ImageError as error:
                ready.append(error)
            images.append(pixels if keep else None)
        return ready, images

    def _input(self, path: str, pixels: RgbImage, on_device: bool) -> NetworkInput | LoadedImage:
        if on_device:
            return LoadedImage(pixels, name_of(path))
        # The pixels stay here: the network needs only the resized image.
        nothing = LoadedImage(cast("Any", None), name_of(path))
        return NetworkInput(nothing, *self._processor.preprocess(pixels))


class Writer:
    """Encodes masks and pictures, and writes shards, in its own process."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def encode(
        self, shard: int, done: Sequence[Done], *images: Sequence[RgbImage | None]
    ) -> list[dict[str, Any]] | EomtDeployError:
        """The rows of some images; their pictures are written.

        Args:
            images: the pixels of the images, in one or more lists; None without an overlay.
        """
        every = [pixels for part in images for pixels in part]
        try:
            return [
                rows.make_row(one, shard, self._job.place, self._job.pictures, pixels)
                for one, pixels in zip(done, every, strict=True)
            ]
        except EomtDeployError as error:
            return error

    def write(
        self, shard: int, content: list[dict[str, Any]], seconds: float
    ) -> ShardFacts | EomtDeployError:
        """Write a shard with these rows."""
        facts = shards.facts_of(shard, self._job.run, content, seconds)
        try:
            shards.write(self._job.place, facts, content)
        except EomtDeployError as error:
            return error
        return facts


ATTEMPTS = 3
"""Number of times that a call is tried if its process dies or hangs."""


class Helpers:
    """Some equal actors on this machine. They keep no state, so every call can be repeated.

    Args:
        kind: class of the actors.
        count: number of actors.
        arguments: arguments of their constructor.
    """

    def __init__(self, kind: type, count: int, *arguments: Any) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        # They reserve no cores, so they can always start: the model actor reserves them.
        options: dict[str, Any] = {
            "num_cpus": 0, "max_restarts": -1, "max_task_retries": ATTEMPTS - 1,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
        }  # fmt: skip
        actor: Any = ray.remote(**options)(kind)
        self._actors = [actor.remote(*arguments) for _ in range(count)]
        self._next = 0

    def __len__(self) -> int:
        return len(self._actors)

    def start(self, method: str, *arguments: Any, attempts: int = ATTEMPTS) -> Call:
        """Start a call on the next actor.

        Args:
            attempts: number of times that Ray tries it if the process dies.
        """
        actor = self._actors[self._next % len(self._actors)]
        self._next += 1
        returns = 2 if method == "prepare" else 1
        call = getattr(actor, method).options(num_returns=returns, max_task_retries=attempts - 1)
        refs = call.remote(*arguments)
        return Call(actor, refs if returns > 1 else [refs], attempts)


@dataclass(frozen=True)
class Call:
    """A call of a helper that is running or has ended.

    Attributes:
        actor: the helper.
        refs: the Ray objects that it returns.
        attempts: number of times that it is tried.
    """

    actor: Any
    refs: list[Any]
    attempts: int

    def get(self, *, seconds: float) -> Any:
        """Its first result.

        Args:
            seconds: time after which the call counts as hanging, and its process is replaced.

        Raises:
            HelperDiedError: the process died or hung in each attempt.
        """
        import ray

        for _ in range(self.attempts):
            try:
                return ray.get(self.refs[0], timeout=seconds)
            except ray.exceptions.GetTimeoutError:
                ray.kill(self.actor, no_restart=False)
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
                raise HelperDiedError(
                    "its process ended, e.g. because there was not enough memory"
                ) from error
        raise HelperDiedError(f"it took more than {seconds:g} s")


class HelperDiedError(Exception):
    """A helper died or hung in each attempt of a call; the text is the reason."""
