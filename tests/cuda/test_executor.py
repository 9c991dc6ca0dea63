"""The executor, on a simulated GPU that runs its streams in adversarial order."""

from __future__ import annotations

import gc
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_gpu import SimulatedGpu, Work

from eomt_deploy.cuda import DeviceArray
from eomt_deploy.cuda.device import LEGACY_STREAM
from eomt_deploy.cuda.executor import Step, Tensor, ThreadExecutor, next_step, split
from eomt_deploy.errors import DeviceError, UsageError

IMAGES = Tensor("images", (3, 5, 3), np.dtype(np.uint8))
OUTPUTS = (
    Tensor("class_logits", (2, 4), np.dtype(np.float16)),
    Tensor("mask_logits", (2, 7), np.dtype(np.float32)),
)


class SumNetwork:
    """Each output is the sum of its image, times the column; it runs in the order of its stream."""

    def __init__(self, gpu: SimulatedGpu, outputs=OUTPUTS, *, minimum: int, largest: int) -> None:
        self.gpu, self.outputs = gpu, outputs
        self.minimum, self.largest = minimum, largest
        self.pointers: dict[str, int] = {}
        self.batch = 0
        self.failing = False
        self.reshapes = 0

    def bind(self, name: str, pointer: int) -> None:
        self.pointers[name] = pointer

    def reshape(self, batch: int) -> None:
        assert self.minimum <= batch <= self.largest
        self.batch = batch
        self.reshapes += 1

    def close(self) -> None:
        pass

    def enqueue(self, stream: int, *, recorded: bool) -> None:
        if self.failing:
            raise DeviceError("TensorRT failed to run.")
        batch, pointers = self.batch, dict(self.pointers)

        def run() -> None:
            images = self.gpu.view(pointers["images"], IMAGES.bytes(batch)).reshape(batch, -1)
            for output in self.outputs:
                memory = self.gpu.view(pointers[output.name], output.bytes(batch))
                memory.view(output.dtype).reshape(batch, *output.shape)[...] = expected(
                    images, output
                ).astype(output.dtype)

        def launched() -> None:
            # A graph is valid for one batch size and one set of buffers only.
            assert (self.batch, self.pointers) == (batch, pointers)

        self.gpu.submit(stream, Work(run, launched=launched))


def expected(images: np.ndarray, output: Tensor) -> np.ndarray:
    sums = images.reshape(len(images), -1).sum(1, dtype=np.float32)
    columns = np.arange(1, output.shape[-1] + 1, dtype=np.float32) / 64
    return np.broadcast_to(sums[:, None, None] * columns, (len(images), *output.shape))


def make(seed: int = 0, minimum: int = 1, largest: int = 3, outputs=OUTPUTS, **options: bool):
    gpu = SimulatedGpu(seed, **options)
    network = SumNetwork(gpu, outputs, minimum=minimum, largest=largest)
    return (
        gpu,
        network,
        ThreadExecutor(gpu, network, IMAGES, outputs, (minimum, largest), graphs=True),
    )


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *IMAGES.shape), np.uint8)


def check(results, images, outputs=OUTPUTS) -> None:
    for result, output in zip(results, outputs, strict=True):
        wanted = expected(images, output).astype(output.dtype).astype(np.float32)
        np.testing.assert_array_equal(result, wanted)


# --- decisions


