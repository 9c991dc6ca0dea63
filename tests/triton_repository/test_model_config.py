"""Every config.pbtxt is valid for Triton's own schema, and the models of a form fit together."""

from __future__ import annotations

import json
from itertools import product

import onnxruntime
import pytest
from google.protobuf import text_format
from made_files import make_engine, make_xml
from tritonclient.grpc import model_config_pb2 as schema

from eomt_deploy.contract import INPUT, OUTPUTS
from eomt_deploy.external_data import side_files
from eomt_deploy.triton.options import TritonConfig
from eomt_deploy.triton.pbtxt import Word, to_text
from eomt_deploy.triton.repository import write_repository

KINDS = schema.ModelInstanceGroup
TYPES = {"tensor(uint8)": schema.TYPE_UINT8,
         "tensor(float)": schema.TYPE_FP32}  # fmt: skip


def parse(folder):
    """The config.pbtxt of a model; unknown fields and wrong types are errors."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def write(model, output, **options):
    lines = write_repository(TritonConfig((model,), output, **options))
    return {path.name: parse(path) for path in output.iterdir()}, lines


def shapes(tensors):
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in tensors}


def with_batch(config, tensors):
    """Types and complete shapes of the tensors of a model."""
    first = [-1] if config.max_batch_size else []
    return {name: (kind, first + dims) for name, (kind, dims) in shapes(tensors).items()}


@pytest.mark.parametrize(
    ("task", "form", "device", "instances", "delay"),
    product(
        ("semantic", "instance", "panoptic"),
        ("python", "bls", "ensemble"),
        (None, "cpu", "cuda"),
        (None, 3),
        (0, 500),
    ),
)
def test_the_schema_accepts_every_combination(
    exported, tmp_path, task, form, device, instances, delay
):
    options = {"form": form, "device": device, "instances": instances, "max_queue_delay_us": delay}
    configs, _ = write(exported(task), tmp_path, name="street", **options)
    assert len(configs) == {"python": 1, "bls": 2, "ensemble": 4}[form]
    for name, config in configs.items():
        assert config.name == name
        assert config.backend == "python" or config.platform in ("ensemble", "onnxruntime_onnx")
    front = configs["street"]
    assert with_batch(front, front.input) == {"image": (schema.TYPE_STRING, [-1, 1])}
    assert with_batch(front, front.output) == {"result": (schema.TYPE_STRING, [-1, 1])}
    batching = front if form == "python" else configs["street_network"]
    assert batching.HasField("dynamic_batching")
    assert batching.dynamic_batching.max_queue_delay_microseconds == delay
    assert batching.max_batch_size == 8
    kind = {None: KINDS.KIND_AUTO, "cpu": KINDS.KIND_CPU, "cuda": KINDS.KIND_GPU}[device]
    assert [group.kind for group in batching.instance_group] == [kind]
    if form != "ensemble":
        assert front.version_policy.HasField("all")
        assert front.instance_group[0].count == (instances or (1 if form == "python" else 2))


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_the_network_has_the_shapes_of_the_file(exported, tmp_path, task):
    configs, _ = write(exported(task), tmp_path, name="street", form="bls")
    config = configs["street_network"]
    file = tmp_path / "street_network" / "1" / config.default_model_filename
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = {
        value.name: (TYPES[value.type], [s if isinstance(s, int) else -1 for s in value.shape])
        for value in (*session.get_inputs(), *session.get_outputs())
    }
    assert with_batch(config, (*config.input, *config.output)) == found


def test_the_steps_of_an_ensemble_fit_together(exported, tmp_path):
    configs, _ = write(exported("semantic"), tmp_path, name="street", form="ensemble")
    ensemble = configs["street"]
    known = with_batch(ensemble, ensemble.input)
    for step in ensemble.ensemble_scheduling.step:
        model = configs[step.model_name]
        inputs, outputs = with_batch(model, model.input), with_batch(model, model.output)
        assert {name: known[tensor] for name, tensor in step.input_map.items()} == inputs
        known |= {step.output_map[name]: outputs[name] for name in outputs}
    assert known["result"] == with_batch(ensemble, ensemble.output)["result"]


def test_a_fixed_batch_is_part_of_the_shapes(tmp_path):
    configs, _ = write(make_xml(tmp_path, batch=4), tmp_path / "repo", form="bls")
    network = configs["street_network"]
    assert (network.backend, network.max_batch_size) == ("openvino", 0)
    assert not network.HasField("dynamic_batching")
    assert shapes(network.input) == {INPUT: (schema.TYPE_UINT8, [4, 64, 64, 3])}
    assert shapes(network.output)[OUTPUTS[0]] == (schema.TYPE_FP32, [4, 12, 6])
    assert list(network.model_warmup[0].inputs[INPUT].dims) == [4, 64, 64, 3]
    assert network.instance_group[0].kind == KINDS.KIND_CPU
    settings = json.loads((tmp_path / "repo/street/1/eomt-deploy.json").read_text())
    assert settings["batch"] == [4, 4]


@pytest.mark.parametrize(
    ("batch", "max_batch", "largest", "graphs"),
    [
        ((1, 4, 8), 8, 8, [1, 2, 4, 8]),
        ((1, 4, 6), 8, 6, [1, 2, 4, 6]),
        ((1, 4, 32), 5, 5, [1, 2, 4, 5]),
        ((2, 4, 4), 8, 4, [2, 4]),
        ((3, 3, 3), 8, 0, [0]),
        ((1, 1, 4096), 4096, 4096, [32, 64, 128, 256, 512, 1024, 2048, 4096]),
    ],
)
def test_a_tensorrt_engine_has_cuda_graphs(tmp_path, batch, max_batch, largest, graphs):
    engine = make_engine(tmp_path, batch)
    configs, lines = write(engine, tmp_path / "repo", form="bls", max_batch=max_batch)
    network = configs["street_network"]
    assert (network.platform, network.max_batch_size) == ("tensorrt_plan", largest)
    assert network.instance_group[0].kind == KINDS.KIND_GPU
    assert network.optimization.cuda.graphs
    specs = network.optimization.cuda.graph_spec
    assert [spec.batch_size for spec in specs] == graphs
    fixed = [] if largest else [batch[0]]
    assert all(list(spec.input[INPUT].dim) == [*fixed, 64, 64, 3] for spec in specs)
    assert "needs TensorRT 10.13.0.35 and a GPU of compute capability 8.9" in lines[-1]
    version = tmp_path / "repo" / "street_network" / "1"
    assert (version / "model.plan").read_bytes() == b"plan"
    assert (version / "model.plan.json").is_file()


def test_warm_up(exported, tmp_path):
    configs, _ = write(exported("panoptic"), tmp_path, name="street")
    sample = configs["street"].model_warmup[0]
    file = tmp_path / "street" / "warmup" / sample.inputs["image"].input_data_file
    content = file.read_bytes()
    assert int.from_bytes(content[:4], "little") == len(content) - 4
    assert content[4:6] == b"\xff\xd8"  # a JPEG
    network = write(exported("panoptic"), tmp_path / "bls", form="bls", name="street", max_batch=5)
    assert [w.batch_size for w in network[0]["street_network"].model_warmup] == [1, 5]


def test_side_files_keep_the_names_that_the_model_refers_to(exported, tmp_path):
    import onnx

    given = tmp_path / "given" / "large.onnx"
    given.parent.mkdir()
    model = onnx.load(exported("panoptic"))
    onnx.save(
        model, given, save_as_external_data=True, location="large.onnx.data", size_threshold=1024
    )
    write(given, tmp_path / "repo", form="bls")
    file = tmp_path / "repo" / "large_network" / "1" / "model.onnx"
    assert [side.name for side in side_files(file)] == ["large.onnx.data"]
    onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_the_text_format():
    text = to_text(
        {
            "name": 'a "quoted" name',
            "kind": Word("KIND_CPU"),
            "flag": True,
            "dims": [1, -1],
            "empty": {},
            "items": [{"x": 1}, {"x": 2}],
        }
    )
    assert text == (
        'name: "a \\"quoted\\" name"\nkind: KIND_CPU\nflag: true\ndims: [1, -1]\nempty {}\n'
        "items {\n  x: 1\n}\nitems {\n  x: 2\n}\n"
    )


def test_a_link_gives_its_name_to_a_copy_of_the_file(exported, tmp_path):
    link = tmp_path / "my model (1).onnx"
    link.symlink_to(exported("panoptic"))
    configs, _ = write(link, tmp_path / "repo")
    assert list(configs) == ["my-model-1"]
    assert not (tmp_path / "repo" / "my-model-1" / "1" / "model.onnx").is_symlink()
