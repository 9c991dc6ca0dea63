"""`build m.onnx -o m.mlpackage`: structure, numbers and errors, all without Core ML."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from support_page import check

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.coreml import build as build_module
from eomt_deploy.backends.coreml.build import build_core_ml
from eomt_deploy.backends.coreml.config import CoreMlConfig
from eomt_deploy.errors import BuildError, ModelFileError, UsageError, VerificationError
from eomt_deploy.model_file import CORE_ML_MODEL, CORE_ML_WEIGHTS, read_core_ml, read_model_file
from eomt_deploy.support.networks import write_model

# Not imported here: that takes seconds, in each test worker.
pytestmark = [
    pytest.mark.external,
    pytest.mark.skipif(find_spec("coremltools") is None, reason="coremltools is not installed"),
]
IOS_18 = 9
"""Version of the format, from coremltools' documentation of `specificationVersion`."""


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """coremltools searches all modules for garbage in each conversion."""
    import coremltools  # noqa: F401

    gc.freeze()


def load_spec(path):
    import coremltools as ct

    return ct.utils.load_spec(str(path))


@pytest.fixture(scope="module")
def package(exported, tmp_path_factory):
    """The FP32 package of the tiny model, and the report of its build."""
    path = tmp_path_factory.mktemp("coreml") / "m.mlpackage"
    return path, build_core_ml(CoreMlConfig(exported("panoptic"), path))


@pytest.fixture(scope="module")
def smaller(exported, tmp_path_factory):
    """Packages with smaller weights and the reports of their builds; each is built once."""

    @cache
    def get(weights):
        path = tmp_path_factory.mktemp("coreml") / "m.mlpackage"
        return path, build_core_ml(CoreMlConfig(exported("panoptic"), path, weights=weights))

    return get


def operations(path):
    function = load_spec(path).mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def test_the_saved_file_has_a_fixed_image_input_and_our_outputs(package, exported):
    path, _ = package
    spec = read_model_file(exported("panoptic")).spec
    proto = load_spec(path)
    assert proto.specificationVersion == IOS_18
    (image,) = proto.description.input
    kind = image.type.imageType
    assert (image.name, kind.width, kind.height) == ("images", *reversed(spec.image_size))
    assert kind.colorSpace == kind.RGB
    assert kind.WhichOneof("SizeFlexibility") is None
    shapes = {o.name: list(o.type.multiArrayType.shape) for o in proto.description.output}
    assert shapes == {
        "class_logits": [1, spec.num_queries, len(spec.classes) + 1],
        "mask_logits": [1, spec.num_queries, *spec.mask_size],
    }
    for operation in operations(path):
        for output in operation.outputs:
            assert all(d.HasField("constant") for d in output.type.tensorType.dimensions)
    # The two opposite transposes of the input cancel out: the first operation is the convolution.
    kinds = [o.type for o in operations(path) if o.type != "const"]
    assert kinds[0] == "conv"
    assert "cast" not in kinds
    user = proto.description.metadata.userDefined
    assert json.loads(user["eomt_deploy.spec"])["task"] == "panoptic"
    facts = read_core_ml(path)
    assert facts.spec == replace(spec, batch=1)
    assert facts.facts["onnx"] == "panoptic.onnx"


def test_the_program_computes_what_onnx_runtime_computes(package, exported):
    path, report = package
    assert report.certificate is None  # Core ML did not run
    assert report.evaluation.relative_max < 1e-5
    assert report.evaluation.images > 1
    from eomt_deploy.backends.coreml.evaluation import EvaluatedPackage

    images = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    with (
        EvaluatedPackage(path, read_core_ml(path).spec) as engine,
        open_engine(exported("panoptic"), backend="onnxruntime", device="cpu") as wanted,
    ):
        for found, right in zip(engine.run(images), wanted.run(images), strict=True):
            np.testing.assert_allclose(found, right, atol=2e-5 * np.abs(right).max())


@pytest.mark.parametrize(("family", "precision"), [("DINOv2", "fp32"), ("DINOv3", "fp16")])
def test_what_is_verified_is_verified_again(family, precision):
    """As in `tests/support/test_trial.py`."""
    check(["coreml"], family, precision)


