"""PQ, mask AP and mIoU of a checkpoint on held-out scenes, with masked attention on or off.

    python evaluate.py tiny_scenes.bin --count 300 --seed 7
    python evaluate.py runs/kept/last.bin --masks

`eomt-deploy eval` scores exported models, in which masked attention does not exist; this scores
the training network itself, through the same processing and metrics.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from network import EoMT, from_checkpoint
from scenes import write_classes, write_coco_panoptic

from eomt_deploy import Segmenter
from eomt_deploy.backends import Engine
from eomt_deploy.backends.engine import Outputs
from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.evaluation import evaluate, open_dataset
from eomt_deploy.exporting import ExportConfig
from eomt_deploy.exporting.describe import Source, describe
from eomt_deploy.spec import TASKS, ModelSpec


class TrainingEngine(Engine):
    """The training network as an engine, so that everything around it is the product's."""

    backend = "torch"
    device = "cpu"

    def __init__(self, model: EoMT, spec: ModelSpec, masked: bool) -> None:
        super().__init__()
        self.spec = spec
        self._model, self._masked = model, masked

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
            final = self._model(pixels, self._masked)[self._model.shape.num_blocks]
        return final.class_logits.numpy(), final.mask_logits.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a checkpoint on held-out scenes.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--masks", action="store_true", help="masked attention on, every query")
    args = parser.parse_args()
    model = from_checkpoint(torch.load(args.checkpoint, weights_only=True))
    if not args.masks and bool(model.attn_mask_probs.any()):
        print("note: this checkpoint was not annealed; without masks its results are poor")
    if args.masks:
        model.attn_mask_probs.fill_(1.0)
    found: dict[str, object] = {"scenes": args.count, "masks": "on" if args.masks else "off"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_coco_panoptic(folder / "scenes", args.count, args.seed)
        write_classes(folder / "classes.json")
        for task in TASKS:
            config = ExportConfig(
                str(args.checkpoint),
                folder / "unused.onnx",
                task=task,
                classes=folder / "classes.json",
                allow_stuff=task == "instance",  # one checkpoint is judged as all three
            )
            source = Source(str(args.checkpoint), None)
            spec = describe(config, source, read_checkpoint(args.checkpoint))
            segmenter = Segmenter(TrainingEngine(model, spec, args.masks))
            report = evaluate(segmenter, open_dataset([folder / "scenes"], spec))
            found |= report.scores.summary
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
