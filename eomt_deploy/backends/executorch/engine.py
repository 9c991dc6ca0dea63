"""ExecuTorch programs (``.pte``) on the CPU of this machine, in ExecuTorch's Python runtime."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.backends.engine import Engine, Outputs
from eomt_deploy.backends.executorch.config import TARGET
from eomt_deploy.backends.executorch.partitioners import DELEGATES
from eomt_deploy.certificate import UNCHECKED
from eomt_deploy.contract import INPUT, OUTPUTS, check_contract
from eomt_deploy.devices import package_version
from eomt_deploy.errors import (
    DeviceError,
    MissingDependencyError,
    ModelFileError,
    UsageError,
    first_line,
)
from eomt_deploy.sidecar import Sidecar, check_plan, read_sidecar

FORWARD = "forward"
REBUILD = "Build it again on this machine: eomt-deploy build model.onnx -o model.pte"
BYTE, FLOAT = 0, 6
"""ExecuTorch's numbers of the types uint8 and float32."""
MAX_THREADS = 256
_opening = threading.Lock()
_open: weakref.WeakSet[ExecuTorchEngine] = weakref.WeakSet()
"""The programs that are open in this process."""


def read_description(path: Path) -> Sidecar:
    """The description of a program.

    Raises:
        ModelFileError: it is missing, invalid, or of an engine of another library.
    """
    facts = read_sidecar(path)
    if facts.target != TARGET or facts.settings.get("partitioner") not in DELEGATES:
        raise ModelFileError(
            f"The description of {path} is not that of an ExecuTorch program.", fix=REBUILD
        )
    return facts


def installed_version() -> str:
    """Version of the installed ExecuTorch.

    Raises:
        MissingDependencyError: it is not installed.
    """
    version = package_version("executorch")
    if version is None:
        raise MissingDependencyError(
            "ExecuTorch is not installed.", fix="pip install 'eomt-deploy[executorch]'"
        )
    return version


def check_runtime(facts: Sidecar, installed: str, backends: Sequence[str], path: Path) -> None:
    """Check that the runtime can run a program, before it reads it.

    Args:
        facts: the description.
        installed: version of the installed runtime.
        backends: names of the backends of the runtime.
        path: the program.

    Raises:
        ModelFileError: a newer ExecuTorch wrote it.
        DeviceError: the runtime does not have the backend of its delegate.
    """
    if _version(facts.library_version) > _version(installed):
        raise ModelFileError(
            f"{path} was built with ExecuTorch {facts.library_version}, but {installed} is "
            "installed.",
            why="A runtime reads programs of older versions, not of newer ones.",
            fix=f"pip install -U executorch=={facts.library_version}; or build it again.",
        )
    delegate = DELEGATES[facts.settings["partitioner"]]
    if delegate.backend not in backends or delegate.backend == "QnnBackend":
        raise DeviceError(
            f"{path} was built for {delegate.title}, which does not run on this machine.",
            why=f"ExecuTorch's Python package runs {', '.join(_runnable(backends)) or 'nothing'}.",
            fix="Run it on its device, or build one for this CPU with --partitioner xnnpack.",
        )


def _runnable(backends: Sequence[str]) -> list[str]:
    return [d.title for d in DELEGATES.values() if d.backend in backends and d.title != "QNN"]


