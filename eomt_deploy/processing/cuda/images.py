"""Images to network inputs on the GPU."""

from __future__ import annotations

import numpy as np

from eomt_deploy.cuda.array import DeviceArray
from eomt_deploy.processing.cuda.workspace import GpuWorkspace
from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.processing.tables import image_table, shrinks_down_first


def resample(
    workspace: GpuWorkspace, image: DeviceArray, geometry: Geometry, swap: bool, inputs: DeviceArray
) -> None:
    """Resize an image uint8 [H, W, 3] as Pillow does (bilinear), and write the network inputs.

    Args:
        workspace: device, kernels, stream and buffers.
        image: the image.
        geometry: geometry of the image.
        swap: exchange the first and the last channel.
        inputs: uint8 [N, H, W, 3], written.
    """
    sides = (0, 1) if shrinks_down_first(geometry.image_size, geometry.scaled_size) else (1, 0)
    for axis in sides:
        image = _resample_side(workspace, image, axis, geometry.scaled_size[axis])
    number, height, width, _ = inputs.shape
    workspace.launch(
        "place_inputs", number * height * width,
        image.pointer, *geometry.scaled_size, workspace.starts(geometry), geometry.axis,
        number, height, width, swap, inputs.pointer,
    )  # fmt: skip


def _resample_side(
    workspace: GpuWorkspace, image: DeviceArray, axis: int, length: int
) -> DeviceArray:
    """The image uint8 [H, W, 3] with one side resized; unchanged if it has that length."""
    height, width, _ = image.shape
    old = image.shape[axis]
    if old == length:
        return image
    bounds, weights = workspace.scratch.tables(
        f"image {axis}", (old, length), lambda: image_table(old, length)
    )
    table = bounds.pointer, weights.pointer, weights.shape[1]
    if axis == 0:
        result = workspace.scratch.array("image 0", (length, width, 3), np.uint8)
        workspace.launch(
            "resample_down", length * width * 3,
            image.pointer, length, width, *table, result.pointer,
        )  # fmt: skip
    else:
        result = workspace.scratch.array("image 1", (height, length, 3), np.uint8)
        workspace.launch(
            "resample_across", height * length,
            image.pointer, width, height, length, *table, result.pointer,
        )  # fmt: skip
    return result
