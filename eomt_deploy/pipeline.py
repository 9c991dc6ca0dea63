"""The steps of a prediction: prepare, run and finish, each on a group of images.

:class:`HostPipeline` keeps arrays in host memory, :class:`DevicePipeline` keeps them on the GPU. A
:class:`~eomt_deploy.segmenter.Segmenter` selects one when it opens an engine.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from eomt_deploy.addresses import without_secrets
from eomt_deploy.backends.engine import DeviceEngine, Engine, run_in_parts
from eomt_deploy.errors import ImageError
from eomt_deploy.processing import Geometry, Processor
from eomt_deploy.processing.confidence import winning_share
from eomt_deploy.result import Segmentation
from eomt_deploy.sources import ColorOrder, ImageSource, RgbImage, load_image
from eomt_deploy.spec import Thresholds

if TYPE_CHECKING:
    from eomt_deploy.processing.cuda.processor import CudaProcessor

Logits = npt.NDArray[Any]


class LoadedImage(NamedTuple):
    """Pixels of an image and its name in error messages (None if it has no name)."""

    pixels: RgbImage
    name: str | None


@dataclass(frozen=True)
class Request:
    """The settings of a call that apply to all its images.

    Attributes:
        color_order: channel order of the images.
        thresholds: all thresholds.
        max_pixels: maximum number of pixels of a file.
        confidence: whether to compute the confidence.
        arrays_only: use ``color_order`` only for arrays; other images define their own.
    """

    color_order: ColorOrder
    thresholds: Thresholds
    max_pixels: int | None
    confidence: bool = False
    arrays_only: bool = False

    def load(self, image: ImageSource) -> LoadedImage:
        """Read one image."""
        array = isinstance(image, np.ndarray) or hasattr(image, "__dlpack__")
        order = self.color_order if array or not self.arrays_only else "rgb"
        pixels = load_image(image, color_order=order, max_pixels=self.max_pixels)
        return LoadedImage(pixels, name_of(image))


class Pipeline(Protocol):
    """The three steps, in this order; each can run in its own thread."""

    def prepare(self, group: Sequence[ImageSource]) -> Any:
        """Read the images and do everything that does not need the network."""

    def run(self, ready: Any) -> Any:
        """Run the network."""

    def finish(self, done: Any) -> list[Segmentation]:
        """Compute the results from the outputs of the network."""


class NetworkInput(NamedTuple):
    """One image, its network inputs uint8 [N, H, W, 3], and their position in the image."""

    image: LoadedImage
    images: npt.NDArray[np.uint8]
    geometry: Geometry


class _Output(NamedTuple):
    """One image, its class logits [N, Q, C+1] and mask logits [N, Q, h, w]."""

    image: LoadedImage
    class_logits: Logits
    mask_logits: Logits
    geometry: Geometry


@dataclass(frozen=True)
class HostPipeline:
    """Resizing and post-processing on the CPU, with any engine."""

    engine: Engine
    processor: Processor
    request: Request

    def prepare(self, group: Sequence[ImageSource]) -> list[NetworkInput]:
        """Read and resize."""
        images = map(self.request.load, group)
        return [NetworkInput(image, *self.processor.preprocess(image.pixels)) for image in images]

    def run(self, ready: list[NetworkInput]) -> list[_Output]:
        """Run the network on all images of the group together."""
        classes, masks = run_in_parts(self.engine, np.concatenate([item.images for item in ready]))
        ends = np.cumsum([len(item.images) for item in ready])[:-1]
        parts = zip(ready, np.split(classes, ends), np.split(masks, ends), strict=True)
        return [
            _Output(item.image, own_classes, own_masks, item.geometry)
            for item, own_classes, own_masks in parts
        ]

    def finish(self, done: list[_Output]) -> list[Segmentation]:
        """Convert logits to results."""
        return [replace(self._result(output), image=output.image.pixels) for output in done]

    def _result(self, output: _Output) -> Segmentation:
        result = self.processor.postprocess_with(
            output.class_logits,
            output.mask_logits,
            output.geometry,
            self.request.thresholds,
            output.image.name,
        )
        if self.request.confidence:
            result = with_confidence(
                result, output.class_logits, output.mask_logits, output.geometry
            )
        return result


@dataclass(frozen=True)
class DevicePipeline:
    """All steps on the GPU except reading: an image is uploaded, and only its result returns."""

    device: OnDevice
    request: Request

    def prepare(self, group: Sequence[ImageSource]) -> list[LoadedImage | OnGpu]:
        """Read the images, except those that are on the GPU."""
        return [
            OnGpu(image) if is_image_on_gpu(image) else self.request.load(image) for image in group
        ]

    def run(self, ready: list[LoadedImage | OnGpu]) -> list[Segmentation]:
        """Resize, run the network and post-process, image by image."""
        return [self._segment(image) for image in ready]

    def _segment(self, image: LoadedImage | OnGpu) -> Segmentation:
        request = self.request
        if isinstance(image, OnGpu):
            return self.device.segment(image.array, None, request, color_order=request.color_order)
        result = self.device.segment(image.pixels, image.name, request)
        return replace(result, image=image.pixels)

    def finish(self, done: list[Segmentation]) -> list[Segmentation]:
        """Return the results unchanged."""
        return done


class OnGpu(NamedTuple):
    """An image uint8 [H, W, 3] in GPU memory."""

    array: Any


def is_image_on_gpu(image: Any) -> bool:
    """Whether an image is C-contiguous uint8 [H, W, 3] in GPU memory."""
    facts = getattr(image, "__cuda_array_interface__", None)
    if facts is None:
        return False
    shape, strides = facts["shape"], facts.get("strides")
    contiguous = strides is None or tuple(strides) == (3 * shape[1], 3, 1)
    return len(shape) == 3 and shape[2] == 3 and facts["typestr"] == "|u1" and contiguous


class OnDevice:
    """The processors of a GPU engine: one for each thread, on the engine's stream of the thread."""

    def __init__(self, engine: DeviceEngine) -> None:
        self._engine = engine
        self._own = threading.local()
        self._processors: weakref.WeakSet[CudaProcessor] = weakref.WeakSet()

    def segment(
        self,
        pixels: Any,
        name: str | None,
        request: Request,
        *,
        color_order: ColorOrder = "rgb",
    ) -> Segmentation:
        """Segment one image uint8 [H, W, 3], which may be in GPU memory."""
        processor = self._processor()
        images, geometry = processor.preprocess(pixels, color_order=color_order)
        outputs = self._engine.run_device(images)
        result = processor.postprocess_with(*outputs, geometry, request.thresholds, name)
        if request.confidence:
            class_logits, mask_logits = (output.copy_to_host() for output in outputs)
            result = with_confidence(result, class_logits, mask_logits, geometry)
        return result

    def _processor(self) -> CudaProcessor:
        if not hasattr(self._own, "processor"):
            from eomt_deploy.processing.cuda.processor import CudaProcessor

            engine = self._engine
            self._own.processor = CudaProcessor(
                engine.spec, engine.gpu, engine.stream, backend=engine.backend
            )
            self._processors.add(self._own.processor)
        processor: CudaProcessor = self._own.processor
        return processor

    def close(self) -> None:
        """Free the buffers. No other thread may be running."""
        for processor in list(self._processors):
            processor.close()
        self._own = threading.local()


def with_confidence(
    result: Segmentation, class_logits: Logits, mask_logits: Logits, geometry: Geometry
) -> Segmentation:
    """A semantic result with its confidence map."""
    assert result.labels is not None
    share = winning_share(
        np.asarray(class_logits, np.float32), mask_logits, result.labels, geometry
    )
    return replace(result, confidence=share)


def name_of(image: ImageSource) -> str | None:
    """The file name of an image; None if it is not known."""
    if isinstance(image, str | Path):
        return without_secrets(str(image))
    found = getattr(image, "filename", None)  # of Pillow
    return str(found) if found else None


def keep_errors(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a step return an ``ImageError`` instead of raising it, and pass on an earlier one."""

    def run(value: Any) -> Any:
        try:
            return value if isinstance(value, ImageError) else step(value)
        except ImageError as error:
            return error

    return run
