"""The picture of docs/install.md: drawn scenes beside their overlays.

eomt-deploy export eomt-tiny-scenes -o tiny.onnx
python docs/pictures/scenes.py tiny.onnx -o docs/pictures/scenes.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.drawing import side_by_side

SCENES = Path(__file__).parents[2] / "examples" / "scenes"
NUMBERS = (1, 6)
GAP = 4


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    pairs = []
    with Segmenter(options.model) as segmenter:
        for result in segmenter.stream([SCENES / f"scene-{number}.png" for number in NUMBERS]):
            assert result.image is not None
            pairs.append(side_by_side([Image.fromarray(result.image), result.overlay()]))
    width = max(pair.width for pair in pairs)
    picture = Image.new("RGB", (width, sum(p.height for p in pairs) + GAP * (len(pairs) - 1)))
    top = 0
    for pair in pairs:
        picture.paste(pair, (0, top))
        top += pair.height + GAP
    picture.save(options.output, quality=85, optimize=True)


if __name__ == "__main__":
    main()
