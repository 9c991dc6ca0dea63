"""Send images to a model in Triton, and print the segments that it returns.

    python examples/triton_client.py localhost:8001 tiny street.jpg other.png

The model repository comes from `eomt-deploy triton`. The client needs only the package
`tritonclient[grpc]`, and `pycocotools` to decode the masks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def segment(
    client: triton.InferenceServerClient, model: str, images: list[bytes], **thresholds: float
) -> list[dict[str, Any]]:
    """Segment encoded images (JPEG, PNG, …) in one request.

    Args:
        client: connection to the server.
        model: name of the model.
        images: contents of image files.
        thresholds: ``score_threshold``, ``mask_threshold``, ``overlap_threshold``.

    Returns:
        for each image: task, size [height, width] and segments; ``segment["rle"]`` is the mask as
        COCO RLE.
    """
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, np.object_).reshape(-1, 1))
    reply = client.infer(model, [tensor], parameters=thresholds or None)
    return [json.loads(text) for text in reply.as_numpy("result").ravel()]


def main(address: str, model: str, *paths: str) -> None:
    """Segment the files and print a line for each segment."""
    from pycocotools import mask

    client = triton.InferenceServerClient(address)
    for path in paths:
        (result,) = segment(client, model, [Path(path).read_bytes()])
        print(f"{path}: {result['task']}, {len(result['segments'])} segments")
        for found in result["segments"]:
            pixels = int(mask.decode(found["rle"]).sum())
            print(f"  {found['class_name']:20} {pixels} pixels")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InferenceServerException as error:
        sys.exit(f"error: {error.message()}")
