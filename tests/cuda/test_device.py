from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import driver

from eomt_deploy.cuda import VARIABLE, DeviceArray, choose_binding, cuda_python, open_device
from eomt_deploy.cuda.device import Device
from eomt_deploy.devices import cuda_device_count
from eomt_deploy.errors import DeviceError, UsageError

no_gpu = pytest.mark.skipif(cuda_device_count() > 0, reason="there is a GPU")
needs_gpu = pytest.mark.skipif(cuda_device_count() == 0, reason="needs an NVIDIA GPU")


# --- the choice of a binding and of a GPU


def test_binding_is_chosen_by_argument_then_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose_binding() == "cuda-python"
    monkeypatch.setenv(VARIABLE, "pycuda")
    assert (choose_binding(), choose_binding("cuda-python")) == ("pycuda", "cuda-python")
    monkeypatch.setenv(VARIABLE, "torch")
    with pytest.raises(UsageError, match=r"'torch' \(from the environment variable EOMT_DEPLOY"):
        choose_binding()
    with pytest.raises(UsageError, match="'cupy'"):
        open_device(binding="cupy")


@no_gpu
@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_no_gpu_is_an_error_before_any_library_is_touched(binding):
    with pytest.raises(DeviceError, match="no NVIDIA GPU") as error:
        open_device(binding=binding)
    assert error.value.exit_code == 3