def _version(text: str) -> tuple[int, int]:
    """(major, minor); the digits that the description's rules require."""
    major, minor = text.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdecimal()) or 0)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log of ExecuTorch and torchao: they report optional parts that are missing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def without_stderr() -> Iterator[None]:
    """Without what native code prints: the thread pool reports files that only ARM systems have."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        with redirect_stderr(io.StringIO()):  # another one than 2, e.g. in a notebook
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def set_threads(portable_lib: Any, threads: int) -> None:
    """Set the size of the thread pool, unless it has this size.

    Raises:
        UsageError: the number is too large, or another program is open. A new pool replaces the old
            one, to which open programs keep a pointer: they would crash.
    """
    if threads > MAX_THREADS:
        raise UsageError(
            f"ExecuTorch takes 1 to {MAX_THREADS} threads here, got {threads}.",
            fix=f"Pass the number of cores, {os.cpu_count()}, or fewer.",
        )
    now = portable_lib._threadpool_get_thread_count()
    if threads == now:
        return
    if _open:
        raise UsageError(
            f"ExecuTorch cannot use {threads} threads: a program with {now} threads is open.",
            why="All ExecuTorch programs of a process share one pool of threads.",
            fix="Close the other program first, or pass the same number for all of them.",
        )
    portable_lib._unsafe_reset_threadpool(threads)  # the only function for it


class ExecuTorchEngine(Engine):
    """Runs a ``.pte`` file; arguments as in :func:`eomt_deploy.backends.open_engine`.

    ``threads`` sets the size of ExecuTorch's thread pool, which all programs of a process share; it
    can only change while none is open. Threads may share an engine; their calls run one after the
    other.
    """

    backend = "executorch"
    device = "cpu"

    def __init__(self, path: Path, *, device: str | None, threads: int | None) -> None:
        super().__init__()
        self.path: Path = path
        facts = read_description(path)
        check_plan(path, facts, full=True)  # ExecuTorch crashes on some damaged files
        self.spec = facts.spec
        if facts.certificate is None:
            self.remarks = (UNCHECKED,)
        installed = installed_version()
        try:
            with quiet():
                import torch
                from executorch.extension.pybindings import portable_lib
                from executorch.runtime import Runtime
        except ImportError as error:
            raise MissingDependencyError(
                "ExecuTorch's runtime cannot be imported.",
                why=first_line(error),
                fix="pip install 'eomt-deploy[executorch]'",
            ) from error
        self._torch: Any = torch
        runtime = Runtime.get()
        check_runtime(facts, installed, runtime.backend_registry.registered_backend_names, path)
        try:
            with _opening:
                with without_stderr():
                    portable_lib._threadpool_get_thread_count()  # creates the thread pool
                    if threads is not None:
                        set_threads(portable_lib, threads)
                self._program: Any = runtime.load_program(path)
                tensors = _tensors(self._program.metadata(FORWARD))
                check_contract(self.spec, tensors, path)
                self._method: Any = self._program.load_method(FORWARD)
                _open.add(self)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ModelFileError(
                f"ExecuTorch {installed} cannot open {path}.",
                why=first_line(error),
                fix=REBUILD,
            ) from error
        self._lock = threading.Lock()  # a program has one set of buffers

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        with self._lock:
            try:
                outputs = self._method.execute([self._torch.from_numpy(images)])
            except RuntimeError as error:
                raise DeviceError(
                    f"ExecuTorch cannot run {self.path}.",
                    why=first_line(error),
                    fix="Check the free memory, or use --backend onnxruntime with the .onnx file.",
                ) from error
            # ExecuTorch has copied them out of its buffers.
            class_logits, mask_logits = (output.numpy() for output in outputs)
        return class_logits, mask_logits

    def close(self) -> None:
        super().close()
        self._method = self._program = None
        _open.discard(self)


def _tensors(meta: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Types and shapes of the tensors of a program, which have no names, in their order.

    Raises:
        ValueError: their number or types are not those of the contract.
    """
    if (meta.num_inputs(), meta.num_outputs()) != (1, len(OUTPUTS)):
        raise ValueError(f"it has {meta.num_inputs()} inputs and {meta.num_outputs()} outputs")
    found = [meta.input_tensor_meta(0), *map(meta.output_tensor_meta, range(len(OUTPUTS)))]
    types = [info.dtype() for info in found]
    if types != [BYTE, FLOAT, FLOAT]:
        raise ValueError(f"its tensors have the types {types}, not {[BYTE, FLOAT, FLOAT]}")
    names = (INPUT, *OUTPUTS)
    return {name: ("", tuple(info.sizes())) for name, info in zip(names, found, strict=True)}