def test_rope_and_swiglu(tmp_path):
    write_model("DINOv3 huge", "semantic", "fp32", tmp_path / "m.onnx")
    report = build_core_ml(CoreMlConfig(tmp_path / "m.onnx", tmp_path / "m.mlpackage"))
    assert report.evaluation.relative_max < 1e-5
    assert set(report.weight_types) == {"float32"}


def test_fp16(saved, tmp_path):
    path = tmp_path / "m.mlpackage"
    report = build_core_ml(CoreMlConfig(saved("fp16"), path))
    assert report.evaluation.relative_max < 1e-2
    assert set(report.weight_types) == {"float16"}
    casts = [o for o in operations(path) if o.type == "cast"]
    assert len(casts) == 1  # of the input, which Core ML gives in FP32


@pytest.mark.parametrize(
    ("weights", "kind", "bits"),
    [("int8", "int8", 8), ("palette8", "uint8", 8), ("palette6", "uint6", 6)],
)
def test_smaller_weights(weights, kind, bits, package, smaller):
    _, plain = package
    small, report = smaller(weights)
    linear = [o for o in operations(small) if o.type == "linear"]
    assert report.weight_types[kind] == len(linear) == plain.operators["linear"]
    assert report.operators == plain.operators
    assert report.evaluation.relative_max < {8: 0.1, 6: 0.3}[bits]
    assert report.bytes < plain.bytes


def test_int8_in_the_file_is_the_rounded_matrix(exported, smaller):
    """An expansion that shares no code with the build: the stored bytes times the scales."""
    from coremltools.converters.mil.frontend.milproto.load import load

    path, _ = smaller("int8")
    proto = load_spec(path)
    program = load(
        proto,
        specification_version=proto.specificationVersion,
        file_weights_dir=str((path / CORE_ML_WEIGHTS).parent),
    )
    stored = {
        operation.outputs[0].name: operation.data.val.astype(np.float32) * operation.scale.val
        for operation in program.functions["main"].operations
        if operation.op_type == "constexpr_blockwise_shift_scale"
    }
    graph = onnx.load(exported("panoptic")).graph
    exact = {t.name.replace(".", "_"): onnx.numpy_helper.to_array(t) for t in graph.initializer}
    assert len(stored) > 10
    for name, matrix in stored.items():
        original = exact[name].T
        step = np.abs(original).max(axis=1, keepdims=True) / 127
        assert (np.abs(matrix - original) <= 0.501 * step).all()


def test_weights_that_lose_too_much_are_refused(exported, tmp_path, monkeypatch):
    path = tmp_path / "m.mlpackage"
    strict = replace(build_module.SMALL_WEIGHTS, min_agreement=0.999)
    monkeypatch.setattr(build_module, "SMALL_WEIGHTS", strict)
    with pytest.raises(VerificationError, match="palette4 weights") as error:
        build_core_ml(CoreMlConfig(exported("panoptic"), path, weights="palette4"))
    assert "--weights int8" in error.value.fix
    assert list(tmp_path.iterdir()) == []
    unchecked = CoreMlConfig(exported("panoptic"), path, weights="palette4", check=False)
    report = build_core_ml(unchecked)
    assert report.evaluation is None
    assert report.weight_types["uint4"] > 10
    assert any("not compared" in line for line in report.lines())


def test_a_wrong_program_is_found_and_not_published(exported, tmp_path, monkeypatch):
    from eomt_deploy.backends.coreml import program

    right = program.OPERATORS["Softmax"]
    wrong = dict(program.OPERATORS) | {"Softmax": lambda v, a, n: right(v, {"axis": 1}, n)}
    monkeypatch.setattr(program, "OPERATORS", wrong)
    with pytest.raises(VerificationError, match="does not compute what"):
        build_core_ml(CoreMlConfig(exported("panoptic"), tmp_path / "m.mlpackage"))
    assert list(tmp_path.iterdir()) == []


def test_the_structure_is_checked_in_the_files(package, exported, tmp_path):
    from eomt_deploy.backends.coreml.package import check_structure

    path = tmp_path / "m.mlpackage"
    shutil.copytree(package[0], path)
    spec = read_core_ml(path).spec
    proto = load_spec(path)
    proto.specificationVersion = 8
    proto.description.input[0].type.imageType.colorSpace = 30  # BGR
    proto.description.output[0].name = "logits"
    (path / CORE_ML_MODEL).write_bytes(proto.SerializeToString())
    with pytest.raises(BuildError, match=r"version 8.*not an RGB image.*'logits'"):
        check_structure(path, spec)