def test_importing_the_layer_imports_no_binding():
    code = (
        "import sys, eomt_deploy.cuda\n"
        "assert not {m.split('.')[0] for m in sys.modules} & {'cuda', 'pycuda', 'torch'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the real bindings have all names that we use


def chains(source: str, root: str) -> set[tuple[str, ...]]:
    """``root.a.b`` in Python source -> ("a", "b")."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if names and isinstance(node, ast.Name) and node.id == root:
            found.add(tuple(reversed(names)))
    return found


def check_names(module: object, used: set[tuple[str, ...]]) -> None:
    for names in used:
        thing = module
        for name in names:
            assert hasattr(thing, name), ".".join(names)
            thing = getattr(thing, name)


def test_cuda_python_has_every_name_that_we_use():
    used = chains(inspect.getsource(cuda_python), "driver")
    assert len(used) > 40
    check_names(driver, used | chains("driver.CUdevice_attribute", "driver"))
    attributes = chains(inspect.getsource(cuda_python), "attribute")
    assert len(attributes) == 2
    check_names(driver.CUdevice_attribute, attributes)
    check_names(driver.CUevent_flags, chains(inspect.getsource(cuda_python), "flags"))


def test_cuda_python_functions_take_as_many_arguments_as_we_give():
    checked = 0
    for node in ast.walk(ast.parse(inspect.getsource(cuda_python))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "call":
            name = node.args[0].attr
            signature = getattr(driver, name).__doc__.splitlines()[0]
            inner = signature[signature.index("(") + 1 : signature.rindex(")")]
            wanted = len(inner.split(",")) if inner else 0
            # `*grid` and `*block` stand for three numbers each.
            given = sum(3 if isinstance(a, ast.Starred) else 1 for a in node.args[1:])
            assert given == wanted, signature
            checked += 1
    assert checked > 30


def test_pycuda_has_every_name_that_we_use():
    drv = pytest.importorskip("pycuda.driver", reason="PyCUDA is compiled, and is not here")
    from eomt_deploy.cuda import pycuda

    check_names(drv, chains(inspect.getsource(pycuda), "drv"))


def test_both_bindings_implement_the_complete_interface():
    wanted = {n for n, f in vars(Device).items() if getattr(f, "__isabstractmethod__", False)}
    assert len(wanted) > 25
    folder = Path(cuda_python.__file__).parent
    for name in ("cuda_python", "pycuda"):
        tree = ast.parse((folder / f"{name}.py").read_text("utf-8"))
        classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
        kind = classes["CudaPythonDevice" if name == "cuda_python" else "PyCudaDevice"]
        methods = {n.name: n for n in kind.body if isinstance(n, ast.FunctionDef)}
        assert wanted <= set(methods)
        for method in wanted:
            names = [a.arg for a in methods[method].args.args + methods[method].args.kwonlyargs]
            assert names == list(inspect.signature(getattr(Device, method)).parameters), method


def test_names_end_where_the_driver_ends_them():
    # cuda-python fills the buffer with spaces.
    assert cuda_python._text(b"NVIDIA L4\0" + b" " * 246) == "NVIDIA L4"
    assert cuda_python._text(b"Quadro\0\0\0") == "Quadro"
    assert cuda_python._text(b"no end") == "no end"


# --- on a GPU


@pytest.fixture(scope="module", params=["cuda-python", "pycuda"])
def gpu(request):
    if request.param == "pycuda":
        pytest.importorskip("pycuda.driver", reason="PyCUDA is compiled, and is not here")
    return open_device(binding=request.param)


@pytest.mark.gpu
@needs_gpu
def test_device_says_what_it_is(gpu):
    assert gpu.name
    assert gpu.compute_capability >= (5, 0)
    with gpu.active():
        free, total = gpu.memory()
    assert 0 < free <= total
    assert open_device(binding=gpu.binding) is gpu


@pytest.mark.gpu
@needs_gpu
def test_copies_go_there_and_back(gpu):
    values = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    with gpu.active():
        stream, other = gpu.stream(), gpu.stream()
        source = gpu.pinned(values.shape, np.uint8)
        source[...] = values
        first = DeviceArray.empty(gpu, values.shape, np.uint8)
        second = DeviceArray.empty(gpu, values.shape, np.uint8)
        gpu.to_device(first.pointer, source, stream)
        event = gpu.event()
        gpu.record(event, stream)
        gpu.wait(other, event)
        gpu.copy(second.pointer, first.pointer, first.nbytes, other)
        gpu.fill_zero(second.pointer, 10, other)
        result = second.copy_to_host(other)
        gpu.destroy_event(event)
        gpu.destroy_stream(stream)
        gpu.destroy_stream(other)
    assert (result[:10] == 0).all()
    np.testing.assert_array_equal(result[10:], values[10:])


@pytest.mark.gpu
@needs_gpu
def test_memory_says_where_it_is(gpu):
    if gpu.binding == "pycuda":
        pytest.skip("PyCUDA has no call for it")
    array = DeviceArray.empty(gpu, (16,), np.uint8)
    with gpu.active():
        assert gpu.gpu_of(array.pointer + 7) == gpu.index
        assert gpu.gpu_of(np.zeros(16).ctypes.data) is None


@pytest.mark.gpu
@needs_gpu
def test_events_measure_time(gpu):
    with gpu.active():
        stream = gpu.stream()
        start, end = gpu.event(timing=True), gpu.event(timing=True)
        gpu.record(start, stream)
        gpu.record(end, stream)
        gpu.wait_event(end)
        assert 0 <= gpu.elapsed_ms(start, end) < 1000
        gpu.destroy_stream(stream)


@pytest.mark.gpu
@needs_gpu
def test_context_of_the_caller_comes_back(gpu):
    if gpu.binding != "cuda-python":
        pytest.skip("PyCUDA keeps a stack of its own")
    cuda_python.call(driver.cuCtxSetCurrent, 0)
    with gpu.active():
        assert int(cuda_python.call(driver.cuCtxGetCurrent)) != 0
    assert int(cuda_python.call(driver.cuCtxGetCurrent)) == 0


@pytest.mark.gpu
@needs_gpu
def test_full_memory_is_our_error(gpu):
    with gpu.active(), pytest.raises(DeviceError, match=r"(?i)out.of.memory"):
        gpu.alloc(1 << 45)


@pytest.mark.gpu
@needs_gpu
def test_graph_repeats_what_was_recorded(gpu):
    if gpu.binding == "pycuda":
        with gpu.active(), pytest.raises(DeviceError, match="not support CUDA graphs"):
            gpu.begin_capture(gpu.stream())
        return
    with gpu.active():
        stream = gpu.stream()
        array = DeviceArray.empty(gpu, (16,), np.uint8)
        ones = np.ones(16, np.uint8)
        gpu.begin_capture(stream)
        gpu.fill_zero(array.pointer, 16, stream)
        graph = gpu.end_capture(stream)
        gpu.to_device(array.pointer, ones, stream)
        assert array.copy_to_host(stream).all()  # recording did not run it
        gpu.launch_graph(graph, stream)
        assert not array.copy_to_host(stream).any()
        gpu.destroy_graph(graph)
        gpu.destroy_stream(stream)
