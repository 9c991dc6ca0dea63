from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

from eomt_deploy.backends.tensorrt import engine as tensorrt
from eomt_deploy.backends.tensorrt import jit_cache, library
from eomt_deploy.backends.tensorrt.build import build
from eomt_deploy.backends.tensorrt.config import TensorRtConfig
from eomt_deploy.backends.tensorrt.engine import TensorRtEngine, numpy_type
from eomt_deploy.devices import cuda_device_count
from eomt_deploy.errors import ModelFileError, UsageError
from eomt_deploy.sidecar import sidecar_path

# --- the real libraries have all names that we use

SEEDS = {"engine": "ICudaEngine", "self._engine": "ICudaEngine", "context": "IExecutionContext"}
"""Names of known types; all others follow from assignments and the libraries' signatures."""
PARSER_ONLY = {"OnnxParserRefitter"}
"""Only in the full library and in TensorRT-RTX; the lean runtime has no ONNX parser."""


class Uses(ast.NodeVisitor):
    """Attributes of objects of a TensorRT module that a source file uses."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.types: dict[str, object] = {"module": module, "self._module": module}
        self.types |= {name: getattr(module, kind) for name, kind in SEEDS.items()}
        self.used: set[str] = set()
        self.missing: set[str] = set()

    def read(self, source: str) -> None:
        tree = ast.parse(source)
        for _ in range(4):  # until all types that follow from assignments are known
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign):
                    for target in node.targets:
                        self._assign(target, node.value)
                elif isinstance(node, ast.AnnAssign) and node.value is not None:
                    self._assign(node.target, node.value)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (owner := self._type(node.value)) is not None:
                name = f"{getattr(owner, '__name__', owner)}.{node.attr}"
                (self.used if hasattr(owner, node.attr) else self.missing).add(name)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for pair in zip(target.elts, value.elts, strict=False):
                self._assign(*pair)
        elif (kind := self._type(value)) is not None:
            self.types[ast.unparse(target)] = kind

    def _type(self, node: ast.expr) -> object | None:
        """Class of the value of an expression, or the class or module that it names."""
        known = self.types.get(ast.unparse(node))
        if known is not None:
            return known
        if isinstance(node, ast.Attribute):
            owner = self._type(node.value)
            if owner is None or not hasattr(owner, node.attr):
                return None
            found = getattr(owner, node.attr)
            return found if isinstance(found, type) else None
        if isinstance(node, ast.Call):
            return self._result(node.func)
        return None

    def _result(self, function: ast.expr) -> object | None:
        if isinstance(made := self._type(function), type):
            return made
        if not isinstance(function, ast.Attribute) or (owner := self._type(function.value)) is None:
            return None
        signature = getattr(owner, function.attr, None).__doc__ or ""
        names = re.findall(r"-> (?:[\w.]+[.:]+)?(\w+)\n", signature)
        return getattr(self.module, names[0], None) if names else None


def uses(module: ModuleType, *files: ModuleType) -> Uses:
    found = Uses(module)
    for file in files:
        found.read(inspect.getsource(file))
    return found


ONLY_IN_10_0 = {"ICudaEngine.device_memory_size"}
"""Names of TensorRT 10.0 that later versions have replaced."""


def test_tensorrt_rtx_has_every_name_that_we_use():
    module = pytest.importorskip("tensorrt_rtx")
    found = uses(module, tensorrt, jit_cache)
    assert found.missing == ONLY_IN_10_0
    assert found.used >= {
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.create_execution_context",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address",
        "OnnxParserRefitter.refit_from_file",
        "ParserError.desc",
        "Refitter.refit_cuda_engine",
        "IRuntimeConfig.cuda_graph_strategy",
        "DynamicShapesKernelSpecializationStrategy.EAGER",
        "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
        "IRuntimeCache.serialize",
        "DataType.name",
    }


def test_tensorrt_has_every_name_that_we_use():
    module = pytest.importorskip("tensorrt_lean_bindings", reason="needs the lean runtime")
    found = uses(module, tensorrt)
    assert {name.split(".")[-1] for name in found.missing - ONLY_IN_10_0} == PARSER_ONLY
    assert found.used >= {
        "Runtime.deserialize_cuda_engine",
        "Runtime.engine_host_code_allowed",
        "ICudaEngine.get_tensor_dtype",
        "ICudaEngine.device_memory_size_v2",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_input_shape",
        "Refitter.get_missing_weights",
    }


def test_a_name_that_is_not_there_is_found():
    module = pytest.importorskip("tensorrt_rtx")
    found = Uses(module)
    found.read("r = module.Runtime(log)\ne = r.deserialize_cuda_engine(x)\ne.get_binding_shape(0)")
    assert found.missing == {"ICudaEngine.get_binding_shape"}


def test_our_calls_take_what_the_library_takes():
    """pybind11 signatures accept the number of positional arguments that we pass."""
    module = pytest.importorskip("tensorrt_rtx")
    for kind, method, arguments in (
        ("IExecutionContext", "set_tensor_address", ["name: str", "memory: typing.SupportsInt"]),
        ("IExecutionContext", "set_input_shape", ["name: str", "shape: tuple"]),
        ("IExecutionContext", "execute_async_v3", ["stream_handle: typing.SupportsInt"]),
        ("Runtime", "deserialize_cuda_engine", ["serialized_engine: typing_extensions.Buffer"]),
        ("OnnxParserRefitter", "refit_from_file", ["model: str"]),
        ("IRuntimeCache", "deserialize", ["blob: typing_extensions.Buffer"]),
    ):
        text = getattr(getattr(module, kind), method).__doc__
        assert all(argument in text for argument in arguments), text


# --- decisions


def test_types():
    assert numpy_type("FLOAT") == np.float32
    assert numpy_type("HALF") == np.float16
    assert numpy_type("UINT8") == np.uint8
    assert numpy_type("BF16") == ml_dtypes.bfloat16
    with pytest.raises(ModelFileError, match="type INT64"):
        numpy_type("INT64")


def test_one_cache_file_an_engine_version_and_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = jit_cache.cache_file("ab" * 32, "1.7.1.116", "NVIDIA GeForce RTX 4090")
    assert first.name == "tensorrt-rtx-1.7.1.116-NVIDIA-GeForce-RTX-4090-abababababababab.jit"
    others = {
        jit_cache.cache_file("cd" * 32, "1.7.1.116", "NVIDIA GeForce RTX 4090"),
        jit_cache.cache_file("ab" * 32, "1.8.0.1", "NVIDIA GeForce RTX 4090"),
        jit_cache.cache_file("ab" * 32, "1.7.1.116", "NVIDIA RTX 6000"),
    }
    assert len(others | {first}) == 4


def test_failure_holds_the_last_words_of_the_library():
    pytest.importorskip("tensorrt_rtx")
    with library.captured_log("tensorrt-rtx") as lines:
        for number in range(30):
            lines.append(library.Line("error", f"fault {number}"))
            lines.append(library.Line("warning", "slow"))
        lines.append(library.Line("error", "out of memory"))
        why = tensorrt._failure("tensorrt-rtx", "failed to run").why
    assert why.splitlines() == ["fault 28", "fault 29", "out of memory"]


# --- without a GPU: our error, tested in a separate process because TensorRT may crash it


@pytest.fixture(scope="module")
def rtx_engine(tmp_path_factory, exported) -> Path:
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path_factory.mktemp("engine") / "m.engine"
    build(
        TensorRtConfig(
            exported("panoptic"), path, target="tensorrt-rtx", compute_capabilities=("8.9",)
        )
    )
    return path


OPEN = """
import sys
from pathlib import Path
from eomt_deploy.backends.tensorrt.engine import TensorRtEngine
from eomt_deploy.errors import EomtDeployError
try:
    TensorRtEngine(Path(sys.argv[1]), device=None, threads=None)
