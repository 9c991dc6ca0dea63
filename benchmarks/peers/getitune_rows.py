"""Rows of Intel Geti (getitune): ``openvino fp32``, ``openvino fp16``, ``openvino int8``.

Geti's API for one image is that of the exported file (ModelAPI). The row ``torch`` runs the network
in PyTorch, with the resizing of Geti's data pipeline and ModelAPI's post-processing; it is the
reference of the exported files.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from worker import THREADS, Row, let_torchvision_import, paint

let_torchvision_import()


def _torch(work: Path) -> Any:
    """Geti's network, with the settings of its recipe ``eomt_large_640``."""
    from getitune.backend.huggingface.models.instance_segmentation import HFInstSegModel

    model = HFInstSegModel(
        str(work / "instance-transformers"), 80, input_size=(640, 640), resize_mode="standard",
        onnx_dynamo=False, confidence_threshold=0.5,
    )  # fmt: skip
    return model.eval()


def _file(row: str, work: Path) -> Path:
    precision = "fp32" if row == "torch" else row.split()[1]
    return work / f"getitune-instance-{precision}.xml"


def prepare(task: str, row: str, work: Path) -> None:
    path = _file(row, work)
    if path.is_file():
        return
    if row == "openvino int8":
        prepare(task, "openvino fp32", work)
        _quantize(_file("openvino fp32", work), path, work / "calibration")
        return
    from getitune.types.export import ExportFormat
    from getitune.types.precision import Precision

    precision = Precision.FP16 if row == "openvino fp16" else Precision.FP32
    _torch(work).export(work, path.stem, ExportFormat.OPENVINO, precision)


def _quantize(source: Path, path: Path, images: Path) -> None:
    """Geti's own quantisation, calibrated with a folder of images instead of a data set."""
    import torch
    from getitune.backend.openvino.models.instance_segmentation import OVInstanceSegmentationModel
    from PIL import Image
    from torchvision.transforms.v2 import functional

    model = OVInstanceSegmentationModel(str(source), model_type="DETRInstSeg")
    batches = []
    for file in sorted(images.iterdir()):
        pixels = functional.pil_to_tensor(Image.open(file).convert("RGB"))
        batches.append(SimpleNamespace(images=[pixels.to(torch.float32) / 255]))
    data = SimpleNamespace(
        train_subset=SimpleNamespace(batch_size=1), train_dataloader=lambda: batches
    )
    model.optimize(path.parent, data, optimized_model_name=path.stem)


def load(task: str, row: str, work: Path) -> Row:
    import cv2
    import torch
    from model_api.models import Model
    from torchvision.transforms.v2 import functional

    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)
    model = Model.create_model(str(_file(row, work)), device="CPU")
    network = _torch(work) if row == "torch" else None
    settings = network.data_input_params if network else None

    def predict(path: str) -> Any:
        image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
        if network is None:
            return image.shape[:2], model(image)
        _, meta = model.preprocess(image)  # only for the sizes: the file has the rest inside
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        pixels = functional.resize(pixels, [640, 640], antialias=True)
        pixels = functional.normalize(pixels, settings.mean, settings.std)
        with torch.inference_mode():
            outputs = network.forward_for_tracing(pixels)
        arrays = {name: value.numpy() for name, value in outputs.items()}
        return image.shape[:2], model.postprocess(arrays, meta)

    def labels(found: Any) -> Any:
        size, result = found
        # ModelAPI counts classes from 1.
        return paint(result.masks, result.labels.reshape(-1) - 1, size)

    return Row(predict, labels, ("getitune", "openvino", "openvino-model-api"))