@given(st.integers(1, 50), st.integers(1, 8), st.integers(0, 8))
def test_parts_cover_the_batch_once_and_fit_the_network(count, minimum, more):
    largest = minimum + more
    parts = split(count, minimum, largest)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    (batch,) = {part.batch for part in parts}  # one CUDA graph is enough
    assert minimum <= batch <= largest
    assert all(0 < part.stop - part.start <= batch for part in parts)
    assert len(parts) == -(-count // largest) or batch < largest
    if batch > minimum:  # little padding
        assert len(parts) * batch - count < len(parts)


@pytest.mark.parametrize(
    ("batch", "shape", "captured", "capture", "step"),
    [
        (4, None, False, True, Step.RESHAPE),
        (4, 4, False, True, Step.CAPTURE),
        (4, 4, True, True, Step.REPLAY),
        (2, 4, True, True, Step.RESHAPE),
        (4, 4, False, False, Step.RUN),
        (2, 4, False, False, Step.RESHAPE),
    ],
)
def test_next_step(batch, shape, captured, capture, step):
    assert next_step(batch, shape, captured=captured, capture=capture) is step


# --- numbers


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(0, 2),
    st.lists(st.tuples(st.integers(1, 10), st.booleans()), min_size=1, max_size=8),
)
def test_any_order_of_batches_and_methods_gives_the_right_numbers(seed, minimum, more, calls):
    gpu, _, executor = make(seed, minimum, minimum + more)
    for number, (count, on_device) in enumerate(calls):
        images = pictures(count, number)
        if not on_device:
            check(executor.run(images), images)
            continue
        with gpu.active():
            array = DeviceArray.empty(gpu, images.shape, np.uint8)
            array.stream = LEGACY_STREAM
            gpu.to_device(array.pointer, images, LEGACY_STREAM)
            results = executor.run_device(array)
            # The caller reuses the memory at once, on the stream in its interface.
            gpu.fill_zero(array.pointer, array.nbytes, LEGACY_STREAM)
            check([r.copy_to_host().astype(np.float32) for r in results], images)
    executor.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_numpy_callers_get_float32_of_their_own(dtype):
    outputs = tuple(Tensor(t.name, t.shape, np.dtype(dtype)) for t in OUTPUTS)
    _, _, executor = make(outputs=outputs)
    first, second = pictures(3, 1), pictures(3, 2)
    results = executor.run(first)
    executor.run(second)
    assert all(r.dtype == np.float32 and r.flags.owndata for r in results)
    check(results, first, outputs)


def test_device_callers_get_the_networks_own_type():
    gpu, _, executor = make()
    outputs = executor.run_device(executor.input(2))
    assert [o.dtype for o in outputs] == [np.float16, np.float32]
    assert [o.shape for o in outputs] == [(2, 2, 4), (2, 2, 7)]
    assert {o.stream for o in outputs} == {executor.stream}
    assert {o.pointer for o in outputs} <= gpu.live


def test_images_written_into_the_input_are_not_copied(monkeypatch):
    gpu, _, executor = make()
    images = pictures(2)
    with gpu.active():
        own = executor.input(2)
        gpu.to_device(own.pointer, images, executor.stream)
        monkeypatch.setattr(gpu, "copy", None)  # a call would fail
        results = executor.run_device(own)
        check([r.copy_to_host().astype(np.float32) for r in results], images)
    with pytest.raises(UsageError, match="must be 1 to 3 for this engine, got 4"):
        executor.input(4)


# --- memory


