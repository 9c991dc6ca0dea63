"""Search for the first part of a network that an engine computes wrongly.

The ONNX graph is changed so that it also returns the output of one part, opened or built again by
the same backend, and compared with the reference. Errors propagate, so a binary search finds the
first block. Only one output is added at a time, because each can prevent the fusion of operators.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from eomt_deploy.backends.backend import load
from eomt_deploy.backends.building import BuiltFile, no_progress
from eomt_deploy.backends.certification import open_reference
from eomt_deploy.backends.engine import Engine
from eomt_deploy.backends.registry import BACKENDS, open_engine
from eomt_deploy.errors import UsageError
from eomt_deploy.external_data import side_files

Progress = Callable[[str], None]
CHECKED = "checked"
"""Name of the additional output."""
BLOCK = re.compile(r"backbone\.blocks\.(\d+)\b")


class Part(NamedTuple):
    """A part of the network, and the tensor that it returns."""

    name: str
    tensor: str


@dataclass(frozen=True)
class Bisection:
    """Result of a search.

    Attributes:
        first: name of the first part whose output differs; empty if no part differs alone.
        errors: error of each part that was measured, in the order of the network, see
            :func:`difference`.
        limit: maximum error of a right part.
    """

    first: str
    errors: dict[str, float]
    limit: float

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON, which has no infinity."""
        errors = {k: v if np.isfinite(v) else None for k, v in self.errors.items()}
        return {"first": self.first, "errors": errors, "limit": self.limit}

    def __str__(self) -> str:
        if not self.first:
            return (
                "No part differs while its output is visible. The fault is in operators that are "
                "fused across parts."
            )
        names = list(self.errors)
        before = names[: names.index(self.first)][-1:]
        right = "".join(f"; that of {name} has an error of {self.errors[name]:.1e}"
                        for name in before)  # fmt: skip
        return (
            f"The first part whose output differs is {self.first}: its error is "
            f"{self.errors[self.first]:.1e} (maximum {self.limit:.0e}){right}."
        )


def find_fault(
    model: Path,
    source: Path,
    engine: Engine,
    images: npt.NDArray[np.uint8],
    limit: float,
    progress: Progress = lambda _: None,
) -> Bisection:
    """Find the first part that an engine computes wrongly.

    Args:
        model: the model file.
        source: the ONNX model that it was built from, or the same file.
        engine: the opened model file: its backend and device are used.
        images: one batch of network inputs.
        limit: maximum error of a right part, see :func:`difference`.
        progress: called with progress messages.

    Raises:
        UsageError: the backend neither opens nor builds ONNX models.
    """
    open_marked = _opener(model, engine)
    graph = onnx.load(source, load_external_data=False)
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="eomt-deploy-bisect-") as name:
        folder = Path(name)
        for side in side_files(source):
            _link(side, folder / side.name)

        def wrong(part: Part) -> bool:
            progress(f"comparing the output of {part.name}")
            marked = mark(graph, part.tensor, folder / source.name)
            with open_marked(marked) as candidate:
                found = candidate.run_named(images, [CHECKED])[0]
            with open_reference(marked) as reference:
                wanted = reference.run_named(images, [CHECKED])[0]
            errors[part.name] = difference(np.asarray(found, np.float32), wanted)
            return not errors[part.name] <= limit

        chain, rest = parts(graph)
        first = search(chain, wrong)
        if first is None:
            first = next((part for part in rest if wrong(part)), None)
        order = [part.name for part in (*chain, *rest) if part.name in errors]
        return Bisection(first.name if first else "", {n: errors[n] for n in order}, limit)


def check_applies(model: Path, engine: Engine, source: Path) -> None:
    """Check that the parts of an engine can be compared.

    Raises:
        UsageError: the backend neither opens nor builds ONNX models, or the nodes of the graph have
            other names.
    """
    _opener(model, engine)
    parts(onnx.load(source, load_external_data=False))


