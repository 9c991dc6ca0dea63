"""Segmenter: preprocess, run, postprocess."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from eomt_deploy.engines import Engine, open_engine
from eomt_deploy.engines.base import DeviceEngine, Outputs
from eomt_deploy.errors import UsageError
from eomt_deploy.processing import Geometry, Processor
from eomt_deploy.result import Segmentation
from eomt_deploy.sources import ColorOrder, ImageSource, RgbImage, load_image
from eomt_deploy.spec import ModelSpec, Thresholds

if TYPE_CHECKING:
    from eomt_deploy.processing.cuda import CudaProcessor

Logits = npt.NDArray[Any]
MAX_INPUTS = 8
"""Network inputs of one engine call."""


class Segmenter:
    """Segments images with an exported model.

    Args:
        engine: path of an artifact that eomt-deploy wrote, or an open :class:`Engine`.
        backend: run-time by name; None chooses by suffix and by what is installed.
        device: ``"cpu"`` or ``"cuda"``; None takes the best that works.
        threads: CPU threads of the network and of the post-processing; None leaves it to them.

    Raises:
        ArtifactError: no such file, damaged, or not written by eomt-deploy.
        MissingDependencyError: no run-time for it is installed.
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
    ) -> None:
        given = {"backend": backend, "device": device, "threads": threads}
        if not isinstance(engine, str | Path) and any(v is not None for v in given.values()):
            raise UsageError(
                "backend, device and threads are for a path; this engine is open already.",
                fix="Pass them to open_engine().",
            )
        if isinstance(engine, str | Path):
            engine = open_engine(engine, backend=backend, device=device, threads=threads)
        self.engine: Engine = engine
        self.processor = Processor(engine.spec, threads=threads)
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
        """
        pixels = load_image(image, color_order=color_order)
        thresholds = self.processor.thresholds(score_threshold, mask_threshold, overlap_threshold)
        return self._segment(pixels, thresholds)

    def _segment(self, pixels: RgbImage, thresholds: Thresholds) -> Segmentation:
        if self._on_device:
            result = self._on_device.segment(pixels, thresholds)
        else:
            result = self.processor.postprocess_with(*self.logits(pixels), thresholds)
        return replace(result, image=pixels)

    def logits(self, image: ImageSource) -> tuple[Logits, Logits, Geometry]:
        """What the network says of one image, ready for :meth:`Processor.postprocess`.

        Returns:
            class logits [N, Q, C+1], mask logits [N, Q, H/4, W/4] (N = 1, or the number of
            windows), and where they stand in the image.
        """
        images, geometry = self.processor.preprocess(image)
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
        """Segment several images together; arguments as in :meth:`predict`."""
        if len(images) == 0:
            return []
        thresholds = self.processor.thresholds(score_threshold, mask_threshold, overlap_threshold)
        photos = [load_image(image, color_order=color_order) for image in images]
        if self._on_device:
            return [self._segment(photo, thresholds) for photo in photos]
        prepared = [self.processor.preprocess(photo) for photo in photos]
        class_logits, mask_logits = run_in_parts(
            self.engine, np.concatenate([p[0] for p in prepared])
        )
        results = []
        start = 0
        for photo, (inputs, geometry) in zip(photos, prepared, strict=True):
            own = slice(start, start + len(inputs))
            start += len(inputs)
            result = self.processor.postprocess_with(
                class_logits[own], mask_logits[own], geometry, thresholds
            )
            results.append(replace(result, image=photo))
        return results

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        color_order: ColorOrder = "rgb",
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
    ) -> Iterator[Segmentation]:
        """Segment images one after another, without keeping any; as :meth:`predict`."""
        for image in images:
            yield self.predict(
                image,
                color_order=color_order,
                score_threshold=score_threshold,
                mask_threshold=mask_threshold,
                overlap_threshold=overlap_threshold,
            )

    def close(self) -> None:
        """Free the engine."""
        try:
            if self._on_device:
                self._on_device.close()
        finally:
            self.engine.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class OnDevice:
    """The whole way on the GPU: a photo goes in, and only its result comes back.

    Each thread has a processor of its own, on the engine's stream for that thread; it goes with it.
    """

    def __init__(self, engine: DeviceEngine) -> None:
        self._engine = engine
        self._own = threading.local()
        self._processors: weakref.WeakSet[CudaProcessor] = weakref.WeakSet()

    def segment(self, pixels: RgbImage, thresholds: Thresholds) -> Segmentation:
        """As :meth:`Segmenter.predict`."""
        processor = self._processor()
        images, geometry = processor.preprocess(pixels)
        outputs = self._engine.run_device(images)
        return processor.postprocess_with(*outputs, geometry, thresholds)

    def _processor(self) -> CudaProcessor:
        if not hasattr(self._own, "processor"):
            from eomt_deploy.processing.cuda import CudaProcessor

            engine = self._engine
            self._own.processor = CudaProcessor(engine.spec, engine.gpu, engine.stream)
            self._processors.add(self._own.processor)
        processor: CudaProcessor = self._own.processor
        return processor

    def close(self) -> None:
        """Free the buffers. No other thread may be running."""
        for processor in list(self._processors):
            processor.close()
        self._own = threading.local()


def run_in_parts(engine: Engine, images: npt.NDArray[np.uint8]) -> Outputs:
    """Run all inputs, a bounded number at a time: a long photo makes many windows."""
    parts = [
        engine.run(images[start : start + MAX_INPUTS])
        for start in range(0, len(images), MAX_INPUTS)
    ]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
