"""The kernels: compiled for real GPUs by NVRTC, and run on the host as plain C++."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from host_twin import HostDevice, gpu_device, put, twin
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eomt_deploy.cache import load
from eomt_deploy.cuda import DeviceArray, nvrtc
from eomt_deploy.cuda.scratch import Scratch
from eomt_deploy.errors import DeviceError, MissingDependencyError
from eomt_deploy.processing.cuda.kernels import SIGNATURES, Kernels, load_kernels, source
from eomt_deploy.processing.tables import image_table

NOTHING = 'extern "C" __global__ void nothing() {}'


@pytest.fixture(scope="module", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request, tmp_path_factory):
    """A device and our kernels on it."""
    if request.param == "gpu":
        device = gpu_device()
        with device.active():
            yield device, load_kernels(device)
    else:
        device = HostDevice(tmp_path_factory.mktemp("modules"))
        yield device, Kernels(device, twin())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "eomt-deploy" / "kernels"


@pytest.fixture
def compiler():
    try:
        return nvrtc.nvrtc_facts()
    except MissingDependencyError as error:
        pytest.skip(error.what)


@pytest.mark.parametrize("architecture", [80, 89, 90, 120])
def test_every_kernel_compiles(compiler, architecture, monkeypatch):
    if architecture != 90:  # the optimizer takes most of the time
        monkeypatch.setattr(nvrtc, "OPTIONS", (*nvrtc.OPTIONS, "--Ofast-compile=mid"))
    cubin = nvrtc.compile_source(source(), architecture)
    assert cubin.startswith(b"\x7fELF")
    for name in SIGNATURES:
        assert b".text." + name.encode() in cubin


def test_a_source_error_is_reported_with_the_nvrtc_log(compiler):
    with pytest.raises(DeviceError, match=r'sm_89(.|\n)*kernels.cu\(1\)(.|\n)*"oops" is undefined'):
        nvrtc.compile_source("int x = oops;", 89)


def test_machine_code_is_kept(compiler, cache, monkeypatch):
    first = nvrtc.cached_cubin(NOTHING, (8, 9))
    (kept,) = cache.iterdir()
    assert load(kept) == first
    nvrtc.cached_cubin(NOTHING, (9, 0))
    nvrtc.cached_cubin(NOTHING.replace("nothing", "other"), (8, 9))
    assert len(list(cache.iterdir())) == 3
    content = bytearray(kept.read_bytes())
    content[-100] ^= 1  # still an ELF file, but with other machine code
    kept.write_bytes(content)
    assert nvrtc.cached_cubin(NOTHING, (8, 9)) == first == load(kept)
    monkeypatch.setattr(nvrtc, "compile_source", None)  # calling it would fail
    assert nvrtc.cached_cubin(NOTHING, (8, 9)) == first


def test_a_cache_that_cannot_be_written_is_done_without(compiler, tmp_path, monkeypatch):
    (tmp_path / "eomt-deploy").write_text("a file stands in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert nvrtc.cached_cubin(NOTHING, (8, 9)).startswith(b"\x7fELF")


def test_architectures_fit_their_gpus():
    supported = [75, 80, 86, 89, 90, 120]
    wanted = {(7, 5): 75, (8, 0): 80, (8, 7): 86, (8, 9): 89, (9, 0): 90, (12, 1): 120}
    for capability, architecture in wanted.items():
        assert nvrtc.choose_architecture(capability, supported) == architecture
    for capability in ((7, 0), (13, 0)):
        with pytest.raises(DeviceError, match="cannot compile"):
            nvrtc.choose_architecture(capability, supported)


def test_launches_give_what_the_kernels_take(tmp_path):
    device = HostDevice(tmp_path)
    module = device.load(twin())
    for name, signature in SIGNATURES.items():
        assert device.letters(device.function(module, name)) == signature


def test_half_numbers_are_read_exactly(tmp_path):
    library = tmp_path / "kernels.so"
    library.write_bytes(twin())
    convert = ctypes.CDLL(str(library)).host_from_half
    convert.restype, convert.argtypes = ctypes.c_float, [ctypes.c_ushort]
    bits = np.arange(65536, dtype=np.uint16)
    found = np.array([convert(int(b)) for b in bits], np.float32)
    np.testing.assert_array_equal(found, bits.view(np.float16).astype(np.float32))
    assert (np.signbit(found) == np.signbit(bits.view(np.float16))).all()


sides = st.integers(1, 150)


@settings(deadline=None, max_examples=60)
@given(old=st.tuples(sides, sides), new=st.integers(1, 150), seed=st.integers(0, 99))
def test_one_pass_is_pillows(place, old, new, seed):
    """Check both directions; the tests of CudaProcessor check the order of two passes."""
    image = np.random.default_rng(seed).integers(0, 256, (*old, 3), np.uint8)
    check_passes(place, image, new)


@pytest.mark.parametrize("new", [3, 17, 427, 1500])
def test_one_pass_over_a_real_image_equals_pillow(place, image_path, new):
    check_passes(place, np.asarray(Image.open(image_path).convert("RGB")), new)


def check_passes(place, image, new):
    device, kernels = place
    height, width = image.shape[:2]
    with device.active():
        source = put(device, image)
        for name, size in (("across", (height, new)), ("down", (new, width))):
            old = width if name == "across" else height
            bounds, weights = (put(device, table) for table in image_table(old, new))
            result = DeviceArray.empty(device, (*size, 3), np.uint8)
            threads = size[0] * size[1] * (1 if name == "across" else 3)
            kernels.launch(
                f"resample_{name}", threads,
                source.pointer, *([width] if name == "across" else []), *size,
                bounds.pointer, weights.pointer, weights.shape[1], result.pointer, stream=1,
            )  # fmt: skip
            wanted = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(result.copy_to_host(1), np.asarray(wanted))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("count", [1, 31, 256, 257, 5000])
def test_values_that_are_not_finite_are_found_wherever_they_are(place, dtype, count):
    device, kernels = place
    rng = np.random.default_rng(count)
    with device.active():
        for threads in (1, -(-count // 16), count, count + 100):
            for value in (None, np.nan, -np.nan, np.inf, -np.inf):
                values = rng.normal(size=count, scale=1e4).astype(dtype)
                values[0] = np.finfo(dtype).max
                if value is not None:
                    values[rng.integers(count)] = value
                array = put(device, values)
                found = put(device, np.zeros(1, np.uint64))
                kernels.launch(
                    "find_not_finite", threads,
                    array.pointer, dtype == np.float16, count, threads, found.pointer, stream=1,
                )  # fmt: skip
                assert (found.copy_to_host(1)[0] > 0) == (value is not None)


def test_buffers_grow_and_stay(place):
    device, _ = place
    with device.active():
        stream = device.stream()
        scratch = Scratch(device, stream)
        first = scratch.array("a", (4, 5), np.float32)
        assert scratch.array("a", (3,), np.uint8).pointer == first.pointer
        assert scratch.array("b", (4, 5), np.float32).pointer != first.pointer
        larger = scratch.array("a", (4, 6), np.float32)
        assert scratch.array("a", (4, 5), np.float32).pointer == larger.pointer
        assert scratch.pinned("a", (2, 3), np.int32).shape == (2, 3)
        values = np.arange(7, dtype=np.int16)
        fetched = scratch.fetch("b", scratch.upload("c", values))
        device.synchronize(stream)
        assert (fetched == values).all()
        zeros = scratch.zeros("d", (9,), np.int64)
        assert (zeros.copy_to_host(stream) == 0).all()
        calls = []
        for key in (1, 1, 2, 2):
            scratch.tables("t", key, lambda key=key: [calls.append(key) or values * key])
        assert calls == [1, 2]
        for key in range(40):
            scratch.tables("many", key, lambda key=key: [values * key])
        with pytest.raises(ZeroDivisionError):
            scratch.tables("many", 99, lambda: [1 / 0])
        scratch.tables("many", 100, lambda: [values * 100])
        for key in (25, 39, 100):
            (kept,) = scratch.tables("many", key, lambda: [])
            assert (kept.copy_to_host(stream) == values * key).all()
        (table,) = scratch.tables("t", 2, lambda: [])
        assert (table.copy_to_host(stream) == values * 2).all()
        scratch.free()
        scratch.free()


def test_the_host_catches_what_cuda_would_not(tmp_path):
    device = HostDevice(tmp_path)
    kernels = Kernels(device, twin())
    with pytest.raises(ValueError, match=r"shorter|longer"):
        kernels.launch("label_segments", 1, 0, stream=0)
    pointer = device.alloc(8)
    ctypes.memset(pointer, 0, 9)
    with pytest.raises(AssertionError, match="beyond"):
        device.check_guards()
