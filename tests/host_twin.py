"""The CUDA kernels without a GPU: the same source as C++, with the same device interface."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from simulated_gpu import SimulatedGpu, Work

from eomt_deploy.cuda import DeviceArray, open_device
from eomt_deploy.cuda.device import Array, Device
from eomt_deploy.errors import EomtDeployError
from eomt_deploy.processing.cuda.kernels import source

GUARD = 64
"""Bytes before and after every allocation that no kernel may touch. They keep the alignment."""
POISON = 0xCD
POISONED = bytes([POISON]) * (2 * GUARD)


@cache
def twin() -> bytes:
    """The kernels as a shared library; the test is skipped without a C++ compiler."""
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        pytest.skip("there is no C++ compiler here")
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra"]
    flags += ["-Werror", "-Wno-unknown-pragmas"]
    if platform.machine() == "x86_64":
        flags.append("-march=native")  # with the FMA instruction; its function is slow
    twin_source = str(Path(__file__).with_name("host_twin.cpp"))
    folder = Path(os.environ["EOMT_DEPLOY_TEST_COMMON"])  # all workers share it
    library = folder / "twin.so"
    with FileLock(folder / "twin.lock"):
        if not library.exists():
            (folder / "kernels.cu").write_text(source())
            command = [compiler, *flags, f"-I{folder}", twin_source, "-o", str(library)]
            subprocess.run(command, check=True)
    return library.read_bytes()


def gpu_device() -> Device:
    """The first GPU; the test is skipped without one."""
    try:
        return open_device()
    except EomtDeployError as error:
        pytest.skip(error.what)


def put(device: Device, values: Array, stream: int | None = None) -> DeviceArray:
    """A copy of ``values`` in the memory of ``device``."""
    array = DeviceArray.empty(device, values.shape, values.dtype)
    with device.active():
        device.to_device(array.pointer, np.ascontiguousarray(values), 1)
        device.synchronize(1)
    array.stream = stream
    return array


class HostDevice(SimulatedGpu):
    """A simulated GPU that runs the kernels as C++; if ``lazy``, work starts as late as possible.

    A kernel that writes outside its buffers, or is launched with arguments of the wrong types,
    raises an AssertionError.
    """

    def __init__(self, folder: Path, seed: int = 0, *, lazy: bool = False) -> None:
        super().__init__(seed)
        self._lazy = lazy
        self._folder = folder
        self._guarded: dict[int, tuple[memoryview, memoryview]] = {}
        self._kernels: list[tuple[ctypes.CDLL, str]] = []
        self._libraries: list[ctypes.CDLL] = []
        self.bytes_to_host = 0

    def submit(self, stream: int, work: Work) -> None:
        if not self._lazy:
            super().submit(stream, work)
            return
        assert self.depth, "the context is not current"
        self._queues[stream].append(work)

    def _advance(self) -> bool:
        if not self._lazy:
            return super()._advance()
        ready = [s for s, queue in self._queues.items() if queue and queue[0].ready()]
        if ready:  # only the oldest stream, until it must wait for another one
            self._run_next(min(ready))
        return bool(ready)

    def alloc(self, size: int) -> int:
        memory = np.full(size + 3 * GUARD, POISON, np.uint8)
        pointer = -(-(memory.ctypes.data + GUARD) // GUARD) * GUARD
        start = pointer - memory.ctypes.data
        self.allocations += 1
        self._guarded[pointer] = memory.data[:start], memory.data[start + size :]
        self._memory[pointer] = (ctypes.c_ubyte * size).from_address(pointer)
        return pointer

    def free(self, pointer: int) -> None:
        super().free(pointer)  # runs all work first
        self.check_guards()
        self._freed += self._guarded.pop(pointer)  # the memory itself lives as long as the device

    def check_guards(self) -> None:
        for before, after in list(self._guarded.values()):
            assert before == POISONED[: len(before)], "a kernel wrote before its buffer"
            assert after == POISONED[: len(after)], "a kernel wrote beyond its buffer"

    def to_host(self, target: Array, pointer: int, stream: int) -> None:
        self.bytes_to_host += target.nbytes
        super().to_host(target, pointer, stream)

    def synchronize(self, stream: int) -> None:
        super().synchronize(stream)
        self.check_guards()

    def load(self, binary: bytes) -> int:
        """Load ``binary``, the content of a shared library."""
        path = self._folder / f"module{len(self._libraries)}.so"
        path.write_bytes(binary)
        self._libraries.append(ctypes.CDLL(str(path)))
        return len(self._libraries) - 1

    def set_order(self, order: int) -> None:
        """Run the threads of a block in another order: thread ``(n * order) % 256`` is the n-th."""
        for library in self._libraries:
            library.set_order(order)

    def function(self, module: int, name: str) -> int:
        self._kernels.append((self._libraries[module], name))
        return len(self._kernels) - 1

    def letters(self, function: int) -> str:
        """The types of a kernel's parameters, as ``kernels.SIGNATURES`` writes them."""
        library, name = self._kernels[function]
        get = getattr(library, f"letters_{name}")
        get.restype = ctypes.c_char_p
        return get().decode()

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[np.generic],
        stream: int,
    ) -> None:
        assert min(grid) >= 1
        assert grid[1] <= 65535, "CUDA takes no more block rows"
        assert block[0] % 32 == 0, "counting needs whole warps"
        assert (grid[2], *block[1:]) == (1, 1, 1)
        kinds = {np.uint64: "P", np.int32: "i", np.int64: "q", np.float32: "f", np.float64: "d"}
        assert "".join(kinds[type(a)] for a in arguments) == self.letters(function)
        values = [np.array(argument) for argument in arguments]
        pointers = np.array([value.ctypes.data for value in values], np.uint64)
        sizes = np.array([grid[0], grid[1], block[0]], np.int32)
        library, name = self._kernels[function]
        run = getattr(library, f"run_{name}")

        def work() -> None:
            assert len(values) == len(pointers)  # keep both alive until now
            run(ctypes.c_void_p(sizes.ctypes.data), ctypes.c_void_p(pointers.ctypes.data))

        self.submit(stream, Work(work))
