"""The tensors of every exported model: one input, two outputs.

| name | type | shape | meaning |
|---|---|---|---|
| ``images`` | uint8 | [B, H, W, 3] | RGB, 0 to 255, resized and padded |
| ``class_logits`` | float | [B, Q, C+1] | the last column is "no object" |
| ``mask_logits`` | float | [B, Q, H/4, W/4] | before the sigmoid |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eomt_deploy.errors import ModelFileError
from eomt_deploy.spec import ModelSpec

INPUT = "images"
OUTPUTS = ("class_logits", "mask_logits")


def check_contract(
    spec: ModelSpec, tensors: Mapping[str, tuple[str, Sequence[int | str | None]]], path: Path
) -> None:
    """Check that the graph has the tensors that the description specifies.

    Args:
        spec: the description.
        tensors: type and shape of the graph's tensors by name; a dynamic size is not an integer.
        path: model file, for the message.

    Raises:
        ModelFileError: a tensor is missing or has another shape.
    """
    wanted: dict[str, tuple[int | None, ...]] = {
        INPUT: (spec.batch, *spec.image_size, 3),
        OUTPUTS[0]: (spec.batch, spec.num_queries, len(spec.classes) + 1),
        OUTPUTS[1]: (spec.batch, spec.num_queries, *spec.mask_size),
    }
    for name, shape in wanted.items():
        found = tensors.get(name, ("missing", ()))
        sizes = tuple(size if isinstance(size, int) else None for size in found[1])
        if sizes != shape:
            raise ModelFileError(
                f"The description and the graph of {path} do not match: {name} is {_sizes(shape)} "
                f"in the description and {_sizes(sizes) if name in tensors else 'missing'} in the "
                "graph.",
                why="The file was changed after the export.",
                fix="Export the checkpoint again.",
            )


def _sizes(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('batch' if size is None else str(size) for size in shape)}]"
