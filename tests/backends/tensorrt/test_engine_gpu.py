"""Engines running on a GPU: parity, sharing, threads, memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.tensorrt.build import build
from eomt_deploy.backends.tensorrt.config import RTX_CAPABILITIES, TensorRtConfig
from eomt_deploy.backends.tensorrt.engine import TensorRtEngine
from eomt_deploy.backends.tensorrt.library import installed
from eomt_deploy.cuda import DeviceArray, open_device
from eomt_deploy.devices import cuda_device_count
from eomt_deploy.errors import EomtDeployError, ModelFileError, UsageError
from eomt_deploy.sidecar import read_sidecar, sidecar_path


def runnable(target: str) -> str:
    """Why an engine of this target cannot be built and run on this machine, or ''."""
    if cuda_device_count() == 0:
        return "needs an NVIDIA GPU"
    if not installed(target):
        return f"{target} is not installed"
    capability = ".".join(map(str, open_device().compute_capability))
    if target == "tensorrt-rtx" and capability not in RTX_CAPABILITIES:
        return f"TensorRT-RTX does not know compute capability {capability}"
    return ""


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def built(request, tmp_path_factory, exported) -> Path:
    if why := runnable(request.param):
        pytest.skip(why)
    path = tmp_path_factory.mktemp(request.param) / "m.engine"
    build(TensorRtConfig(exported("panoptic"), path, target=request.param, batch=(1, 1, 4)))
    return path


@pytest.fixture
def engine(built) -> Iterator[TensorRtEngine]:
    with TensorRtEngine(built, device=None, threads=None) as opened:
        yield opened


@pytest.fixture(scope="module")
def wanted(exported):
    """Outputs of ONNX Runtime on the CPU."""
    with open_engine(exported("panoptic"), device="cpu") as reference:
        yield reference.run


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


def check(have, want) -> None:
    for a, b in zip(have, want, strict=True):
        assert a.shape == b.shape
        assert np.abs(a.astype(np.float32) - b).max() < 2e-3 * np.abs(b).max()


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 4, 11])
def test_same_numbers_as_onnx_runtime(engine, wanted, count):
    for seed in range(3):  # plain, captured, replayed
        images = pictures(count, seed)
        check(engine.run(images), wanted(images))
    assert engine.cuda_graph.startswith("on")


@pytest.mark.gpu
def test_another_batch_and_back(engine, wanted):
    for seed, count in enumerate((2, 2, 2, 3, 3, 3, 2, 2, 9, 1)):
        images = pictures(count, seed)
        check(engine.run(images), wanted(images))


@pytest.mark.gpu
@pytest.mark.parametrize("count", [3, 9])
def test_device_arrays_in_and_out(engine, wanted, count):
    gpu = engine.gpu
    for seed in range(3):
        images = pictures(count, seed)
        with gpu.active():
            array = DeviceArray.empty(gpu, images.shape, np.uint8)
            array.stream = stream = gpu.stream()
            gpu.to_device(array.pointer, images, stream)
            outputs = engine.run_device(array)
            gpu.fill_zero(array.pointer, array.nbytes, stream)  # the caller may reuse its memory
            check([output.copy_to_host() for output in outputs], wanted(images))
            gpu.synchronize(stream)
            gpu.destroy_stream(stream)


@pytest.mark.gpu
def test_images_written_into_the_engines_own_input(engine, wanted):
    images = pictures(2)
    with engine.gpu.active():
        own = engine.input(2)
        engine.gpu.to_device(own.pointer, images, engine.stream)
        check([output.copy_to_host() for output in engine.run_device(own)], wanted(images))


@pytest.mark.gpu
def test_torch_shares_memory_with_it(engine, wanted):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    images = pictures(3)
    outputs = engine.run_device(torch.from_numpy(images).cuda())
    tensors = [torch.from_dlpack(output) for output in outputs]
    check([tensor.float().cpu().numpy() for tensor in tensors], wanted(images))


@pytest.mark.gpu
def test_side_streams_of_torch_are_waited_for(engine, wanted):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    images = pictures(3)
    with torch.cuda.stream(torch.cuda.Stream()):
        tensor = torch.zeros(images.shape, dtype=torch.uint8, device="cuda")
        torch.cuda._sleep(50_000_000)
        tensor.copy_(torch.from_numpy(images).cuda())
        outputs = engine.run_device(tensor)
    check([output.copy_to_host() for output in outputs], wanted(images))


@pytest.mark.gpu
def test_wrong_device_arrays(engine):
    for shape, dtype in (((1, 64, 64, 3), np.float32), ((1, 3, 64, 64), np.uint8)):
        with pytest.raises(UsageError, match="takes uint8"):
            engine.run_device(DeviceArray.empty(engine.gpu, shape, dtype))
    with pytest.raises(UsageError, match="not an array in GPU memory"):
        engine.run_device(pictures(1))


@pytest.mark.gpu
def test_threads_have_contexts_of_their_own(engine, wanted):
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for number in range(20):
                images = pictures(1 + (seed + number) % 6, seed * 100 + number)
                check(engine.run(images), wanted(images))
        except BaseException as error:  # raised in the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.gpu
def test_memory_stays_flat(engine):
    gpu, images = engine.gpu, pictures(9)
    for _ in range(3):
        engine.run(images)
    with gpu.active():
        free, own = gpu.memory()[0], engine.memory_bytes
        for _ in range(100):
            engine.run(images)
        assert engine.memory_bytes == own
        assert gpu.memory()[0] >= free - (4 << 20)  # other programs may use the GPU, too


@pytest.mark.gpu
def test_close_gives_the_memory_back(built):
    gpu = open_device()

    def once() -> int:
        with TensorRtEngine(built, device=None, threads=None) as opened:
            opened.run(pictures(4))
        with gpu.active():
            return gpu.memory()[0]

    first = once()  # the first use of the library takes memory that stays allocated
    for _ in range(3):
        last = once()
    assert last >= first - (4 << 20)
    opened = TensorRtEngine(built, device=None, threads=None)
    outputs = opened.run_device(opened.input(1))
    opened.close()
    opened.close()
    assert outputs[0].copy_to_host().shape == outputs[0].shape
    images = DeviceArray.empty(gpu, (1, 64, 64, 3), np.uint8)
    with pytest.raises(UsageError, match="closed"):
        opened.run_device(images)


@pytest.mark.gpu
def test_damaged_plans_are_refused_before_the_library_sees_them(built, tmp_path):
    plan = built.read_bytes()
    engine = tmp_path / "m.engine"
    sidecar_path(engine).write_bytes(sidecar_path(built).read_bytes())
    for damaged in (plan[:-100], plan[:1000] + bytes([plan[1000] ^ 1]) + plan[1001:]):
        engine.write_bytes(damaged)
        with pytest.raises(ModelFileError):
            TensorRtEngine(engine, device=None, threads=None)


@pytest.mark.gpu
def test_plan_without_weights_takes_them_from_its_model(tmp_path, exported, wanted):
    target = next((t for t in ("tensorrt", "tensorrt-rtx") if not runnable(t)), None)
    if target is None:
        pytest.skip(runnable("tensorrt"))
    onnx = tmp_path / "m.onnx"
    onnx.write_bytes(exported("panoptic").read_bytes())
    path = tmp_path / "m.engine"
    build(TensorRtConfig(onnx, path, target=target, strip_weights=True))
    assert read_sidecar(path).stripped
    with TensorRtEngine(path, device=None, threads=None) as engine:
        check(engine.run(pictures(2)), wanted(pictures(2)))
    onnx.write_bytes(b"another model")
    with pytest.raises(EomtDeployError, match="is not the model"):
        TensorRtEngine(path, device=None, threads=None)