def test_command_line(exported, cli, tmp_path):
    path, report = tmp_path / "m.mlpackage", tmp_path / "r.json"
    build = ("build", exported("panoptic"), "-o", f"{path}/", "--json", report)  # with a slash
    code, out, err = cli(*build)
    assert code == 0, err
    assert "Core ML itself did not run" in out
    assert "Running MIL" not in err
    data = json.loads(report.read_text())
    assert data["evaluation"]["relative_max"] < 1e-5
    assert {p.name for p in path.rglob("*") if p.is_file()} == {
        "Manifest.json", "model.mlmodel", "weight.bin",
    }  # fmt: skip
    assert sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) == data["bytes"]
    code, out, err = cli("inspect", path)
    assert code == 0, err
    assert "CPU and GPU" in out
    assert json.loads(cli("inspect", f"{path}/", "--json")[1])["spec"]["batch"] == 1

    # Ours is replaced; other files are not.
    code, _, err = cli(*build, "--no-check")
    assert code == 0, err
    (path / "notes.txt").write_text("mine")
    code, _, err = cli(*build)
    assert (code, "notes.txt, which eomt-deploy did not write" in err.replace("\n", " ")) == (2, 1)
    assert (path / "notes.txt").read_text() == "mine"
    (path / "notes.txt").unlink()
    (path / CORE_ML_MODEL).write_bytes(b"of somebody else")
    code, _, err = cli(*build)
    assert (code, "did not write" in err) == (2, True)
    assert cli(*build, "--overwrite", "--no-check")[0] == 0

    (path / CORE_ML_WEIGHTS).write_bytes(b"0")
    code, _, err = cli("inspect", path)
    assert (code, "missing, damaged, or belongs" in err.replace("\n", " ")) == (2, True)
    for command in (("predict", path, "a.png", "-o", "o"), ("verify", path)):
        code, _, err = cli(*command)
        assert (code, "Traceback" in err) == (2, False)
    abilities = {a["name"]: a for a in json.loads(cli("doctor", "--json")[1])["abilities"]}
    assert abilities["build .mlpackage with Core ML"]["works"]


def test_an_input_inside_the_package_is_never_replaced(exported, tmp_path):
    path = tmp_path / "m.mlpackage"
    path.mkdir()
    model = shutil.copy(exported("panoptic"), path / "m.onnx")
    with pytest.raises(UsageError, match="an input of this command"):
        build_core_ml(CoreMlConfig(path / "m.onnx", path, overwrite=True))
    assert model.exists()


def test_models_that_cannot_be_built(saved, exported, tmp_path):
    path = tmp_path / "m.mlpackage"
    for precision, words in (("bf16", "no BF16"), ("int8", "quantised activations")):
        with pytest.raises(UsageError, match=f"is {precision}") as error:
            build_core_ml(CoreMlConfig(saved(precision), path))
        assert words in error.value.why
        assert "--precision fp16" in error.value.fix
    with pytest.raises(UsageError, match="fixed batch size 2"):
        build_core_ml(CoreMlConfig(saved("fp32", 2), path))
    build_core_ml(CoreMlConfig(saved("fp32", 1), path, check=False))
    with pytest.raises(UsageError, match="--weights 'int3' is unknown"):
        CoreMlConfig(exported("panoptic"), path, weights="int3")
    with pytest.raises(UsageError, match=r"needs \.mlpackage"):
        CoreMlConfig(exported("panoptic"), tmp_path / "m.mlmodel")


def test_damaged_packages(package, tmp_path):
    for content in (b"", b"\x12\xff", (package[0] / CORE_ML_MODEL).read_bytes()[:500]):
        path = tmp_path / "m.mlpackage" / CORE_ML_MODEL
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(ModelFileError):
            read_core_ml(tmp_path / "m.mlpackage")
    with pytest.raises(ModelFileError, match="is not a Core ML package"):
        read_core_ml(tmp_path / "none.mlpackage")