@given(st.lists(st.integers(1, 8), min_size=1, max_size=4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_nothing_is_allocated_once_the_batches_were_seen(counts, on_device):
    gpu, _, executor = make()

    def run(count: int) -> None:
        images = pictures(count)
        if on_device:
            with gpu.active():
                executor.run_device(source.rows(0, count))
        else:
            executor.run(images)

    source = DeviceArray.empty(gpu, (8, *IMAGES.shape), np.uint8)
    for count in counts:
        run(count)
    before = gpu.allocations, len(gpu.live), len(gpu.events), len(gpu.streams)
    for count in counts * 3:
        run(count)
    assert (gpu.allocations, len(gpu.live), len(gpu.events), len(gpu.streams)) == before
    assert executor.bytes <= sum(len(gpu._memory[p]) for p in gpu.live)
    executor.close()


def test_one_image_takes_buffers_of_one_image():
    _, _, executor = make(largest=3)
    executor.run(pictures(1))
    small = executor.bytes
    assert small == sum(t.bytes(1) for t in (IMAGES, *OUTPUTS))
    executor.run(pictures(3))
    assert executor.bytes == 3 * small


def test_close_frees_all_but_what_somebody_holds():
    gpu, _, executor = make()
    executor.run(pictures(7))
    executor.run(pictures(2))
    outputs = executor.run_device(executor.input(2))
    executor.close()
    executor.close()
    assert (gpu.streams, gpu.events, gpu.graphs) == ({LEGACY_STREAM, outputs[0].stream}, {}, {})
    assert gpu.live == {o.pointer for o in outputs}
    del outputs
    gc.collect(1)
    assert (gpu.live, gpu.streams) == (set(), {LEGACY_STREAM})
    with pytest.raises(UsageError, match="closed"):
        executor.run(pictures(1))
    with pytest.raises(UsageError, match="closed"):
        executor.input(1)


def test_executor_of_a_thread_is_freed_with_it():
    gpu = SimulatedGpu()
    local = threading.local()

    def work() -> None:
        network = SumNetwork(gpu, minimum=1, largest=3)
        local.executor = ThreadExecutor(gpu, network, IMAGES, OUTPUTS, (1, 3), graphs=True)
        local.executor.run(pictures(2))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    gc.collect(1)
    assert (gpu.live, gpu.streams, gpu.events) == (set(), {LEGACY_STREAM}, {})


@pytest.mark.parametrize("thread", [True, False])
def test_outputs_outlive_their_executor(thread):
    gpu, _, executor = make()
    images = pictures(2)
    source = DeviceArray.empty(gpu, images.shape, np.uint8)
    with gpu.active():
        gpu.to_device(source.pointer, images, LEGACY_STREAM)
        gpu.synchronize(LEGACY_STREAM)
    outputs = []

    def work() -> None:
        nonlocal executor
        outputs.extend(executor.run_device(source))
        if thread:
            del executor  # like at the end of a thread
        else:
            executor.close()

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    gc.collect(1)
    check([output.copy_to_host().astype(np.float32) for output in outputs], images)
    with gpu.active():
        outputs[0].make_wait(LEGACY_STREAM)
    outputs[1].__dlpack__(stream=LEGACY_STREAM)
    outputs.clear()
    gc.collect(1)
    assert (gpu.live, gpu.streams) == ({source.pointer}, {LEGACY_STREAM})


# --- CUDA graphs


def test_graph_is_captured_on_the_second_call_and_again_for_another_batch():
    gpu, network, executor = make()
    assert executor.cuda_graph == "on from the second call"
    for count, captured, launches in ((2, 0, 0), (2, 1, 1), (2, 1, 2), (3, 1, 2), (3, 2, 3)):
        executor.run(pictures(count))
        assert (gpu.captured, gpu.launches) == (captured, launches)
    assert executor.cuda_graph == "on"
    assert network.reshapes == 2
    assert len(gpu.graphs) == 1


def test_graph_cannot_be_captured():
    gpu, _, executor = make(graphs=False)
    for number in range(3):
        images = pictures(2, number)
        check(executor.run(images), images)
    assert executor.cuda_graph.startswith("off: CUDA failed in cuStreamBeginCapture")
    assert not gpu.launches


def test_network_cannot_be_captured_but_runs():
    gpu, network, executor = make()
    executor.run(pictures(2))
    enqueue = network.enqueue

    def fails_in_capture(stream: int, *, recorded: bool) -> None:
        if gpu._captures:
            raise DeviceError("This layer copies to the host.")
        enqueue(stream, recorded=recorded)

    network.enqueue = fails_in_capture
    for number in range(3):
        images = pictures(2, number)
        check(executor.run(images), images)
    assert executor.cuda_graph == "off: This layer copies to the host."
    assert not gpu.graphs


@pytest.mark.parametrize("error", [KeyboardInterrupt, TypeError])
def test_interrupted_capture_leaves_no_stream_recording(error):
    gpu, network, executor = make()
    executor.run(pictures(2))
    enqueue = network.enqueue

    def interrupted(stream: int, *, recorded: bool) -> None:
        enqueue(stream, recorded=recorded)
        raise error

    network.enqueue = interrupted
    with pytest.raises(error):
        executor.run(pictures(2))
    assert not gpu._captures
    assert not gpu.graphs
    network.enqueue = enqueue
    check(executor.run(pictures(2, 1)), pictures(2, 1))
    assert executor.cuda_graph == "on"


def test_batches_in_several_parts_are_captured_once():
    gpu, network, executor = make(largest=4)
    for number in range(4):
        images = pictures(11, number)
        check(executor.run(images), images)
    assert (network.reshapes, gpu.captured) == (1, 1)
    executor.run(pictures(6))
    assert network.batch == 3  # two halves without padding


def test_what_failed_has_not_warmed_up():
    gpu, network, executor = make()
    network.failing = True
    for _ in range(2):
        with pytest.raises(DeviceError, match="failed to run"):
            executor.run(pictures(2))
    network.failing = False
    check(executor.run(pictures(2)), pictures(2))
    assert (network.reshapes, gpu.captured) == (3, 0)


def test_memory_that_was_refused_is_offered_again():
    _, network, executor = make()
    bind = network.bind

    def refuse(name: str, pointer: int) -> None:
        raise DeviceError("TensorRT does not take the memory.")

    network.bind = refuse
    with pytest.raises(DeviceError, match="does not take"):
        executor.run(pictures(2))
    network.bind = bind
    check(executor.run(pictures(2)), pictures(2))


def test_failure_reaches_the_caller_and_the_next_call_works():
    _, network, executor = make()
    network.failing = True
    with pytest.raises(DeviceError, match="failed to run"):
        executor.run(pictures(7))
    network.failing = False
    check(executor.run(pictures(7)), pictures(7))
