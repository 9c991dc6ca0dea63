"""The before/after picture of the README: an image beside its overlay.

    python docs/pictures/street.py MODEL IMAGE -o docs/pictures/street.jpg

MODEL is a semantic model with CamVid's 11 classes. The overlay uses the colours of Cityscapes for
them, because more people know these. The model and the image are not in the repository: CamVid's
licence does not allow it for the model.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from PIL import Image

from eomt_deploy import Segmentation, Segmenter
from eomt_deploy.catalog import class_lists
from eomt_deploy.drawing import side_by_side

IN_CITYSCAPES = {
    "pavement": "sidewalk", "tree": "vegetation", "sign-symbol": "traffic sign",
    "pedestrian": "person", "bicyclist": "rider",
}  # fmt: skip
"""CamVid's classes that Cityscapes has under another name."""
WIDTH = 1200


def in_cityscapes_colours(result: Segmentation) -> Segmentation:
    """The same result with other class colours."""
    colours = {info.name: info.color for info in class_lists()["cityscapes"]}
    classes = tuple(
        replace(info, color=colours[IN_CITYSCAPES.get(info.name, info.name)])
        for info in result.classes
    )
    return replace(result, classes=classes)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    with Segmenter(options.model) as segmenter:
        result = in_cityscapes_colours(segmenter.predict(options.image))
    assert result.image is not None
    pair = side_by_side([Image.fromarray(result.image), result.overlay()])
    pair.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    pair.save(options.output, quality=85, optimize=True)


if __name__ == "__main__":
    main()
