"""Score a model file on labelled data, print the scores of each class, and save the worst images.

    python examples/evaluate.py model.onnx data/ worst/

`data/` is a data set in one of the formats of `eomt-deploy eval`: COCO panoptic, COCO instances,
Cityscapes, ADE20K, or a folder with `images/` and `labels/`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from eomt_deploy import EomtDeployError, Segmenter
from eomt_deploy.evaluation import evaluate, open_dataset


def main(model: str, data: str, folder: str) -> None:
    """Evaluate; write overlays of the three images with the lowest scores."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    with Segmenter(model) as segmenter:
        dataset = open_dataset([Path(data)], segmenter.spec)
        report = evaluate(segmenter, dataset)
        print(f"{len(report.per_image)} images, {report.scores.main} {report.scores.value:.2f}")
        for row in report.scores.per_class:
            numbers = [
                f"{name} {value:6.2f}" for name, value in row.items() if isinstance(value, float)
            ]
            print(f"{row['class']:20}", "  ".join(numbers))
        for position in report.worst(3):
            sample = dataset.samples[position]
            segmenter.predict(sample.image()).overlay().save(out / f"{Path(sample.name).stem}.png")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except EomtDeployError as error:
        sys.exit(f"error {error.id}: {error}")
