"""A wrong part of a network is found: with real backends, and a fault in their graph rewrite."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from changed_engine import Changed, same
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.backends import bisection, open_engine
from eomt_deploy.backends.bisection import Part, difference, parts, search
from eomt_deploy.backends.onnxruntime import graph as rewrite
from eomt_deploy.backends.openvino import engine as openvino_engine
from eomt_deploy.errors import BuildError, UsageError

openvino = openvino_engine.openvino


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def faulty_openvino(monkeypatch):
    """Let OpenVINO's graph rewrite double the weights with the given name."""

    def install(name):
        real = openvino_engine.normalize_channels_in_place

        def wrong(model):
            real(model)
            for node in model.get_ops():
                if node.get_type_name() == "Constant" and node.get_friendly_name() == name:
                    doubled = openvino.opset13.constant(node.data * 2).output(0)
                    for reader in list(node.output(0).get_target_inputs()):
                        reader.replace_source_output(doubled)

        monkeypatch.setattr(openvino_engine, "normalize_channels_in_place", wrong)

    return install


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        ("backbone.blocks.0.attn.qkv.weight", "block 0"),
        ("backbone.blocks.2.mlp.fc1.weight", "block 2"),
        ("mask_head.2.weight", "mask_head.2"),
        ("class_head.weight", "class_head"),
    ],
)
def test_the_wrong_part_of_an_onnx_model_is_found(
    exported, faulty_openvino, image_path, cli, weights, part
):
    faulty_openvino(weights)
    command = ("verify", exported("panoptic"), image_path, "--backend", "openvino", "--bisect")
    code, out, err = cli(*command, "--json", "-")
    assert code == 4
    assert f"The first part whose output differs is {part}:" in err
    report = json.loads(out)
    assert report["passed"] is False
    assert report["bisection"]["first"] == part
    errors = report["bisection"]["errors"]
    before = list(errors)[: list(errors).index(part)]
    assert all(errors[name] < 1e-4 for name in before)
    assert errors[part] > report["bisection"]["limit"]


def test_a_built_file_is_built_again_for_each_part(
    exported, faulty_openvino, tmp_path, image_path, cli
):
    model, output = tmp_path / "m.onnx", tmp_path / "m.xml"
    model.write_bytes(exported("panoptic").read_bytes())
    assert cli("build", model, "-o", output, "--arithmetic", "fp32")[0] == 0
    faulty_openvino("backbone.blocks.1.attn.proj.weight")
    code, _, err = cli("verify", output, image_path, "--bisect")
    assert code == 4
    assert "The first part whose output differs is block 1:" in err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == [
        "m.bin", "m.onnx", "m.xml",
    ]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch(saved, faulty_openvino, image_path, cli, batch):
    faulty_openvino("backbone.blocks.1.mlp.fc2.weight")
    model = saved("fp32", batch)
    code, _, err = cli("verify", model, image_path, "--backend", "openvino", "--bisect")
    assert code == 4
    assert "The first part whose output differs is block 1:" in err


def test_an_error_of_the_search_does_not_hide_the_result(
    exported, faulty_openvino, image_path, tmp_path, monkeypatch, cli
):
    def fails(*_):
        raise BuildError("It cannot be built.")

    faulty_openvino("backbone.blocks.1.mlp.fc2.weight")
    monkeypatch.setattr(bisection, "find_fault", fails)
    command = ("verify", exported("panoptic"), image_path, "--backend", "openvino", "--bisect")
    code, _, err = cli(*command, "--json", tmp_path / "r.json")
    assert code == 4
    assert "why: The part was not found: It cannot be built." in err
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["passed"], report["bisection"]) == (False, None)


def test_onnx_runtime_with_a_fault_in_its_graph_rewrite(saved, monkeypatch, image_path, cli):
    real = rewrite.compute_in_fp32

    def wrong(model):
        real(model)
        for tensor in model.graph.initializer:
            if tensor.name == "backbone.blocks.2.attn.proj.weight":
                values = onnx.numpy_helper.to_array(tensor) * 2
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    command = ("verify", saved("fp16"), image_path, "--backend", "onnxruntime", "--bisect")
    assert cli(*command)[0] == 0
    monkeypatch.setattr(rewrite, "compute_in_fp32", wrong)
    code, _, err = cli(*command)
    assert code == 4
    assert "The first part whose output differs is block 2:" in err


def test_a_fault_that_disappears_when_it_is_looked_for(exported, monkeypatch, image_path, cli):
    real = openvino_engine.normalize_channels_in_place

    def wrong_unless_marked(model):
        real(model)
        if len(model.outputs) == 2:
            faulty = model.output("class_logits").get_node().input(0)
            source = faulty.get_source_output()
            faulty.replace_source_output(openvino.opset13.multiply(
                source, openvino.opset13.constant(np.float32(2))).output(0))  # fmt: skip

    monkeypatch.setattr(openvino_engine, "normalize_channels_in_place", wrong_unless_marked)
    command = ("verify", exported("panoptic"), image_path, "--backend", "openvino", "--bisect")
    code, _, err = cli(*command)
    assert code == 4
    assert "No part differs while its output is visible" in err


@given(st.integers(1, 60), st.data())
def test_search_finds_the_first_wrong_part_in_few_steps(count, data):
    first = data.draw(st.integers(0, count))
    chain = [Part(str(number), "") for number in range(count)]
    tried = []

    def wrong(part):
        tried.append(part)
        return int(part.name) >= first

    found = search(chain, wrong)
    assert found == (chain[first] if first < count else None)
    assert len(tried) <= 2 + np.log2(count)
    assert len(tried) == len(set(tried))


def test_parts_of_the_network(exported):
    chain, rest = parts(onnx.load(exported("panoptic")))
    assert [p.name for p in chain] == ["the patch embedding", "block 0", "block 1", "block 2"]
    assert [p.name for p in rest][:3] == ["backbone.norm", "upscale.0", "upscale.1"]
    assert {"mask_head.0", "mask_head.4", "class_head"} <= {p.name for p in rest}
    with pytest.raises(UsageError, match="do not have the names"):
        parts(onnx.ModelProto())


def test_a_wrong_channel_beside_a_huge_one_is_seen():
    rng = np.random.default_rng(0)
    want = rng.normal(size=(1, 50, 8)).astype(np.float32)
    want[..., 0] *= 1000
    have = want.copy()
    have[..., 3] = rng.permutation(have[..., 3].ravel()).reshape(1, 50)
    assert np.abs(have - want).max() / np.abs(want).max() < 0.01
    assert difference(have, want) > 0.3
    assert difference(want, want) == 0
    have[0, 0, 0] = np.nan
    assert difference(have, want) == np.inf
    features = want.transpose(0, 2, 1).reshape(1, 8, 10, 5)
    assert difference(features, features) == 0


def test_backends_without_other_outputs_say_so(exported, tmp_path):
    with open_engine(exported("panoptic"), backend="onnxruntime") as inner:
        engine = Changed(inner, same)
        with pytest.raises(UsageError, match="changed returns only class_logits and mask_logits"):
            engine.run_named(np.zeros((1, 64, 64, 3), np.uint8), ["checked"])
        engine.backend = "aotinductor"
        with pytest.raises(UsageError, match=r"--bisect does not apply to \.pt2 files"):
            bisection.find_fault(tmp_path / "m.pt2", exported("panoptic"), engine, np.zeros(1), 0.1)
