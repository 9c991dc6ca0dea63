"""Segment one image, print what is in it, and save the overlay.

    python examples/predict.py model.onnx street.jpg seen.png

The model comes from `eomt-deploy export`, for example
`eomt-deploy export eomt-tiny-scenes -o model.onnx`.
"""

from __future__ import annotations

import sys

from eomt_deploy import EomtDeployError, Segmenter


def main(model: str, image: str, output: str) -> None:
    """Run the model on one image."""
    with Segmenter(model) as segmenter:
        result = segmenter.predict(image)
    print(result)
    for region in result.regions():  # segments, or for a semantic model one region per class
        share = region.area / (result.size[0] * result.size[1])
        print(f"{region.class_name:20} score {region.score:.2f}  {share:6.1%} of the image")
    result.overlay().save(output)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except EomtDeployError as error:
        sys.exit(f"error {error.id}: {error}")
