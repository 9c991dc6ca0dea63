"""Do a network's outputs belong to this model and image?"""

from __future__ import annotations

from eomt_deploy.errors import UsageError
from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.spec import ModelSpec

Shape = tuple[int, ...]


def check_outputs(
    spec: ModelSpec, class_logits: Shape, mask_logits: Shape, geometry: Geometry
) -> None:
    """Compare shapes with those of the model, for an image of this geometry.

    Raises:
        UsageError: they are of another model or image.
    """
    count = geometry.num_inputs
    expected = (
        (count, spec.num_queries, len(spec.classes) + 1),
        (count, spec.num_queries, *spec.mask_size),
    )
    if (class_logits, mask_logits) != expected:
        raise UsageError(
            f"Outputs of shape {list(class_logits)} and {list(mask_logits)} do not belong "
            f"to {spec.name}: expected {list(expected[0])} and {list(expected[1])}."
        )
