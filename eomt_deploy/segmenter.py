"""Segmenter: preprocess, run, postprocess."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

from eomt_deploy.backends import Engine, open_engine
from eomt_deploy.backends.engine import MAX_INPUTS, DeviceEngine, run_in_parts
from eomt_deploy.closing import Closing
from eomt_deploy.decoding import check_max_pixels
from eomt_deploy.errors import ImageError, UsageError
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
from eomt_deploy.sources import ColorOrder, ImageSource, load_image
from eomt_deploy.spec import ModelSpec, Thresholds

AHEAD = 2
"""Images that are read before the network is free for them."""


class Segmenter(Closing):
    """Segments images with an exported model.

    Args:
        engine: path of a model file that eomt-deploy wrote, or an open :class:`Engine`.
        backend: backend by name; None selects by suffix and by what is installed.
        device: ``"cpu"`` or ``"cuda"``; None takes the best that works.
        threads: CPU threads of the network and of the post-processing; None leaves it to them.
        mode: ``"latency"`` or ``"throughput"``, see :func:`open_engine`.
        max_pixels: limit of each image file, see :func:`eomt_deploy.load_image`; None takes
            100,000,000.

    Raises:
        ArtifactError: no such file, damaged, or not written by eomt-deploy.
        MissingDependencyError: no backend for it is installed.
        DeviceError: the device cannot be used.

    >>> with Segmenter("model.onnx") as segmenter:  # doctest: +SKIP
    ...     segmenter.predict("street.jpg").overlay().save("seen.png")
    """

    def __init__(
        self,
        engine: str | Path | Engine,
        *,
        backend: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        mode: str | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.max_pixels = check_max_pixels(max_pixels)
        given = {"backend": backend, "device": device, "threads": threads, "mode": mode}
        if not isinstance(engine, str | Path) and any(v is not None for v in given.values()):
            raise UsageError(
                "backend, device, threads and mode are for a path; this engine is open already.",
                fix="Pass them to open_engine().",
            )
        if isinstance(engine, str | Path):
            engine = open_engine(engine, backend=backend, device=device, threads=threads, mode=mode)
        self.engine: Engine = engine
        self.processor = Processor(engine.spec, threads=threads, backend=engine.backend)
        # Not isinstance: it would ask a thread's stream, and so start an execution context.
        on_device = hasattr(engine, "run_device")
        self._on_device = OnDevice(cast("DeviceEngine", engine)) if on_device else None

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        return self.engine.spec

    def predict(
        self,
        image: ImageSource,
        *,
        color_order: ColorOrder = "rgb",
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: path, uint8 array [H, W, 3] or PIL image.
            color_order: channel order of an array; ``"bgr"`` for what OpenCV reads.
            score_threshold: see :meth:`Processor.postprocess`, as for the other thresholds.

        Raises:
            ImageError: the image cannot be read.
            UsageError: a threshold that the task does not have.
            VerificationError: the model gives NaN or infinite logits.
        """
        thresholds = self.processor.thresholds(score_threshold, mask_threshold, overlap_threshold)
        steps = self._pipeline(color_order, thresholds)
        return steps.finish(steps.run(steps.prepare([image])))[0]

    def logits(self, image: ImageSource) -> tuple[Logits, Logits, Geometry]:
        """What the network says of one image, ready for :meth:`Processor.postprocess`.

        Returns:
            class logits [N, Q, C+1], mask logits [N, Q, H/4, W/4] (N = 1, or the number of
            windows), and where they stand in the image.
        """
        pixels = load_image(image, max_pixels=self.max_pixels)
        images, geometry = self.processor.preprocess(pixels)
        return *run_in_parts(self.engine, images), geometry

    def predict_batch(
        self,
        images: Sequence[ImageSource],
        *,
        color_order: ColorOrder = "rgb",
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
    ) -> list[Segmentation]:
        """Segment several images together; arguments as in :meth:`predict`.

        The network sees up to 8 at once; others are read and finished meanwhile.
        """
        thresholds = self.processor.thresholds(score_threshold, mask_threshold, overlap_threshold)
        steps = self._pipeline(color_order, thresholds)
        groups = [images[i : i + MAX_INPUTS] for i in range(0, len(images), MAX_INPUTS)]
        found = overlap(groups, steps.prepare, steps.run, steps.finish, ahead=AHEAD)
        return [result for group in found for result in group]

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        color_order: ColorOrder = "rgb",
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        ahead: int = AHEAD,
        return_errors: Literal[False] = False,
    ) -> Iterator[Segmentation]: ...

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        color_order: ColorOrder = "rgb",
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        ahead: int = AHEAD,
        return_errors: Literal[True],
    ) -> Iterator[Segmentation | ImageError]: ...

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        color_order: ColorOrder = "rgb",
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        ahead: int = AHEAD,
        return_errors: bool = False,
    ) -> Iterator[Segmentation | ImageError]:
        """Segment images one after another, without keeping any; as :meth:`predict`.

        While the network works on an image, the next ones are read and resized, and the one before
        is finished, in threads of their own.

        Args:
            images: anything to iterate over. An array must stay as it is until its result is there.
            color_order: as in :meth:`predict`, like the thresholds.
            ahead: images that are taken early; 0 takes one only when the result before it is out,
                for a camera, or a source that fills the same array again.
            return_errors: give an :class:`ImageError` in the place of an image that cannot be
                read, and go on; otherwise it is raised, after the results before it.

        Raises:
            ImageError: an image cannot be read.
            UsageError: a threshold that the task does not have, or ``ahead`` below 0.
            VerificationError: the model gives NaN or infinite logits; also with
                ``return_errors``, since it is not the image's fault.
        """
        if ahead < 0:
            raise UsageError(f"`ahead` must be 0 or more, got {ahead}.")
        thresholds = self.processor.thresholds(score_threshold, mask_threshold, overlap_threshold)
        steps = self._pipeline(color_order, thresholds)
        three: list[Any] = [steps.prepare, steps.run, steps.finish]
        if return_errors:
            three = [keep_errors(step) for step in three]
        found: Iterator[Any] = overlap(([image] for image in images), *three, ahead=ahead)
        return (item if isinstance(item, ImageError) else item[0] for item in found)

    def _pipeline(self, color_order: ColorOrder, thresholds: Thresholds) -> Pipeline:
        request = Request(color_order, thresholds, self.max_pixels)
        if self._on_device:
            return DevicePipeline(self._on_device, request)
        return HostPipeline(self.engine, self.processor, request)

    def close(self) -> None:
        """Free the engine."""
        try:
            if self._on_device:
                self._on_device.close()
        finally:
            self.engine.close()
