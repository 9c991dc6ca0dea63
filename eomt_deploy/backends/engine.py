"""Base class of all engines: it checks the inputs, and each backend implements ``_run``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from eomt_deploy.closing import Closing
from eomt_deploy.contract import OUTPUTS
from eomt_deploy.errors import UsageError
from eomt_deploy.precision import computes_in
from eomt_deploy.spec import ModelSpec

if TYPE_CHECKING:
    from eomt_deploy.cuda.array import DeviceArray
    from eomt_deploy.cuda.device import Device

Outputs = tuple[npt.NDArray[Any], npt.NDArray[Any]]
MAX_INPUTS = 8
"""Maximum number of network inputs in one engine call, and of images in one group."""


class DeviceEngine(Protocol):
    """An engine whose inputs and outputs may stay on the GPU."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def backend(self) -> str: ...

    @property
    def gpu(self) -> Device:
        """GPU that the engine runs on."""

    @property
    def stream(self) -> int:
        """CUDA stream of the calling thread."""

    def run_device(self, images: Any) -> tuple[DeviceArray, DeviceArray]:
        """Like :meth:`Engine.run`, but inputs and outputs are in GPU memory, ordered on
        :attr:`stream`."""


class Engine(Closing, ABC):
    """Runs one model on tensors; it does not handle image files, classes or tasks.

    Attributes:
        spec: description of the model, stored in the model file.
        backend: name of the backend.
        device: device that it actually runs on.
        arithmetic: what it computes in, if that may differ from the exported precision.
        path: model file; None for a graph in memory.
        remarks: sentences for the user if the engine could run or start faster, or does not
            compute in the requested precision.
        splits: ``_run`` accepts a batch of any size, even if the model's batch is fixed.
    """

    spec: ModelSpec
    backend: str
    device: str
    arithmetic: str | None = None
    path: Path | None = None
    remarks: tuple[str, ...] = ()
    splits: bool = False

    def __init__(self) -> None:
        self._closed = False

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run a batch of any size; a model with a fixed batch runs as often as needed.

        Args:
            images: uint8 [B, H, W, 3], RGB 0-255, at the model's size.

        Returns:
            ``class_logits`` [B, Q, C+1] and ``mask_logits`` [B, Q, H/4, W/4], float32, owned
            by the caller.

        Raises:
            UsageError: the type or shape is wrong, or the engine is closed.
        """
        if self._closed:
            raise UsageError("This engine is closed.", fix="Open it again with open_engine().")
        expected = (*self.spec.image_size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise UsageError(
                f"The engine takes uint8 [B, {', '.join(map(str, expected))}], "
                f"got {images.dtype} {list(images.shape)}.",
                fix="Convert images with Processor.preprocess.",
            )
        if len(images) == 0:
            raise UsageError(
                "The batch is empty.",
                fix="Pass at least one image.",
            )
        batch = self.spec.batch
        if batch is None or len(images) == batch or self.splits:
            return self._run(np.ascontiguousarray(images))
        parts = [self._run_padded(images[i : i + batch]) for i in range(0, len(images), batch)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _run_padded(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Pad a short last batch with black images and drop their outputs."""
        batch = self.spec.batch or len(images)
        full = np.zeros((batch, *images.shape[1:]), np.uint8)
        full[: len(images)] = images
        class_logits, mask_logits = self._run(full)
        return class_logits[: len(images)], mask_logits[: len(images)]

    def run_named(self, images: npt.NDArray[np.uint8], names: Sequence[str]) -> Sequence[Any]:
        """Run one batch, and return outputs by name: a graph may have more than the contract.

        Args:
            images: as for :meth:`run`, with a batch size that the model accepts.
            names: names of outputs.

        Raises:
            UsageError: the backend returns only the outputs of the contract.
        """
        raise UsageError(
            f"{self.backend} returns only {' and '.join(OUTPUTS)}.",
            fix="Use a backend that runs or builds ONNX models.",
        )

    @property
    def where(self) -> str:
        """Backend, device and arithmetic as text."""
        place = f"{self.backend} on {self.device}"
        if not self.arithmetic:
            return place
        return f"{place}, computing in {computes_in(self.spec.precision, self.arithmetic)}"

    @abstractmethod
    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one contiguous batch of the right shape."""

    def close(self) -> None:
        """Free the memory of the backend. A second call has no effect."""
        self._closed = True

    def __getstate__(self) -> Any:
        """Refuse copying and pickling, e.g. as an argument of a spawned process."""
        raise UsageError(
            "An open model cannot be copied or sent to another process.",
            why="It holds memory and threads of its backend in this process.",
            fix="Open it in each process: Segmenter(path).",
        )


def run_in_parts(engine: Engine, images: npt.NDArray[np.uint8]) -> Outputs:
    """Run all inputs, at most :data:`MAX_INPUTS` per call: a long image has many windows."""
    parts = [
        engine.run(images[start : start + MAX_INPUTS])
        for start in range(0, len(images), MAX_INPUTS)
    ]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
