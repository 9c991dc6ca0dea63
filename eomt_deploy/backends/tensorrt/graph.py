"""Conversion of ONNX to the library's network; the error names every unsupported node."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from eomt_deploy.backends.tensorrt.library import NAMES, Line, complaints
from eomt_deploy.errors import BuildError, ModelFileError
from eomt_deploy.sidecar import Target

SHOWN_NODES = 10


def parse(
    module: Any, builder: Any, target: Target, onnx: Path, lines: list[Line]
) -> tuple[Any, Any]:
    """Parse an ONNX file, with its side file of weights if it has one, to a strongly typed network.

    Args:
        lines: captured log of the library.

    Returns:
        the network, and its parser, which owns the weights and must live as long as the network.

    Raises:
        BuildError: the library does not support some nodes; the message names each with a reason.
        ModelFileError: the side file is missing or truncated.
    """
    # TensorRT 11 has only strongly typed networks; in TensorRT 10 they are optional.
    flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = module.OnnxParser(network, builder.logger)
    if parser.parse_from_file(os.fsencode(onnx)):
        return network, parser
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if any("Failed to import initializer" in error.desc() for error in errors):
        raise ModelFileError(
            f"The weights of {onnx} cannot be read.",
            why=(complaints(lines, maximum=1) or [errors[0].desc()])[0],
            fix="Copy the .onnx file again together with its .onnx.data file, or export it again.",
        )
    name = NAMES[target]
    nodes = list(dict.fromkeys(_describe(error) for error in errors))
    shown, rest = nodes[:SHOWN_NODES], len(nodes) - SHOWN_NODES
    raise BuildError(
        f"{name} {module.__version__} cannot build {onnx}: it does not support {len(nodes)} of its "
        "nodes.",
        why="\n".join(shown) + (f"\nand {rest} more" if rest > 0 else ""),
        fix=f"Export the checkpoint again with this eomt-deploy, or use a newer version of {name}.",
    )


def _describe(error: Any) -> str:
    """Format a parser error as ``name (Operator): reason``."""
    name, operator = error.node_name(), error.node_operator()
    where = f"{name} ({operator}): " if name or operator else ""
    return where + _reason(error.desc())


def _reason(text: str) -> str:
    """Convert the parser's assertion to a readable reason."""
    if "Plugin not found" in text:
        return "neither the operator nor a plugin with this name exists"
    if text.strip() in ("false", "Assertion failed: false"):
        return "there is no layer for this operator"
    quoted = re.search(r'&& "([^"]+)"', text)
    if quoted:
        return quoted[1]
    lines = [line for line in text.splitlines() if line and not line.startswith("Invalid Node")]
    cleaned = complaints([Line("error", line) for line in lines], maximum=1)
    return cleaned[0] if cleaned else text.strip()
