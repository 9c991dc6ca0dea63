"""Pre- and post-processing on the GPU, with the same results as :class:`Processor`.

Only results are copied to the CPU.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import numpy as np

from eomt_deploy.closing import Closing
from eomt_deploy.cuda.array import DeviceArray
from eomt_deploy.cuda.device import Device
from eomt_deploy.cuda.scratch import Scratch
from eomt_deploy.errors import ImageError, UsageError
from eomt_deploy.processing import geometry as geo
from eomt_deploy.processing.compiled import check_geometry
from eomt_deploy.processing.cuda import images, instance, panoptic, semantic
from eomt_deploy.processing.cuda.kernels import Kernels, load_kernels
from eomt_deploy.processing.cuda.workspace import GpuWorkspace
from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.processing.outputs import check_outputs, not_finite
from eomt_deploy.processing.processor import Processor
from eomt_deploy.result import Segmentation
from eomt_deploy.sources import ColorOrder, ImageSource, load_image
from eomt_deploy.spec import ModelSpec, Thresholds

STARTS = {"panoptic": panoptic.start, "instance": instance.start, "semantic": semantic.start}


class CudaArray(Protocol):
    """An array in GPU memory, e.g. from torch, CuPy, Numba or PyCUDA, or a DeviceArray."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


class CudaProcessor(Closing):
    """Images to network inputs, network outputs to a :class:`Segmentation`, on one GPU.

    All work is enqueued on one stream, and all calls share the same buffers. Use one processor per
    thread and stream.

    Args:
        spec: description of the model.
        device: the GPU.
        stream: CUDA stream for all work, e.g. that of an engine. It must outlive the processor
            and the arrays that it returns.
        kernels: kernels for that device; None loads them from the cache or compiles them.
        backend: name of the backend that computes the outputs, for error messages.

    Raises:
        MissingDependencyError: cuda-python or NVRTC is not installed.
        DeviceError: the kernels cannot be compiled for this GPU.

    >>> processor = CudaProcessor(spec, device, stream)  # doctest: +SKIP
    >>> images, geometry = processor.preprocess("street.jpg")  # doctest: +SKIP
    >>> result = processor.postprocess(*engine.run(images), geometry)  # doctest: +SKIP
    """

    def __init__(
        self,
        spec: ModelSpec,
        device: Device,
        stream: int,
        *,
        kernels: Kernels | None = None,
        backend: str | None = None,
    ) -> None:
        self.spec = spec
        self.backend = backend
        self._on_host = Processor(spec)
        self._image: DeviceArray | None = None  # kept alive while the stream reads it
        with device.active():
            self._workspace = GpuWorkspace(
                device, kernels or load_kernels(device), stream, Scratch(device, stream)
            )
            self._uploaded = device.event()  # the last image was copied from its pinned buffer
        weakref.finalize(self, _destroy, device, self._uploaded).atexit = False

    def preprocess(
        self,
        image: ImageSource | CudaArray,
        *,
        color_order: ColorOrder = "rgb",
        into: DeviceArray | None = None,
    ) -> tuple[DeviceArray, Geometry]:
        """Resize one image (bit-identical to Pillow bilinear), and pad it or cut it into windows.

        Args:
            image: anything that :func:`eomt_deploy.load_image` takes, or uint8 [H, W, 3] in GPU
                memory, C-contiguous. Its own stream can overwrite it right after this call.
            color_order: channel order of an array; ``"bgr"`` for images read with OpenCV.
            into: array to write the inputs to, such as the input of an engine; None uses a
                buffer that the next call overwrites.

        Returns:
            uint8 [N, H, W, 3], RGB (N = 1, or the number of windows), ready when the stream has
            finished, and the geometry that :meth:`postprocess` needs.

        Raises:
            ImageError: the image cannot be read, or its aspect ratio is too extreme.
            UsageError: ``into`` has another type or shape.
        """
        with self._workspace.device.active():
            if hasattr(image, "__cuda_array_interface__"):
                return self._preprocess_on_device(image, color_order, into)
            pixels = load_image(image, color_order=color_order)
            plan = self._plan(pixels.shape)  # before the copy: it rejects extreme aspect ratios
            inputs = self._inputs(plan, into)
            self._workspace.device.wait_event(self._uploaded)
            on_device = self._workspace.scratch.upload("image", pixels)
            self._workspace.device.record(self._uploaded, self._workspace.stream)
            images.resample(self._workspace, on_device, plan, False, inputs)
            return inputs, plan

    def postprocess(
        self,
        class_logits: CudaArray,
        mask_logits: CudaArray,
        geometry: Geometry,
        *,
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        image: str | None = None,
    ) -> Segmentation:
        """As :meth:`Processor.postprocess`. The result is complete on return.

        Args:
            class_logits: float16 or float32 [N, Q, C+1], with N as :meth:`preprocess` returned it.
            mask_logits: float16 or float32 [N, Q, h, w].
            geometry: geometry from :meth:`preprocess`.
            score_threshold: all thresholds: see :meth:`Processor.postprocess`.
            image: name of the image, for error messages.

        Raises:
            UsageError: the task does not have a given threshold, or the outputs are of another
                model.
            VerificationError: an output is infinite or NaN.
        """
        thresholds = self._on_host.thresholds(score_threshold, mask_threshold, overlap_threshold)
        return self.postprocess_with(class_logits, mask_logits, geometry, thresholds, image)

    def postprocess_with(
        self,
        class_logits: CudaArray,
        mask_logits: CudaArray,
        geometry: Geometry,
        thresholds: Thresholds,
        image: str | None = None,
    ) -> Segmentation:
        """As :meth:`postprocess`, with all thresholds in one object.

        Thresholds that the task does not have are ignored.
        """
        workspace, spec = self._workspace, self.spec
        with workspace.device.active():
            classes = self._logits(class_logits)
            masks = self._logits(mask_logits)
            check_outputs(spec, classes.shape, masks.shape, geometry)
            check_geometry(geometry)
            start = STARTS[spec.task]
            pending = start(workspace, spec, classes, masks, geometry, thresholds)
            workspace.device.synchronize(workspace.stream)
            if pending.fetched["not_finite"].any():
                raise not_finite(spec, backend=self.backend, image=image)
            return pending.finish()

    def _preprocess_on_device(
        self, image: object, color_order: ColorOrder, into: DeviceArray | None
    ) -> tuple[DeviceArray, Geometry]:
        if color_order not in ("rgb", "bgr"):
            raise UsageError(
                f"color_order must be 'rgb' or 'bgr', got {color_order!r}.",
                fix="Pass 'bgr' for images of OpenCV, else 'rgb'.",
            )
        workspace = self._workspace
        array = DeviceArray.wrap(image, workspace.device, reader=workspace.stream)
        if array.dtype != np.uint8 or len(array.shape) != 3 or array.shape[2] != 3:
            raise ImageError(
                f"An image in GPU memory must be uint8 [H, W, 3], got {array.dtype} "
                f"{list(array.shape)}.",
                fix="Convert the array to uint8 with three channels last.",
            )
        if 0 in array.shape:
            raise ImageError(
                f"The image is empty: its shape is {list(array.shape)}.",
                fix="Check how the image was cropped or decoded.",
            )
        plan = self._plan(array.shape)
        inputs = self._inputs(plan, into)
        array.make_wait(workspace.stream)
        images.resample(workspace, array, plan, color_order == "bgr", inputs)
        array.release(workspace.stream)
        self._image = array
        return inputs, plan

    def _plan(self, shape: tuple[int, ...]) -> Geometry:
        plan = geo.plan((shape[0], shape[1]), self.spec.image_size, self.spec.resize)
        # Copy the tables of the post-processing now: it waits for the stream, and the network does
        # not run yet.
        if self.spec.task == "semantic":
            semantic.tables(self._workspace, self.spec, plan)
        else:
            self._workspace.spans(self.spec.mask_size, plan)
        return plan

    def _inputs(self, plan: Geometry, into: DeviceArray | None) -> DeviceArray:
        """The array that the network's inputs are written to."""
        shape = (plan.num_inputs, *self.spec.image_size, 3)
        if into is None:
            return self._workspace.scratch.array("inputs", shape, np.uint8)
        if into.dtype != np.uint8 or into.shape != shape:
            raise UsageError(
                f"`into` must be uint8 {list(shape)} for this image, got {into.dtype} "
                f"{list(into.shape)}.",
                fix="Allocate an array with this shape, or leave `into` out.",
            )
        into.make_wait(self._workspace.stream)
        return DeviceArray(
            self._workspace.device,
            into.pointer,
            shape,
            np.uint8,
            owner=into,
            stream=self._workspace.stream,
        )

    def _logits(self, array: CudaArray) -> DeviceArray:
        logits = DeviceArray.wrap(array, self._workspace.device, reader=self._workspace.stream)
        if logits.dtype not in (np.float16, np.float32):
            raise UsageError(
                f"Logits must be float16 or float32, got {logits.dtype}.",
                fix="Convert the logits to float32.",
            )
        logits.make_wait(self._workspace.stream)
        return logits

    def close(self) -> None:
        """Free the buffers when the stream has finished; returned arrays stay valid."""
        with self._workspace.device.active():
            self._workspace.scratch.free()
        self._image = None


def _destroy(device: Device, event: int) -> None:
    with device.active():
        device.destroy_event(event)
