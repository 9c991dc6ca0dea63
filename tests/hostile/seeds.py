"""Valid inputs that the fuzzers start from, all created here."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from eomt_deploy.certificate import Certificate
from eomt_deploy.classes import make_classes
from eomt_deploy.sidecar import Sidecar
from eomt_deploy.spec import (
    METADATA_KEY,
    RESIZE_RULES,
    TASK_THRESHOLDS,
    TASKS,
    Backbone,
    ModelSpec,
    Task,
)

CLASSES = [
    {"name": "sky", "thing": False},
    {"name": "grass", "thing": False, "color": [10, 200, 30]},
    {"name": "cat", "thing": True},
]
SIDE, QUERIES = 32, 6
CERTIFICATE = Certificate(
    images=3, inputs=3, relative_error=1e-6, class_agreement=1.0, mask_agreement=1.0,
    label_agreement=1.0, max_relative_error=1e-3, min_agreement=0.999, backend="openvino 2026.1",
    device="CPU", driver=None, created="2026-01-31T12:00:00Z",
)  # fmt: skip


def spec(task: Task = "panoptic", side: int = SIDE) -> ModelSpec:
    return ModelSpec(
        name="hostile", task=task, image_size=(side, side), patch_size=16, num_queries=QUERIES,
        num_blocks=1, num_upscale=2, classes=make_classes(CLASSES, "test"),
        resize=RESIZE_RULES[task], thresholds=TASK_THRESHOLDS[task],
        backbone=Backbone("dinov2", 64, 2, 1, "gelu", 1, 1234),
        provenance={"eomt_deploy": "0.1.0", "checkpoint_sha256": "0" * 64},
    )  # fmt: skip


def specs() -> list[ModelSpec]:
    """A description of each task, one with a fixed batch."""
    return [*(spec(task) for task in TASKS), replace(spec(), batch=2, precision="fp16")]


@cache
def graph(side: int = SIDE) -> bytes:
    """A model of a few operators with the required tensors, without a description."""
    random = np.random.default_rng(0)
    masks, classes = side // 4, len(CLASSES) + 1
    weights = [
        numpy_helper.from_array(random.normal(size=(QUERIES, 3, 1, 1)).astype(np.float32), "mix"),
        numpy_helper.from_array(random.normal(size=QUERIES).astype(np.float32), "shift"),
        numpy_helper.from_array(random.normal(size=(3, classes)).astype(np.float32), "head"),
        numpy_helper.from_array(random.normal(size=(QUERIES, 1)).astype(np.float32) * 4, "spread"),
        numpy_helper.from_array(np.array(0.02, np.float32), "scale"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([2, 3], np.int64), "sides"),
    ]
    nodes = [
        helper.make_node("Cast", ["images"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["first"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["small", "mix", "shift"], ["mask_logits"]),
        helper.make_node("ReduceMean", ["small", "sides"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "one"], ["row"]),
        helper.make_node("Mul", ["row", "spread"], ["class_logits"]),
    ]
    values = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes, "hostile",
        [values("images", TensorProto.UINT8, ["batch", side, side, 3])],
        [values("class_logits", TensorProto.FLOAT, ["batch", QUERIES, classes]),
         values("mask_logits", TensorProto.FLOAT, ["batch", QUERIES, masks, masks])],
        weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=9, producer_name="hostile")
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def onnx_with(description: bytes, side: int = SIDE) -> bytes:
    """The model with any bytes as its description: ModelProto's field 14, key 1, value 2."""
    from .container_mutations import write_fields

    pair = write_fields([(1, 2, METADATA_KEY.encode()), (2, 2, description)])
    return graph(side) + write_fields([(14, 2, pair)])


def onnx_model(task: Task, side: int = SIDE) -> bytes:
    return onnx_with(spec(task, side).to_json().encode(), side)


