from __future__ import annotations

import ctypes
import gc
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from simulated_gpu import SimulatedGpu, Work

from eomt_deploy.cuda import DeviceArray, dlpack
from eomt_deploy.cuda.array import DeviceMemory, OwnedStream
from eomt_deploy.cuda.device import LEGACY_STREAM
from eomt_deploy.errors import UsageError

DTYPES = [np.uint8, np.int32, np.int64, np.float16, np.float32, np.bool_, ml_dtypes.bfloat16]


class OnHost:
    """Host memory that numpy's ``from_dlpack`` can read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __dlpack__(self, **_: object) -> object:
        values = self.values
        return dlpack.capsule(
            values.ctypes.data, values.shape, values.dtype, values, self.__dlpack_device__()
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0


# --- memory


def test_memory_is_freed_exactly_once():
    gpu = SimulatedGpu()
    memory = DeviceMemory(gpu, 10)
    assert gpu.live == {memory.pointer}
    memory.free()
    memory.free()
    del memory
    gc.collect(1)
    assert not gpu.live


def test_memory_lives_as_long_as_any_view_of_it():
    gpu = SimulatedGpu()
    rows = DeviceArray.empty(gpu, (4, 3), np.float32).rows(1, 3)
    gc.collect(1)
    assert len(gpu.live) == 1
    assert (rows.shape, rows.nbytes, len(rows)) == ((2, 3), 24, 2)
    del rows
    gc.collect(1)
    assert not gpu.live


@given(
    arrays.arrays(
        st.sampled_from([np.dtype(d) for d in DTYPES[:-1]]),
        arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    ),
    st.integers(0, 9),
)
def test_copy_to_host_waits_for_whoever_writes(values, seed):
    gpu = SimulatedGpu(seed)
    with gpu.active():
        writer, reader = gpu.stream(), gpu.stream()
        array = DeviceArray.empty(gpu, values.shape, values.dtype)
        array.stream = writer
        gpu.to_device(array.pointer, values, writer)
    for stream in (None, writer, reader, LEGACY_STREAM):
        np.testing.assert_array_equal(array.copy_to_host(stream), values)
    assert not gpu.events


def test_stream_goes_with_the_last_that_holds_it():
    gpu = SimulatedGpu()
    array = DeviceArray.empty(gpu, (4,), np.uint8)
    array.stream = OwnedStream(gpu)
    with gpu.active():
        gpu.fill_zero(array.pointer, 4, array.stream)
    rows = array.rows(1, 3)
    del array
    gc.collect(1)
    assert gpu.streams == {LEGACY_STREAM, rows.stream}
    assert rows.copy_to_host().tolist() == [0, 0]
    del rows
    gc.collect(1)
    assert gpu.streams == {LEGACY_STREAM}


@pytest.mark.parametrize("seed", range(9))
def test_memory_may_be_written_again_once_it_is_released(seed):
    gpu = SimulatedGpu(seed)
    with gpu.active():
        writer, reader = gpu.stream(), gpu.stream()
        source = DeviceArray.empty(gpu, (8,), np.uint8)
        target = DeviceArray.empty(gpu, (8,), np.uint8)
        source.stream = writer
        gpu.to_device(source.pointer, np.ones(8, np.uint8), writer)
        source.make_wait(reader)
        gpu.copy(target.pointer, source.pointer, 8, reader)
        source.release(reader)
        gpu.fill_zero(source.pointer, 8, writer)
    assert target.copy_to_host(reader).all()
    assert not source.copy_to_host().any()
    assert not gpu.events


# --- __cuda_array_interface__


class Foreign:
    """An array of another library."""

    def __init__(self, **facts: object) -> None:
        standard = {"shape": (2, 3), "typestr": "|u1", "data": (4096, False), "version": 3}
        self.__cuda_array_interface__ = standard | facts


def test_interface_round_trip():
    gpu = SimulatedGpu()
    array = DeviceArray.empty(gpu, (2, 3), np.float16)
    array.stream = 77
    again = DeviceArray.wrap(Foreign(**array.__cuda_array_interface__), gpu)
    assert (again.pointer, again.shape, again.dtype) == (array.pointer, (2, 3), np.float16)
    assert again.stream == 77
    assert DeviceArray.wrap(array) is array


def test_wrapping_keeps_the_owner_and_never_frees():
    gpu, foreign = SimulatedGpu(), Foreign()
    array = DeviceArray.wrap(foreign, gpu)
    assert array.owner is foreign
    del array
    gc.collect(1)  # 4096 was never allocated: freeing it would be a KeyError


@pytest.mark.parametrize(
    ("facts", "stream"),
    [
        ({"version": 2}, LEGACY_STREAM),
        ({"version": 3}, None),
        ({"version": 3, "stream": None}, None),
        ({"version": 3, "stream": 2}, 2),
    ],
)
def test_stream_to_wait_for(facts, stream):
    assert DeviceArray.wrap(Foreign(**facts), SimulatedGpu()).stream == stream


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@given(arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3), st.data())
def test_contiguity_is_judged_as_numpy_does(dtype, shape, data):
    values = np.zeros(shape, dtype)
    order = data.draw(st.permutations(range(values.ndim)))
    step = data.draw(st.sampled_from([1, 2]))
    values = values.transpose(order)[..., ::step]
    facts = {"shape": values.shape, "typestr": values.dtype.str, "strides": values.strides}
    if values.flags.c_contiguous:
        DeviceArray.wrap(Foreign(**facts), SimulatedGpu())
    else:
        with pytest.raises(UsageError, match="not C-contiguous"):
            DeviceArray.wrap(Foreign(**facts), SimulatedGpu())


@pytest.mark.parametrize("thing", [np.zeros(3), torch.zeros(3), "text", None])
def test_what_is_not_on_a_gpu_is_refused(thing):
    with pytest.raises(UsageError, match="not an array in GPU memory"):
        DeviceArray.wrap(thing, SimulatedGpu())


def test_arrays_on_another_gpu_are_refused():
    gpu = SimulatedGpu()
    gpu.elsewhere = {4096: 1, 8192: None}  # None: unknown to CUDA
    with pytest.raises(UsageError, match="must be on GPU 0, but it is on GPU 1"):
        DeviceArray.wrap(Foreign(), gpu)
    DeviceArray.wrap(Foreign(data=(8192, False)), gpu)
    other = SimulatedGpu()
    other.index = 1
    with pytest.raises(UsageError, match="but it is on GPU 1"):
        DeviceArray.wrap(DeviceArray.empty(other, (1,), np.uint8), gpu)


@pytest.mark.parametrize("seed", range(9))
def test_library_lets_us_wait_for_the_stream_that_it_does_not_name(seed):
    """As torch does inside `with torch.cuda.stream(side):`."""
    gpu = SimulatedGpu(seed)
    with gpu.active():
        side, reader = gpu.stream(), OwnedStream(gpu)
        target = DeviceArray.empty(gpu, (6,), np.uint8)
        values = DeviceArray.empty(gpu, (2, 3), np.uint8)
        gpu.to_device(values.pointer, np.ones(6, np.uint8), side)

        class Sided(Foreign):
            def __dlpack__(self, *, stream: int) -> object:
                assert type(stream) is int  # torch rejects other types
                DeviceArray(gpu, 0, (), np.uint8, stream=side).make_wait(stream)
                return None

        foreign = Sided(data=(values.pointer, False), version=2)
        array = DeviceArray.wrap(foreign, gpu, reader=reader)
        array.make_wait(reader)
        gpu.copy(target.pointer, array.pointer, 6, reader)
    assert target.copy_to_host(reader).all()


def test_what_cannot_be_shared_is_refused():
    class Refusing(Foreign):
        def __dlpack__(self, *, stream: int) -> object:
            raise BufferError("Can't export tensors that require gradient")

    gpu = SimulatedGpu()
    with pytest.raises(UsageError, match="The Refusing object cannot be shared") as error:
        DeviceArray.wrap(Refusing(), gpu, reader=LEGACY_STREAM)
    assert "require gradient" in error.value.why
    DeviceArray.wrap(Refusing(), gpu)  # without a reader


def test_masked_arrays_are_refused():
    with pytest.raises(UsageError, match="masked"):
        DeviceArray.wrap(Foreign(mask=Foreign()), SimulatedGpu())


# --- DLPack


def test_numpy_and_torch_read_our_capsules():
    for dtype in (np.uint8, np.int64, np.float16, np.float32):
        values = np.arange(24).reshape(2, 3, 4).astype(dtype)
        assert np.array_equal(np.from_dlpack(OnHost(values)), values)
        assert np.array_equal(torch.from_dlpack(OnHost(values)).numpy(), values)
    halves = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    tensor = torch.from_dlpack(OnHost(halves))
    assert tensor.dtype == torch.bfloat16
    assert tensor.float().tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("consume", [True, False])
def test_capsule_keeps_its_owner_until_the_reader_is_done(consume):
    gc.collect(1)
    before = len(dlpack._lent)
    host = OnHost(np.ones((2, 2), np.float32))
    held = torch.from_dlpack(host) if consume else host.__dlpack__()
    del host
    gc.collect(1)
    assert len(dlpack._lent) == before + 1
    if consume:
        assert held.sum() == 4
    del held
    gc.collect(1)
    assert len(dlpack._lent) == before


def test_capsule_says_what_the_array_is():
    gpu = SimulatedGpu()
    array = DeviceArray.empty(gpu, (2, 3, 5), ml_dtypes.bfloat16)
    capsule = array.__dlpack__(stream=-1)
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    managed = dlpack.ManagedTensor.from_address(get(capsule, b"dltensor"))
    tensor = managed.tensor
    assert tensor.data == array.pointer
    assert (tensor.device.kind, tensor.device.index) == (2, 0) == array.__dlpack_device__()
    assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (4, 16, 1)
    assert tensor.shape[: tensor.ndim] == [2, 3, 5]
    assert tensor.strides[: tensor.ndim] == [15, 5, 1]
    assert tensor.byte_offset == 0
    # The capsule is the last reference and frees the memory.
    del array, tensor, managed
    gc.collect(1)
    assert len(gpu.live) == 1
    del capsule
    gc.collect(1)
    assert not gpu.live


@pytest.mark.parametrize(("requested", "waits"), [(None, LEGACY_STREAM), (1, 1), (-1, None)])
def test_reader_of_a_capsule_waits_for_the_writer(requested, waits):
    gpu = SimulatedGpu()
    array = DeviceArray.empty(gpu, (1,), np.uint8)
    done = []
    with gpu.active():
        array.stream = gpu.stream()
        gpu.submit(array.stream, Work(lambda: done.append("written")))
        array.__dlpack__(stream=requested)
        gpu.submit(LEGACY_STREAM, Work(lambda: done.append("read")))
        gpu.synchronize(LEGACY_STREAM)
    assert done == (["written", "read"] if waits else done)
    assert not gpu.events


def test_prototypes_of_the_process_stay_as_they_are():
    code = (
        "import ctypes\n"
        "new = ctypes.pythonapi.PyCapsule_New\n"
        "before = new.argtypes, new.restype\n"
        "import eomt_deploy.cuda.dlpack\n"
        "assert (new.argtypes, new.restype) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dlpack_refuses_what_it_does_not_do():
    array = DeviceArray.empty(SimulatedGpu(), (1,), np.uint8)
    with pytest.raises(BufferError):
        array.__dlpack__(copy=True)
    with pytest.raises(BufferError):
        array.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="no type"):
        dlpack.data_type(np.dtype("U3"))
    with pytest.raises(BufferError, match="no type"):
        dlpack.data_type(np.dtype(">f4"))


def test_a_consumer_may_outlive_this_package(tmp_path):
    """At exit Python deletes modules in any order; releasing memory must still work then."""
    (tmp_path / "keeper.py").write_text(
        "import numpy as np, torch\n"
        "from eomt_deploy.cuda import dlpack\n"
        "class Lender:\n"
        "    values = np.arange(4)\n"
        "    def __dlpack__(self, **_):\n"
        "        v = self.values\n"
        "        return dlpack.capsule(v.ctypes.data, v.shape, v.dtype, v, (dlpack.CPU, 0))\n"
        "    def __dlpack_device__(self):\n"
        "        return dlpack.CPU, 0\n"
        "kept = [torch.from_dlpack(Lender()) for _ in range(3)]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from eomt_deploy.cuda import dlpack; import keeper"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