def search(chain: Sequence[Part], wrong: Callable[[Part], bool]) -> Part | None:
    """The first wrong part of a chain in which every part after it is wrong, too."""
    if not chain or not wrong(chain[-1]):
        return None
    low, high = -1, len(chain) - 1  # chain[high] is wrong, chain[low] is right
    while high - low > 1:
        middle = (low + high) // 2
        if wrong(chain[middle]):
            high = middle
        else:
            low = middle
    return chain[high]


def parts(model: onnx.ModelProto) -> tuple[list[Part], list[Part]]:
    """The parts of a network, from the names that `export` gives to its nodes.

    Returns:
        the embedding and the blocks, of which each reads the previous one; and the parts after the
        last block.

    Raises:
        UsageError: the nodes have other names.
    """
    last: dict[str, str] = {}
    first_block = True
    chain: list[Part] = []
    rest: dict[str, str] = {}
    previous = ""
    for node in model.graph.node:
        match = BLOCK.match(node.name)
        if match and first_block:
            chain.append(Part("the patch embedding", previous))
            first_block = False
        if match:
            last[f"block {match[1]}"] = node.output[0]
            rest = {}  # what is between two blocks inserts the queries
        elif last and (module := node.name.partition("/")[0]) != "network":
            rest[".".join(module.split(".")[:2])] = node.output[0]
        previous = node.output[0]
    if not last:
        raise UsageError(
            "The nodes of the graph do not have the names that `export` gives to them, so that "
            "its blocks are not known.",
            fix="Export the checkpoint again.",
        )
    chain += [Part(name, tensor) for name, tensor in last.items()]
    return chain, [Part(name, tensor) for name, tensor in rest.items()]


def mark(model: onnx.ModelProto, tensor: str, path: Path) -> Path:
    """Write a copy of a graph that also returns ``tensor``, as float32, under :data:`CHECKED`."""
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    kind = onnx.TensorProto.FLOAT
    cast = onnx.helper.make_node("Cast", [tensor], [CHECKED], name=CHECKED, to=kind)
    marked.graph.node.append(cast)
    marked.graph.output.append(onnx.helper.make_tensor_value_info(CHECKED, kind, None))
    path.write_bytes(marked.SerializeToString())
    return path


def difference(have: npt.NDArray[np.float32], want: npt.NDArray[np.float32]) -> float:
    """RMS error in units of the standard deviation of each channel.

    A few channels of a vision transformer have values that are a hundred times larger than all
    others: an error relative to the largest value would hide a wrong channel.

    Args:
        have, want: tokens [B, N, C], or features [B, C, H, W].
    """
    if not np.isfinite(have).all():
        return float("inf")
    axis = 1 if want.ndim == 4 else want.ndim - 1
    others = tuple(i for i in range(want.ndim) if i != axis)
    spread = want.std(axis=others, keepdims=True, dtype=np.float64)
    spread = np.maximum(spread, 1e-3 * spread.mean() + 1e-12)
    return float(np.sqrt(np.mean(np.square((have - want) / spread))))


def _opener(model: Path, engine: Engine) -> Callable[[Path], Engine]:
    """How the backend of an engine opens another ONNX model, with the settings of the file."""
    backend = BACKENDS[engine.backend]
    options: dict[str, Any] = {"backend": engine.backend, "device": engine.device, "cache": False}
    if backend.arithmetics:
        options["arithmetic"] = engine.arithmetic
    if model.suffix.lower() == ".onnx":
        return lambda marked: open_engine(marked, **options)
    builder = backend.build
    if builder is None or not builder.file:
        raise UsageError(
            f"--bisect does not apply to {model.suffix} files: {backend.title} does not build them "
            "from ONNX models.",
            fix="Leave it out.",
        )
    built: BuiltFile = load(builder.file)(model)

    def build_and_open(marked: Path) -> Engine:
        output = marked.with_suffix(model.suffix)
        load(builder.run)(built.rebuild(marked, output, engine.arithmetic), no_progress)
        return open_engine(output, **options)

    return build_and_open


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy on another file system; links by name are refused by the readers."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
