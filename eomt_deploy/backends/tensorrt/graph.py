"""ONNX -> the library's network, with every node that it cannot take named before the build."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from eomt_deploy.backends.tensorrt.library import NAMES, Line, complaints
from eomt_deploy.errors import ArtifactError, BuildError
from eomt_deploy.sidecar import Target

SHOWN_NODES = 10


def parse(
    module: Any, builder: Any, target: Target, onnx: Path, lines: list[Line]
) -> tuple[Any, Any]:
    """The strongly typed network of an ONNX file; weights in a side file are read, too.

    Args:
        lines: where the library's words are heard.

    Returns:
        the network, and its parser, which holds the weights and must live as long.

    Raises:
        BuildError: the library cannot take some nodes; each is named with the reason.
        ArtifactError: weights beside the file are missing or cut.
    """
    # The only kind of network in TensorRT 11, a choice in 10.
    flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = module.OnnxParser(network, builder.logger)
    if parser.parse_from_file(os.fsencode(onnx)):
        return network, parser
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if any("Failed to import initializer" in error.desc() for error in errors):
        raise ArtifactError(
            f"The weights of {onnx} cannot be read.",
            why=(complaints(lines, most=1) or [errors[0].desc()])[0],
            fix="Copy the .onnx.data file along with its .onnx, or export it again.",
        )
    name = NAMES[target]
    nodes = list(dict.fromkeys(_describe(error) for error in errors))
    shown, rest = nodes[:SHOWN_NODES], len(nodes) - SHOWN_NODES
    raise BuildError(
        f"{name} {module.__version__} cannot build {onnx}: it does not take "
        f"{len(nodes)} of its nodes.",
        why="\n".join(shown) + (f"\nand {rest} more" if rest > 0 else ""),
        fix=f"Export the checkpoint again with this eomt-deploy, or use a newer version of {name}.",
    )


def _describe(error: Any) -> str:
    """``name (Operator): reason``, in words."""
    name, operator = error.node_name(), error.node_operator()
    where = f"{name} ({operator}): " if name or operator else ""
    return where + _reason(error.desc())


def _reason(text: str) -> str:
    """The parser's assertion as a sentence."""
    if "Plugin not found" in text:
        return "no such operator, and no plugin of that name"
    if text.strip() in ("false", "Assertion failed: false"):
        return "no layer for this operator"
    quoted = re.search(r'&& "([^"]+)"', text)
    if quoted:
        return quoted[1]
    lines = [line for line in text.splitlines() if line and not line.startswith("Invalid Node")]
    cleaned = complaints([Line("error", line) for line in lines], most=1)
    return cleaned[0] if cleaned else text.strip()
