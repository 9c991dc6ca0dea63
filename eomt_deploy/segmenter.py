"""Segmenter: preprocess images, run the network, post-process its outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np

from eomt_deploy.addresses import is_address, without_secrets
from eomt_deploy.backends import Engine, open_engine
from eomt_deploy.backends.engine import MAX_INPUTS, DeviceEngine, run_in_parts
from eomt_deploy.closing import Closing
from eomt_deploy.decoding import check_max_pixels
from eomt_deploy.errors import ImageError, UsageError
from eomt_deploy.image_search import search_images
from eomt_deploy.overlap import overlap
from eomt_deploy.pipeline import (
    DevicePipeline,
    HostPipeline,
    Logits,
    OnDevice,
    Pipeline,
    Request,
    keep_errors,
)
from eomt_deploy.processing import Geometry, Processor
from eomt_deploy.result import Segmentation
from eomt_deploy.sources import ColorOrder, ImageSource, check_color_order
from eomt_deploy.spec import ClassInfo, ModelSpec, Thresholds
from eomt_deploy.video import Video, is_video, open_video

if TYPE_CHECKING:
    from typing_extensions import Self

AHEAD = 2
"""Default number of images that are read and prepared before the network needs them."""


def _is_several(source: object) -> bool:
    """Whether it is a camera, video, folder or glob, which only `Segmenter.stream` takes."""
    if not isinstance(source, str | Path):
        return is_video(source)
    if "://" in str(source):
        return not is_address(str(source)) and is_video(source)
    exists = Path(source).exists()
    return Path(source).is_dir() or (is_video(source) if exists else has_magic(str(source)))


class Segmenter(Closing):
    """Segment images with a model file.

    Args:
        engine: path of a model file that eomt-deploy wrote, or an open :class:`Engine`.
        backend: name of the backend; None selects by suffix and installed packages.
        device: ``"cpu"`` or ``"cuda"``; None takes the best that works.
        threads: number of CPU threads of the network and of the post-processing; None takes their
            defaults.
        mode: ``"latency"`` or ``"throughput"``, see :func:`open_engine`.
        arithmetic: what OpenVINO computes the unquantised layers in, see :func:`open_engine`.
        max_pixels: maximum number of pixels of an image file, see :func:`eomt_deploy.load_image`;
            None takes 100,000,000.
        color_order: channel order of the arrays that are passed later: ``"rgb"``, or ``"bgr"`` if
            they come from OpenCV. Files define their own.

    Raises:
        ModelFileError: the model file is missing, damaged, or not written by eomt-deploy.
        MissingDependencyError: no backend for the model file is installed.
        DeviceError: the device cannot be used.
        UsageError: an option is invalid.

    >>> with Segmenter("model.onnx") as segmenter:  # doctest: +SKIP
    ...     segmenter.predict("street.jpg").overlay().save("overlay.png")
    """

    def __init__(
        self,
        engine: str | Path | Engine,
        *,
        backend: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        mode: str | None = None,
        arithmetic: str | None = None,
        max_pixels: int | None = None,
        color_order: ColorOrder = "rgb",
    ) -> None:
        self.max_pixels = check_max_pixels(max_pixels)
        self.color_order: ColorOrder = check_color_order(color_order)
        given: dict[str, Any] = {
            "backend": backend, "device": device, "threads": threads, "mode": mode,
            "arithmetic": arithmetic,
        }  # fmt: skip
        if isinstance(engine, str | Path):
            engine = open_engine(engine, **given)
        elif any(value is not None for value in given.values()):
            raise UsageError(
                f"{', '.join(given)} need the path of a model file, but this engine is already "
                "open.",
                fix="Pass them to open_engine().",
            )
        self.engine: Engine = engine
        self.processor = Processor(engine.spec, threads=threads, backend=engine.backend)
        # isinstance() would evaluate the property `stream`, which creates an execution context.
        on_device = hasattr(engine, "run_device")
        self._on_device = OnDevice(cast("DeviceEngine", engine)) if on_device else None

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        return self.engine.spec

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The model's classes: id, name, whether it is a thing, and colour."""
        return self.spec.classes

    @property
    def names(self) -> dict[int, str]:
        """Class id -> class name."""
        return {info.id: info.name for info in self.spec.classes}

    def __repr__(self) -> str:
        spec = self.spec
        height, width = spec.image_size
        return (
            f"Segmenter({spec.name}: {spec.task}, {len(spec.classes)} classes, {spec.precision}, "
            f"{height}x{width}, {self.engine.where})"
        )

    def warmup(self) -> Self:
        """Predict two black images: the first predictions are slower, because memory is allocated
        and kernels are selected."""
        for _ in range(2):
            self.predict(np.zeros((*self.spec.image_size, 3), np.uint8))
        return self

    @overload
    def predict(
        self,
        image: ImageSource,
        *,
        color_order: ColorOrder | None = None,
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        confidence: bool = False,
    ) -> Segmentation: ...

    @overload
    def predict(
        self,
        image: list[Any],
        *,
        color_order: ColorOrder | None = None,
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        confidence: bool = False,
    ) -> list[Segmentation]: ...

    def predict(
        self,
        image: ImageSource | list[Any],
        *,
        color_order: ColorOrder | None = None,
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        confidence: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or each image of a list (see :meth:`predict_batch`).

        Args:
            image: anything that :func:`eomt_deploy.load_image` takes. With a GPU engine, uint8
                [H, W, 3] in GPU memory is not copied to the CPU; then the result has no ``image``.
            color_order: channel order of an array: ``"rgb"``, or ``"bgr"`` as in OpenCV; None takes
                that of the segmenter.
            score_threshold: see :meth:`Processor.postprocess`; None takes the model's default.
            mask_threshold: as ``score_threshold``.
            overlap_threshold: as ``score_threshold``.
            confidence: also compute ``result.confidence``, which takes much longer than the labels;
                semantic models only.

        Raises:
            ImageError: the image cannot be read.
            UsageError: the task does not have a given threshold.
            VerificationError: the logits contain NaN or infinity.
        """
        if isinstance(image, list):
            return self.predict_batch(
                image,
                color_order=color_order,
                score_threshold=score_threshold,
                mask_threshold=mask_threshold,
                overlap_threshold=overlap_threshold,
                confidence=confidence,
            )
        thresholds = self.processor.thresholds(score_threshold, mask_threshold, overlap_threshold)
        steps = self._pipeline(color_order, thresholds, confidence)
        try:
            return steps.finish(steps.run(steps.prepare([image])))[0]
        except ImageError as error:
            if not _is_several(image):
                raise
            name = repr(without_secrets(str(image)))
            raise ImageError(
                f"predict() takes one image, but {name} is a video, camera, folder or glob.",
                fix=f"for result in segmenter.stream({name}): …",
            ) from error

    __call__ = predict

    def logits(self, image: ImageSource) -> tuple[Logits, Logits, Geometry]:
        """Outputs of the network for one image, for :meth:`Processor.postprocess`.

        Returns:
            class logits [N, Q, C+1], mask logits [N, Q, H/4, W/4] (N = 1, or the number of
            windows), and the geometry that maps them to the image.
        """
        pixels = self._request(None, self.spec.thresholds).load(image).pixels
        images, geometry = self.processor.preprocess(pixels)
        return *run_in_parts(self.engine, images), geometry

    def predict_batch(
        self,
        images: Sequence[ImageSource],
        *,
        color_order: ColorOrder | None = None,
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        confidence: bool = False,
    ) -> list[Segmentation]:
        """Segment several images; arguments and errors as in :meth:`predict`.

        The network processes up to 8 images at once, while other images are read and
        post-processed.
        """
        thresholds = self.processor.thresholds(score_threshold, mask_threshold, overlap_threshold)
        steps = self._pipeline(color_order, thresholds, confidence)
        groups = [images[i : i + MAX_INPUTS] for i in range(0, len(images), MAX_INPUTS)]
        found = overlap(groups, steps.prepare, steps.run, steps.finish, ahead=AHEAD)
        return [result for group in found for result in group]

    @overload
    def stream(
        self,
        images: Iterable[ImageSource] | Video | int | str | Path,
        *,
        color_order: ColorOrder | None = None,
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        confidence: bool = False,
        ahead: int = AHEAD,
        return_errors: Literal[False] = False,
    ) -> Iterator[Segmentation]: ...

    @overload
    def stream(
        self,
        images: Iterable[ImageSource] | Video | int | str | Path,
        *,
        color_order: ColorOrder | None = None,
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        confidence: bool = False,
        ahead: int = AHEAD,
        return_errors: Literal[True],
    ) -> Iterator[Segmentation | ImageError]: ...

    def stream(
        self,
        images: Iterable[ImageSource] | Video | int | str | Path,
        *,
        color_order: ColorOrder | None = None,
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        confidence: bool = False,
        ahead: int = AHEAD,
        return_errors: bool = False,
    ) -> Iterator[Segmentation | ImageError]:
        """Segment images or frames one after another, with constant memory.

        While the network processes an image, other threads read and resize the next images and
        post-process the previous one.

        Args:
            images: iterable of images; folder, glob or address as in ``eomt-deploy predict``; or a
                video: its path, the address of a stream, the number of a camera, or what
                :func:`eomt_deploy.open_video` returns. Results of a video have their ``time``. An
                array must not change before its result is returned.
            color_order: as in :meth:`predict`.
            score_threshold: as in :meth:`predict`.
            mask_threshold: as in :meth:`predict`.
            overlap_threshold: as in :meth:`predict`.
            confidence: as in :meth:`predict`.
            ahead: number of images that are taken early. With 0, an image is taken after the
                previous result was returned: for a source that reuses one array. It is always 0 for
                a camera or a network stream.
            return_errors: return an :class:`ImageError` in the place of an image that cannot be
                read, and continue. Otherwise it is raised after the results before it.

        Raises:
            ImageError: an image cannot be read.
            UsageError: the task does not have a given threshold, or ``ahead`` is negative.
            VerificationError: the logits contain NaN or infinity. It is raised even with
                ``return_errors``, since the model is the cause and not the image.
        """
        if is_video(images):
            images = open_video(cast("int | str | Path", images), max_pixels=self.max_pixels)
        if isinstance(images, int):
            raise UsageError(f"{images} is not an image.", fix="Pass a list of images, or a video.")
        if isinstance(images, str | Path):
            search = search_images([images], addresses=True)
            images = [*search.paths, *search.addresses]
        if ahead < 0:
            raise UsageError(
                f"`ahead` must be 0 or more, got {ahead}.",
                fix="Leave it out: two images are taken early.",
            )
        thresholds = self.processor.thresholds(score_threshold, mask_threshold, overlap_threshold)
        if isinstance(images, Video):
            if color_order == "bgr":
                raise UsageError("Frames of a video are RGB.", fix="Leave color_order out.")
            steps = self._pipeline("rgb", thresholds, confidence)
            return self._stream_video(images, steps, 0 if images.live else ahead)
        steps = self._pipeline(color_order, thresholds, confidence)
        three: list[Any] = [steps.prepare, steps.run, steps.finish]
        if return_errors:
            three = [keep_errors(step) for step in three]
        found: Iterator[Any] = overlap(([image] for image in images), *three, ahead=ahead)
        return (item if isinstance(item, ImageError) else item[0] for item in found)

    def _stream_video(self, video: Video, steps: Pipeline, ahead: int) -> Iterator[Segmentation]:
        times: deque[float] = deque()

        def frames() -> Iterator[list[ImageSource]]:
            for frame in video:
                times.append(frame.time)
                yield [frame.pixels]

        with video:
            for (result,) in overlap(frames(), steps.prepare, steps.run, steps.finish, ahead=ahead):
                yield replace(result, time=times.popleft())

    def pipeline(
        self,
        *,
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
    ) -> Pipeline:
        """The three steps of :meth:`predict`, for programs that schedule them themselves.

        With a :class:`~eomt_deploy.pipeline.HostPipeline`, outputs of ``prepare`` with different
        thresholds can be joined to one list for ``run``.
        """
        thresholds = self.processor.thresholds(score_threshold, mask_threshold, overlap_threshold)
        return self._pipeline(None, thresholds, confidence=False)

    def _pipeline(
        self, color_order: ColorOrder | None, thresholds: Thresholds, confidence: bool
    ) -> Pipeline:
        if confidence and self.spec.task != "semantic":
            raise UsageError(
                f"confidence is for semantic models, this one is {self.spec.task}.",
                fix="Leave it out: the segments of this model have scores.",
            )
        request = self._request(color_order, thresholds, confidence)
        if self._on_device:
            return DevicePipeline(self._on_device, request)
        return HostPipeline(self.engine, self.processor, request)

    def _request(
        self, color_order: ColorOrder | None, thresholds: Thresholds, confidence: bool = False
    ) -> Request:
        return Request(
            color_order or self.color_order,
            thresholds,
            self.max_pixels,
            confidence,
            arrays_only=color_order is None,
        )

    def close(self) -> None:
        """Close the engine."""
        try:
            if self._on_device:
                self._on_device.close()
        finally:
            self.engine.close()