def picture(width: int = 40, height: int = 28, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def images() -> list[tuple[str, bytes]]:
    """Suffix and content of small images in the formats that we read."""
    rgb = picture()
    palette = rgb.quantize(16)
    frames = [picture(seed=i) for i in range(3)]
    exif = Image.Exif()
    exif.update({274: 6, 271: "maker", 36867: "2020:01:01 00:00:00", 282: 72.0})
    icc = b"\0\0\1\0" + bytes(252)
    made: list[tuple[str, bytes]] = []

    def add(suffix: str, image: Image.Image, kind: str, **options: Any) -> None:
        made.append((suffix, encoded(image, kind, **options)))

    for mode in ("L", "LA", "RGB", "RGBA", "1"):
        add(".png", rgb.convert(mode), "PNG")
    add(".png", palette, "PNG", transparency=3)
    add(".png", rgb, "PNG", exif=exif)
    add(".png", rgb, "PNG", save_all=True, append_images=frames)
    for options in ({}, {"progressive": True, "quality": 30}, {"exif": exif}, {"icc_profile": icc}):
        add(".jpg", rgb, "JPEG", **options)
    for mode in ("L", "CMYK"):
        add(".jpg", rgb.convert(mode), "JPEG", exif=exif)
    add(".webp", rgb, "WEBP", quality=50)
    add(".webp", rgb.convert("RGBA"), "WEBP", lossless=True, exif=exif)
    add(".webp", rgb, "WEBP", save_all=True, append_images=frames)
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        add(".tif", rgb, "TIFF", compression=compression)
    add(".tif", rgb.convert("1"), "TIFF", compression="group4")
    add(".tif", rgb.convert("CMYK"), "TIFF")
    add(".tiff", palette, "TIFF", exif=exif)
    add(".tif", rgb, "TIFF", save_all=True, append_images=frames)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        add(".bmp", rgb.convert(mode), "BMP")
    for mode in ("1", "L", "RGB"):
        add(".ppm", rgb.convert(mode), "PPM")
    made.append((".ppm", b"P3\n2 2\n255\n" + b"0 128 255 " * 4))
    made.append((".ppm", b"P6\n# a comment\n2 2\n255\n" + bytes(12)))
    return made


@cache
def foreign_images() -> list[tuple[str, bytes]]:
    """Images in formats of Pillow that we do not read, with the suffix of a format that we read."""
    rgb = picture()
    made = [(".jpg", encoded(rgb, kind)) for kind in ("GIF", "ICO", "TGA", "PCX", "SGI", "DDS",
                                                      "EPS",
                                                      "PDF", "IM", "JPEG2000", "MPO")]  # fmt: skip
    for kind in ("AVIF", "BLP", "SPIDER", "MSP", "XBM", "ICNS", "QOI"):
        try:
            mode = {"BLP": "P", "SPIDER": "F", "MSP": "1", "XBM": "1"}.get(kind, "RGB")
            made.append((".png", encoded(rgb.convert(mode), kind)))
        except (OSError, KeyError, ValueError):  # not in this build of Pillow
            continue
    made.append((".jpg", b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\4\0\0\0\4\0\x08\0\3" + bytes(99)))
    made.append((".jpg", b"SIMPLE  =                    T" + bytes(2850)))
    made.append(
        (".jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    )
    made.append((".png", b'/* XPM */\nstatic char *x[] = {\n"2 1 1 1",\n"a c #000000",\n"aa"};'))
    made.append((".bmp", b"\xd7\xcd\xc6\x9a" + bytes(60)))
    return made


def sidecars() -> list[str]:
    base = Sidecar(
        spec=replace(spec(), precision="fp16"), target="tensorrt", library_version="11.4.0.106",
        precision="fp16", batch=(1, 1, 8), compute_capabilities=("8.9",), gpu="NVIDIA L4",
        driver="580.65.06", version_compatible=False, hardware_compatibility="none",
        stripped=False, plan_bytes=4, plan_sha256="8" * 64, onnx="m.onnx", onnx_sha256="0" * 64,
        settings={"tf32": "no"}, certificate=CERTIFICATE,
    )  # fmt: skip
    rtx = replace(
        base, target="tensorrt-rtx", compute_capabilities=("8.0+",), gpu=None, driver=None
    )
    return [base.to_json(), rtx.to_json()]


# Labelled data


@cache
def suite_report() -> bytes:
    from eomt_deploy.benchmarking.machine.roofline import Peak
    from eomt_deploy.benchmarking.measure.scenarios import Served
    from eomt_deploy.benchmarking.paper.report import Measurement, Size, Skipped, SuiteReport
    from eomt_deploy.benchmarking.paper.suite_file import find_suite

    suite = find_suite("table1")
    rows = suite.select()[:2] + tuple(r for r in suite.select() if r.name == suite.base)
    rows = tuple({row.name: row for row in rows}.values())
    report = SuiteReport(
        suite, rows,
        environment={"cpu": "a CPU", "cores": 2, "date": "2026-01-01", "load_average": 0.1},
        settings={"runtimes": ["onnxruntime"], "scopes": ["network"], "batches": [1]},
        sizes={row.name: Size(1000, 2000) for row in rows},
        peaks={"fp32": Peak("fp32", 1.5, 512)},
        measurements=[
            Measurement(row.name, "onnxruntime", "cpu", "fp32", "network", 1, 0,
                        (10.0, 11.0, 10.5, 10.2))
            for row in rows
        ],
        served=[Served(rows[0].name, "onnxruntime", 10.0, (5.0, 6.0), 0, 1.0)],
        skipped=[Skipped(rows[0].name, "tensorrt", "there is no GPU")],
        notes=["a note"],
    )  # fmt: skip
    return json.dumps(report.to_dict()).encode()
