"""Draw a result with the annotators of supervision.

    pip install supervision
    python examples/supervision_annotate.py model.onnx street.jpg seen.png

`to_supervision` gives `supervision.Detections`, which trackers, zones and counters take, too.
"""

from __future__ import annotations

import sys

import cv2
import supervision as sv

from eomt_deploy import EomtDeployError, Segmenter


def main(model: str, image: str, output: str) -> None:
    """Mask, outline and label of each thing; stuff (sky, road, …) is left out."""
    with Segmenter(model) as segmenter:
        things = [index for index, info in enumerate(segmenter.spec.classes) if info.thing]
        result = segmenter.predict(image)
    detections = result.to_supervision()
    if things:
        detections = detections[[class_id in things for class_id in detections.class_id]]

    labels = [
        f"{name} {score:.2f}"
        for name, score in zip(detections["class_name"], detections.confidence, strict=True)
    ]
    scene = cv2.imread(image)
    scene = sv.MaskAnnotator(opacity=0.4).annotate(scene, detections)
    scene = sv.PolygonAnnotator(thickness=2).annotate(scene, detections)
    scene = sv.LabelAnnotator(text_scale=0.4, text_padding=3).annotate(scene, detections, labels)
    if not cv2.imwrite(output, scene):
        sys.exit(f"error: {output} cannot be written.")
    print(f"{len(detections)} objects: {', '.join(labels)}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except EomtDeployError as error:
        sys.exit(f"error {error.id}: {error}")
