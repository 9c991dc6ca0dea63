"""Compare our overlays with those of supervision, in one picture.

    pip install supervision
    python examples/contact_sheet.py model.onnx sheet.png street.jpg kitchen.jpg

One row for each image: the image, our overlay with its legend, and the masks, outlines and labels
of supervision with the sizes that it recommends. detectron2 is not compared, because it has no
package that pip can install.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image, ImageDraw, ImageFont

from eomt_deploy import EomtDeployError, Segmentation, Segmenter

WIDTH, GAP, TITLE = 640, 8, 32
"""Maximum width of an image, space between images, and height of the titles, in pixels."""


def with_supervision(result: Segmentation) -> Image.Image:
    """The result, drawn by supervision. It draws arrays in BGR order."""
    detections = result.filter(min_score=0.5).to_supervision()
    scene = np.ascontiguousarray(result.image[:, :, ::-1])
    size = result.size[1], result.size[0]
    by_index = {"color_lookup": sv.ColorLookup.INDEX}
    labels = [f"{region.class_name} {region.score:.2f}" for region in result.filter(min_score=0.5)]
    label = sv.LabelAnnotator(
        text_scale=sv.calculate_optimal_text_scale(size),
        text_padding=3,
        text_position=sv.Position.CENTER_OF_MASS,
        smart_position=True,
        **by_index,
    )
    thickness = sv.calculate_optimal_line_thickness(size)
    scene = sv.MaskAnnotator(**by_index).annotate(scene, detections)
    scene = sv.PolygonAnnotator(thickness=thickness, **by_index).annotate(scene, detections)
    if labels:
        scene = label.annotate(scene, detections, labels)
    return Image.fromarray(scene[:, :, ::-1])


def row_of(result: Segmentation) -> list[Image.Image]:
    """The pictures of one image, with at most WIDTH pixels of it in a row."""
    pictures = [
        Image.fromarray(result.image), result.overlay(legend=True), with_supervision(result)
    ]  # fmt: skip
    scale = min(1.0, WIDTH / result.size[1])
    return [p.resize((round(p.width * scale), round(p.height * scale))) for p in pictures]


def sheet_of(results: list[Segmentation]) -> Image.Image:
    """All rows, with titles."""
    rows = [row_of(result) for result in results]
    widths = [max(row[column].width for row in rows) for column in range(3)]
    heights = [row[0].height for row in rows]
    sheet = Image.new(
        "RGB", (sum(widths) + 2 * GAP, TITLE + sum(heights) + GAP * (len(rows) - 1)), "white"
    )
    draw, x = ImageDraw.Draw(sheet), 0
    for column, title in enumerate(("image", "eomt-deploy", f"supervision {sv.__version__}")):
        draw.text((x + GAP, TITLE // 2), title, "black", ImageFont.load_default(18), anchor="lm")
        y = TITLE
        for row, height in zip(rows, heights, strict=True):
            sheet.paste(row[column], (x, y))
            y += height + GAP
        x += widths[column] + GAP
    return sheet


def main(model: str, output: str, *images: str) -> None:
    """Segment the images and write the sheet."""
    if Path(output).exists():
        sys.exit(f"error: {output} already exists. Choose another name, or delete it.")
    with Segmenter(model) as segmenter:
        sheet = sheet_of(segmenter.predict(list(images)))
    sheet.save(output)
    print(f"wrote {len(images)} rows to {output}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except EomtDeployError as error:
        sys.exit(f"error {error.id}: {error}")
