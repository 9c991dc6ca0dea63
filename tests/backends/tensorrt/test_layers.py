from __future__ import annotations

import json

import hand_made
import pytest

from eomt_deploy.backends.tensorrt import library
from eomt_deploy.backends.tensorrt.layers import Layer, LayerReport, read_inspector, read_network


def network_layers(**model):
    module = library.load("tensorrt-rtx")
    builder = module.Builder(library.logger("tensorrt-rtx"))
    network = builder.create_network(1)
    parser = module.OnnxParser(network, builder.logger)
    assert parser.parse(hand_made.model(**model).SerializeToString())
    return read_network(network)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_network_reports_its_precision(precision):
    report = network_layers(precision=precision)
    assert report.precision == precision
    assert sum(report.heavy.values()) == 7
    # Patch embedding and upscaling are in FP32 in all of them.
    high = {"node_patches32", "node_up1", "node_up2"}
    assert high <= set(report.higher) or precision == "fp32"
    assert not any(name in report.higher for name in ("node_fc1", "node_fc2"))
    assert sum(count for *_, count in report.table()) == len(report.layers)


def test_weights_alone_in_eight_bits_are_no_eight_bit_product():
    model = hand_made.model(precision="int8")
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[0].endswith(".dq"):
            source = next(n for n in model.graph.node if n.output[0] == f"{node.output[0]}.q")
            node.input[0] = source.input[0]
    module = library.load("tensorrt-rtx")
    builder = module.Builder(library.logger("tensorrt-rtx"))
    network = builder.create_network(1)
    parser = module.OnnxParser(network, builder.logger)
    assert parser.parse(model.SerializeToString())
    assert read_network(network).precision == "fp16"


def test_the_majority_of_layers_decides_but_one_quantised_is_enough():
    def report(**counts):
        layers = [Layer("x", "gemm", p, True) for p, n in counts.items() for _ in range(n)]
        return LayerReport("engine", (*layers, Layer("s", "softmax", "fp32", False)))

    assert report(fp16=9, fp32=3).precision == "fp16"
    assert report(fp16=1, fp32=60).precision == "fp32"
    assert report(fp16=50, int8=1).precision == "int8"
    assert report().precision is None
    assert report().higher == ()


# Output of TensorRT 10 and 11: TensorRT 11 separates the type from the layout.
TEN = {
    "Layers": [
        {"Name": "copy", "LayerType": "Reformat",
         "Inputs": [{"Name": "images", "Format/Datatype": "Row major linear UINT8 format"}],
         "Outputs": [{"Name": "x", "Format/Datatype": "Row major linear FP16 format"}]},
        {"Name": "fc1", "LayerType": "gemm", "TacticName": "sm80_xmma_gemm_f16f16",
         "Inputs": [{"Format/Datatype": "Half"}, {"Format/Datatype": "Float"}],
         "Outputs": [{"Format/Datatype": "Half"}]},
        {"Name": "mha", "LayerType": "kgen", "TacticName": "_gemm_mha_v2_0x12",
         "Inputs": [{"Format/Datatype": "Half"}], "Outputs": [{"Format/Datatype": "Half"}]},
        {"Name": "up", "LayerType": "CaskDeconvolutionV2",
         "Inputs": [{"Format/Datatype": "Float"}], "Outputs": [{"Format/Datatype": "Float"}]},
        {"Name": "sum", "LayerType": "kgen", "TacticName": "__myl_CastConvAdd_0x99",
         "Inputs": [{"Format/Datatype": "Float"}], "Outputs": [{"Format/Datatype": "Float"}]},
    ],
    "Bindings": ["images"],
}  # fmt: skip


def test_inspector_of_tensorrt_10():
    report = read_inspector(json.dumps(TEN))
    assert report is not None
    assert (report.source, report.precision) == ("engine", "fp16")
    assert dict(report.heavy) == {"fp16": 2, "fp32": 1}
    assert report.higher == ("up",)
    assert ("Reformat", "fp16", 1) in report.table()


@pytest.mark.parametrize(
    ("said", "precision"),
    [("Int8", "int8"), ("BFloat16", "bf16"), ("FP8", "fp8"), ("Half", "fp16"), ("Float", "fp32")],
)
def test_inspector_of_tensorrt_11(said, precision):
    tensor = {"Name": "x", "DataType": said, "Format": "Row major linear (kLINEAR)"}
    layer = {"Name": "fc1", "LayerType": "gemm", "Inputs": [tensor], "Outputs": [tensor]}
    report = read_inspector(json.dumps({"Layers": [layer], "I/O Tensors": []}))
    assert report is not None
    assert report.precision == precision


@pytest.mark.parametrize(
    "text", ["", "null", "{}", '{"Layers": ["fc1", "fc2"]}', '{"Layers": [{"LayerType": "gemm"}]}']
)
def test_inspector_without_precision(text):
    assert read_inspector(text) is None