except EomtDeployError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def open_alone(path: Path) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.skipif(cuda_device_count() > 0, reason="there is a GPU")
def test_no_gpu_is_our_error_never_a_crash(rtx_engine):
    code, text = open_alone(rtx_engine)
    assert code == 3
    assert (
        "This machine has no NVIDIA GPU; the engine was built for compute capability 8.9." in text
    )
    assert "Traceback" not in text


@pytest.mark.skipif(cuda_device_count() > 0, reason="there is a GPU")
def test_tensorrt_engine_without_tensorrt_and_gpu(rtx_engine, tmp_path):
    engine = tmp_path / "t.engine"
    engine.write_bytes(rtx_engine.read_bytes())
    text = sidecar_path(rtx_engine).read_text("utf-8")
    sidecar_path(engine).write_text(text.replace('"tensorrt-rtx"', '"tensorrt"'), "utf-8")
    code, text = open_alone(engine)
    assert (code, "no NVIDIA GPU" in text) == (3, True)


def test_missing_description(tmp_path):
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"plan")
    with pytest.raises(ModelFileError, match=r"m\.engine\.json is missing"):
        TensorRtEngine(engine, device=None, threads=None)


def test_threads_do_not_apply(rtx_engine):
    with pytest.raises(UsageError, match="runs on the GPU"):
        TensorRtEngine(rtx_engine, device=None, threads=2)
