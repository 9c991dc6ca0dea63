"""Export a checkpoint in INT8, build it for OpenVINO, and compare it with FP32.

    python examples/export_and_build.py eomt-tiny-scenes examples/scenes models/
    python examples/export_and_build.py last.ckpt calibration/ models/ panoptic classes.json

The first argument is a checkpoint: a file, a Hugging Face folder or a name that `eomt-deploy list`
shows. The second is the calibration set, a folder of typical images. Every fourth image is held out
from calibration and used to measure what INT8 loses. A checkpoint without a name in the list also
needs its task and its class list.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from eomt_deploy import EomtDeployError, Segmenter
from eomt_deploy.backends.openvino.build import build_openvino
from eomt_deploy.backends.openvino.config import OpenVinoConfig
from eomt_deploy.exporting import ExportConfig, export


def main(
    checkpoint: str,
    calibration_set: str,
    folder: str,
    task: Any = None,
    classes: str | None = None,
) -> None:
    """Write fp32.onnx, int8.onnx and int8.xml (with int8.bin) into the folder."""
    images = Path(calibration_set)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)

    config = ExportConfig(
        checkpoint,
        out / "fp32.onnx",
        task=task,  # semantic, instance or panoptic
        classes=Path(classes) if classes else None,
    )
    fp32 = export(config)
    print(f"fp32.onnx: relative error {fp32.verification.relative_max:.1e} against PyTorch")

    int8 = export(replace(config, output=out / "int8.onnx", precision="int8", calibrate=images))
    for line in int8.warnings:
        print("warning:", line)

    built = build_openvino(OpenVinoConfig(out / "int8.onnx", out / "int8.xml"))
    for line in built.lines():
        print(line)

    if int8.verdict:
        drop = int8.verdict.chosen.judgement.drop
        print(f"int8.onnx: loses {drop:.2f} points of {int8.verdict.unit}")

    image = min(images.iterdir())
    for model in ("fp32.onnx", "int8.xml"):
        with Segmenter(out / model) as segmenter:
            print(model, segmenter.predict(image))


if __name__ == "__main__":
    if len(sys.argv) not in (4, 6):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except EomtDeployError as error:
        sys.exit(f"error {error.id}: {error}")
