"""A cache of traced graphs, since PyTorch needs seconds to trace even the smallest network.

`python -m traces FOLDER export …` is the command line with the same cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from filelock import FileLock
from torch import Tensor, nn

import eomt_deploy
from eomt_deploy.network.eomt import EoMT

Export = Callable[..., Any]
PACKAGE = Path(eomt_deploy.__file__).parent
VARIABLE = "EOMT_DEPLOY_TEST_TRACES"
"""Environment variable with the folder of the cache, for processes that a test starts."""


@dataclass(frozen=True)
class Program:
    """The part of `torch.onnx.ONNXProgram` that is used."""

    model: ir.Model

    def save(self, path: Path, *, external_data: bool = False) -> None:
        ir.save(self.model, path, external_data=f"{path.name}.data" if external_data else None)


class Traces:
    """Replacement of `torch.onnx.export` that traces networks of the same structure only once.

    A graph of EoMT refers to weights by name, so it is used with other weights of the same shapes.
    Graphs of other networks are used only with the same weights.

    Args:
        folder: folder of the cache, which processes share.
        export: the original function.
    """

    def __init__(self, folder: Path, export: Export) -> None:
        self._folder = folder
        self._export = export
        self._known: dict[str, ir.Model] = {}

    def __call__(self, model: nn.Module, images: tuple[Tensor, ...], **options: Any) -> Any:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        # PyTorch's optimizer computes new constants from the weights.
        replaced = tensors if type(model) is EoMT and not options.get("optimize") else {}
        key = structure(model, tensors, images, options, known_weights=not replaced)
        keep_operators()
        if key is None:
            return self._export(model, images, **options)
        if key not in self._known:
            self._known[key] = self._trace(key, replaced, model, images, **options)
        graph = self._known[key].clone()
        for name, value in graph.graph.initializers.items():
            if name in replaced:
                value.const_value = later(name, replaced[name], value)
        return Program(graph)

    def _trace(self, key: str, replaced: dict[str, Tensor], *what: Any, **options: Any) -> ir.Model:
        path = self._folder / f"{key}.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                graph = self._export(*what, **options).model
                for name, value in graph.graph.initializers.items():
                    if name in replaced:  # keep the name and the shape, but not the values
                        empty = np.zeros(tuple(replaced[name].shape), np.float32)
                        value.const_value = ir.tensor(empty, name=name)
                partial = path.with_suffix(f".{os.getpid()}")
                onnx.save(ir.to_proto(graph), partial)
                partial.replace(path)
        return ir.from_proto(onnx.load(path))


@cache
def keep_operators() -> None:
    """Let PyTorch read its ONNX operators once per process: half a second of every trace."""
    with suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))


def later(name: str, tensor: Tensor, value: ir.Value) -> ir.LazyTensor:
    """A weight that is read later, after tracing."""
    assert value.shape is not None
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.detach().numpy(), name=name),
        ir.DataType.FLOAT, value.shape, name=name,
    )  # fmt: skip


def structure(
    model: nn.Module,
    tensors: dict[str, Tensor],
    images: tuple[Tensor, ...],
    options: Any,
    *,
    known_weights: bool,
) -> str | None:
    """Hash of everything that determines a graph; None if it is not cached."""
    if not type(model).__module__.startswith("eomt_deploy."):
        return None
    if any(t.is_floating_point() and t.dtype != torch.float32 for t in tensors.values()):
        return None
    if sum(t.nbytes for t in tensors.values()) > 32 << 20:
        return None
    modules = [
        (name, type(module).__qualname__,
         sorted((k, v) for k, v in vars(module).items() if not k.startswith("_")))
        for name, module in model.named_modules()
    ]  # fmt: skip
    shapes = [(name, tuple(t.shape)) for name, t in tensors.items()]
    inputs = [(tuple(t.shape), t.dtype) for t in images]
    values = digest(tensors) if known_weights else ""
    text = repr((modules, shapes, inputs, sorted(options.items()), values))
    if " at 0x" in text:  # a function that a test patched
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def digest(tensors: dict[str, Tensor]) -> str:
    content = hashlib.sha256()
    for tensor in tensors.values():
        content.update(tensor.detach().contiguous().numpy())
    return content.hexdigest()


def folder_for_this_code(cache: Path) -> Path:
    """The folder in ``cache`` for this code and these libraries; other folders are removed."""
    content = hashlib.sha256(f"{torch.__version__} {version('onnxscript')}".encode())
    networks = (*PACKAGE.rglob("network/*.py"), *PACKAGE.rglob("paper/**/*.py"))
    for path in sorted([Path(__file__), *networks]):
        content.update(path.read_bytes())
    folder = cache / content.hexdigest()[:24]
    for other in cache.iterdir():
        if other != folder and len(other.name) == len(folder.name):
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    return folder


def install(folder: str | None = None) -> None:
    """Replace `torch.onnx.export` in this process."""
    torch.onnx.export = Traces(Path(folder or os.environ[VARIABLE]), torch.onnx.export)


if __name__ == "__main__":
    from eomt_deploy.cli import main

    install(sys.argv.pop(1))
    main()
