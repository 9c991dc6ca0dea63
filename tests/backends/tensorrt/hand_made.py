"""Small ONNX models with a description, in every precision, built without torch in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from eomt_deploy.certificate import Certificate
from eomt_deploy.classes import make_classes
from eomt_deploy.spec import METADATA_KEY, TASK_THRESHOLDS, Backbone, ModelSpec

WIDTH, QUERIES, SIDE = 32, 9, 64
SPEC = ModelSpec(
    name="made",
    task="panoptic",
    image_size=(SIDE, SIDE),
    patch_size=16,
    num_queries=QUERIES,
    num_blocks=1,
    num_upscale=2,
    classes=make_classes([{"name": "sky", "thing": False}, {"name": "cat", "thing": True}], "test"),
    resize="letterbox",
    thresholds=TASK_THRESHOLDS["panoptic"],
    backbone=Backbone("made", WIDTH, 1, 1, "gelu", 0, 1234),
)
CERTIFICATE = Certificate(
    images=3,
    inputs=6,
    relative_error=1.5e-6,
    class_agreement=1.0,
    mask_agreement=0.9995,
    label_agreement=0.9999,
    max_relative_error=1e-3,
    min_agreement=0.999,
    backend="tensorrt 10.13.0.35 in fp16",
    device="NVIDIA L4",
    driver="580.65.06",
    created="2026-01-31T12:00:00Z",
)
NUMPY = {T.FLOAT: np.float32, T.FLOAT16: np.float16, T.BFLOAT16: ml_dtypes.bfloat16}
BASE = {"fp32": T.FLOAT, "bf16": T.BFLOAT16}
"""Type of everything that is not quantised (default: fp16)."""
EIGHT_BITS = {"int8": (T.INT8, np.int8), "fp8": (T.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn)}


class _Graph:
    def __init__(self, base: int) -> None:
        self.base, self.nodes, self.weights = base, [], []
        self.random = np.random.default_rng(0)

    def node(self, operator: str, *inputs: str, out: str, **attributes: object) -> str:
        domain = str(attributes.pop("domain", ""))
        self.nodes.append(
            helper.make_node(
                operator, list(inputs), [out], name=f"node_{out}", domain=domain, **attributes
            )
        )
        return out

    def weight(self, name: str, *shape: int, dtype: int | None = None) -> str:
        values = self.random.normal(size=shape, scale=0.1)
        array = values.astype(NUMPY[self.base if dtype is None else dtype])
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def shape(self, name: str, *sizes: int) -> str:
        self.weights.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        return name

    def matmul(self, x: str, weight: str, out: str, shape: tuple[int, int], precision: str) -> str:
        """Add a matrix product, with QuantizeLinear and DequantizeLinear if it is quantised."""
        if precision not in EIGHT_BITS:
            return self.node("MatMul", x, self.weight(weight, *shape), out=out)
        kind, dtype = EIGHT_BITS[precision]
        stored = (self.random.normal(size=shape) * 5).astype(dtype)
        for name, array in (("q", stored), ("zero", np.zeros((), dtype))):
            raw = array.tobytes()
            tensor = helper.make_tensor(f"{weight}.{name}", kind, array.shape, raw, raw=True)
            self.weights.append(tensor)
        scale = numpy_helper.from_array(np.array(0.05, NUMPY[self.base]), f"{weight}.scale")
        self.weights.append(scale)
        pair = (scale.name, f"{weight}.zero")
        self.node("QuantizeLinear", x, *pair, out=f"{out}.q")
        self.node("DequantizeLinear", f"{out}.q", *pair, out=f"{out}.dq")
        self.node("DequantizeLinear", f"{weight}.q", *pair, out=f"{weight}.dq")
        return self.node("MatMul", f"{out}.dq", f"{weight}.dq", out=out)


def model(
    precision: str = "fp32",
    batch: int | None = None,
    *,
    said: str | None = None,
    upscale: str = "fp32",
    unknown: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model that keeps the tensor contract.

    Args:
        said: precision in its description, where it shall lie.
        upscale: "fp32" or "base": type of the transposed convolutions.
        unknown: operators that no run-time knows, put in front of the class logits.
    """
    g = _Graph(BASE.get(precision, T.FLOAT16))
    g.node("Cast", "images", out="floats", to=T.FLOAT)
    g.node("Transpose", "floats", out="planes", perm=[0, 3, 1, 2])
    patch = g.weight("patch", WIDTH, 3, 16, 16, dtype=T.FLOAT)
    g.node("Conv", "planes", patch, out="patches32", strides=[16, 16])
    g.node("Cast", "patches32", out="patches", to=g.base)
    g.node("Reshape", "patches", g.shape("flat", 0, WIDTH, 16), out="columns")
    g.node("Transpose", "columns", out="tokens", perm=[0, 2, 1])
    norm = g.weight("norm.weight", WIDTH), g.weight("norm.bias", WIDTH)
    g.node("LayerNormalization", "tokens", *norm, out="normed")
    for name, source in (("fc1", "normed"), ("fc2", "gelu")):
        g.matmul(source, f"{name}.weight", name, (WIDTH, WIDTH), precision)
        if name == "fc1":
            g.node("Gelu", "fc1", out="gelu")
    limits = [g.shape(f"limit{i}", value) for i, value in enumerate((0, QUERIES, 1))]
    g.node("Slice", "fc2", *limits, limits[2], out="queries")
    last = g.matmul("queries", "class.weight", "classes", (WIDTH, len(SPEC.classes) + 1), "")
    for operator in unknown:
        last = g.node(operator, last, out=f"{operator.lower()}_out", domain="made.up")
    g.node("Cast", last, out="class_logits", to=T.FLOAT)
    kind = g.base if upscale == "base" else T.FLOAT
    picture = g.node("Cast", "patches", out="picture", to=kind)
    for step in (1, 2):
        kernel = g.weight(f"up{step}.weight", WIDTH, WIDTH, 2, 2, dtype=kind)
        picture = g.node("ConvTranspose", picture, kernel, out=f"up{step}", strides=[2, 2])
    g.node("Cast", picture, out="up", to=g.base)
    pixels = (SIDE // 4) ** 2
    g.node("Reshape", "up", g.shape("pixels", 0, WIDTH, pixels), out="features")
    g.node("MatMul", "queries", "features", out="masks")
    g.node("Reshape", "masks", g.shape("square", 0, QUERIES, SIDE // 4, SIDE // 4), out="mask16")
    g.node("Cast", "mask16", out="mask_logits", to=T.FLOAT)
    return _describe(g, said or precision, batch)


def _describe(g: _Graph, precision: str, batch: int | None) -> onnx.ModelProto:
    def value(name: str, kind: int, *sizes: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [batch or "batch", *sizes])

    graph = helper.make_graph(
        g.nodes,
        "made",
        [value("images", T.UINT8, SIDE, SIDE, 3)],
        [
            value("class_logits", T.FLOAT, QUERIES, len(SPEC.classes) + 1),
            value("mask_logits", T.FLOAT, QUERIES, SIDE // 4, SIDE // 4),
        ],
        g.weights,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("made.up", 1)]
    result = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    spec = replace(SPEC, precision=precision, batch=batch)
    helper.set_model_props(result, {METADATA_KEY: spec.to_json()})
    return result


def write(path: Path, precision: str = "fp32", batch: int | None = None, **options: object) -> Path:
    """Write :func:`model` to a file."""
    onnx.save(model(precision, batch, **options), path)  # type: ignore[arg-type]
    return path
