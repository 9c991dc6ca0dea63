"""Registry of the runtimes that a suite can compare: PyTorch variants and backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from eomt_deploy.backends.engine import Outputs
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.benchmarking.measure.clock import CPU_TIMER, Timer
from eomt_deploy.benchmarking.paper.suite_file import SuiteRow
from eomt_deploy.errors import UsageError
from eomt_deploy.precision import AUTOCAST, UNQUANTIZED
from eomt_deploy.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

Attention = Literal["sdpa", "written"]
Images = npt.NDArray[np.uint8]
PRECISIONS = (*UNQUANTIZED, *AUTOCAST)
"""``fp16`` applies to weights and arithmetic. ``amp-fp16`` keeps FP32 weights and computes under
autocast, as in training code and, as far as we know, in the paper."""

SAMPLINGS = ("grid_sample", "triton")


class Running(ABC):
    """A network that is open in one runtime, for one batch size.

    Attributes:
        timer: timer of :meth:`network`.
        device: name of the device that it actually runs on.
        remark: note for readers of its numbers.
    """

    timer: Timer = CPU_TIMER
    device: str = "cpu"
    remark: str = ""

    @abstractmethod
    def network(self) -> None:
        """Run once on inputs that are on the device; may return before the device is done."""

    def copies(self) -> None:
        """Run once from host memory to host memory; on a CPU the same as :meth:`network`."""
        self.network()

    @abstractmethod
    def run(self, images: Images) -> Outputs:
        """Run other images of the same shape; returns float32 outputs of the tensor contract."""

    def close(self) -> None:  # noqa: B027  optional to override
        """Free resources that are not freed with the object."""


@dataclass(frozen=True)
class Case:
    """A network for a runtime to open.

    Attributes:
        row: row of the suite.
        build: builds the float32 network with an attention kind on a device ("cpu" or "cuda").
        images: input images, uint8 [B, H, W, 3].
        device: ``cpu`` or ``cuda``.
        precision: one of :data:`PRECISIONS`.
        spec: description of the network, as in an exported file.
        folder: folder for files of the runtime.
        threads: number of CPU threads; None leaves the choice to the runtime.
    """

    row: SuiteRow
    build: Callable[[Attention, str], nn.Module]
    images: Images
    device: str
    precision: str
    spec: ModelSpec
    folder: Path
    threads: int | None = None


class OpenRuntime(Protocol):
    def __call__(self, case: Case, **options: Any) -> Running: ...


@dataclass(frozen=True)
class Runtime:
    """One runtime of a suite.

    Attributes:
        target: ``module:function`` that opens a :class:`Case`.
        packages: import names of the required packages.
        devices: supported devices.
        precisions: supported precisions, from :data:`PRECISIONS`.
        summary: short description.
        install: command that installs it.
        options: keyword arguments of the function.
    """

    target: str
    packages: tuple[str, ...]
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    summary: str
    install: str
    options: Mapping[str, Any]

    def open(self, case: Case) -> Running:
        """Open the network in the runtime, which is imported only now."""
        module, name = self.target.split(":")
        function: OpenRuntime = getattr(import_module(module), name)
        return function(case, **self.options)


EXPORT_PACKAGES = ("torch", "onnx", "onnxscript")


def _torch(
    function: str, summary: str, devices: tuple[str, ...] = ("cpu", "cuda"), **options: Any
) -> Runtime:
    target = f"eomt_deploy.benchmarking.paper.torch_runtimes:{function}"
    return Runtime(target, ("torch",), devices, PRECISIONS, summary, "pip install torch", options)


TORCH: Mapping[str, Runtime] = {
    "torch-eager": _torch("eager", "PyTorch, operator by operator"),
    "torch-compile": _torch("compiled", "torch.compile, default mode, as in the paper"),
    "torch-max-autotune": _torch(
        "compiled", "torch.compile, mode max-autotune", mode="max-autotune"
    ),
    "torch-graph": _torch("graph", "PyTorch in one CUDA graph", ("cuda",)),
    "aotinductor": _torch("aotinductor", "torch.export compiled to a .pt2 file"),
    "aotinductor-graph": _torch(
        "aotinductor", ".pt2 file in one CUDA graph", ("cuda",), cuda_graph=True
    ),
}


def runtimes() -> dict[str, Runtime]:
    """All runtimes by name: each backend that takes an ONNX file, and PyTorch's."""
    exported = {
        name: Runtime(
            "eomt_deploy.benchmarking.paper.exported:open_exported",
            (*EXPORT_PACKAGES, backend.package),
            backend.devices,
            tuple(p for p in backend.precisions if p in UNQUANTIZED),
            backend.title,
            f"pip install 'eomt-deploy[{backend.extra},export]'",
            {"backend": name},
        )
        for name, backend in BACKENDS.items()
        if backend.engine
        and backend.automatic != ()
        and (backend.build or ".onnx" in backend.suffixes)
    }
    return {**exported, **TORCH}


def find_runtime(name: str) -> Runtime:
    """The runtime called ``name``.

    Raises:
        UsageError: it is unknown; the message lists all runtimes.
    """
    known = runtimes()
    if name not in known:
        raise UsageError(f"Runtime {name!r} is unknown.", fix=f"Use one of: {', '.join(known)}.")
    return known[name]


def why_unavailable(runtime: Runtime, device: str, precision: str) -> str | None:
    """Reason why a runtime cannot be measured on this machine; None if it may work."""
    missing = [package for package in runtime.packages if find_spec(package) is None]
    if missing:
        return f"{', '.join(missing)} is not installed: {runtime.install}"
    if device not in runtime.devices:
        return f"it does not run on {device}, only on {', '.join(runtime.devices)}"
    if precision not in runtime.precisions:
        return f"it does not run {precision}, only {', '.join(runtime.precisions)}"
    return None
