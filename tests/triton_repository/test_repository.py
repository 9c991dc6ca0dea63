"""What is written, what is refused, and what stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_files import make_engine, make_xml

from eomt_deploy import Segmenter
from eomt_deploy.errors import ModelFileError, OutputError, UsageError
from eomt_deploy.triton.options import TritonConfig
from eomt_deploy.triton.repository import is_our_version, write_repository
from eomt_deploy.triton.settings import Settings


def write(*models, output, **options):
    return write_repository(TritonConfig(models, output, **options))


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def repository(exported, tmp_path):
    folder = tmp_path / "repo"
    write(exported("panoptic"), output=folder, name="street")
    return folder


def test_the_command_writes_several_models(cli, exported, tmp_path):
    code, out, _ = cli("triton", exported("panoptic"), exported("semantic"), "-o", tmp_path / "r")
    assert code == 0
    assert out.splitlines() == [
        f"wrote {tmp_path / 'r' / 'panoptic' / '1'}",
        f"wrote {tmp_path / 'r' / 'semantic' / '1'}",
        f"start the server: tritonserver --model-repository {tmp_path / 'r'}",
    ]
    assert sorted(p.relative_to(tmp_path / "r" / "panoptic").as_posix() for p in
                  (tmp_path / "r" / "panoptic").rglob("*") if p.is_file()) == [
        "1/eomt-deploy.json", "1/model.onnx", "1/model.py", "config.pbtxt",
        "warmup/eomt-deploy-image",
    ]  # fmt: skip


def test_the_model_file_in_the_repository_is_complete(repository, image_path):
    with Segmenter(repository / "street" / "1" / "model.onnx") as segmenter:
        assert segmenter.predict(image_path).size == (400, 600)


def test_settings_survive_a_round_trip(repository):
    settings = Settings.read(repository / "street" / "1")
    assert settings.role == "segment"
    assert settings.model == "model.onnx"
    assert set(settings.files) == {"model.onnx", "model.py"}


def test_damaged_settings_name_the_field(repository):
    path = repository / "street" / "1" / "eomt-deploy.json"
    path.write_text(path.read_text().replace('"segment"', '"other"'))
    with pytest.raises(ModelFileError, match="`role` must be"):
        Settings.read(path.parent)


def test_a_second_version_leaves_the_first_as_it_is(repository, exported):
    before = contents(repository)
    lines = write(exported("semantic"), output=repository, name="street", version=2)
    after = contents(repository)
    assert {path: after[path] for path in before} == before
    assert {path.parent.name for path in set(after) - set(before)} == {"2"}
    assert len(lines) == 1


def test_new_settings_apply_to_all_versions_and_are_named(repository, exported):
    version = contents(repository / "street" / "1")
    lines = write(exported("semantic"), output=repository, name="street", version=2, instances=2)
    assert (
        lines[0]
        == f"{repository / 'street' / 'config.pbtxt'} changes; it also applies to version 1"
    )
    assert "count: 2" in (repository / "street" / "config.pbtxt").read_text()
    assert contents(repository / "street" / "1") == version


def test_versions_with_other_shapes_are_refused(exported, tmp_path):
    write(make_xml(tmp_path, "panoptic"), output=tmp_path / "repo", form="bls")
    before = contents(tmp_path / "repo")
    with pytest.raises(UsageError, match="has other inputs, outputs or another form"):
        write(exported("panoptic"), output=tmp_path / "repo", form="bls", name="street", version=2)
    with pytest.raises(UsageError, match="has other inputs, outputs or another form"):
        write(exported("panoptic"), output=tmp_path / "repo", name="street", version=2)
    assert contents(tmp_path / "repo") == before


def test_two_versions_of_bls_call_their_own_network(exported, tmp_path):
    for version in (1, 2):
        write(exported("panoptic"), output=tmp_path, form="bls", name="street", version=version)
    assert sorted(path.parts[-2] for path in tmp_path.glob("street_network/*/model.onnx")) == [
        "1",
        "2",
    ]


def test_an_ensemble_has_one_version(exported, tmp_path):
    write(exported("panoptic"), output=tmp_path, form="ensemble", name="street")
    with pytest.raises(UsageError, match="an ensemble cannot have several"):
        write(exported("panoptic"), output=tmp_path, form="ensemble", name="street", version=2)


def test_the_same_command_replaces_what_it_wrote(repository, exported):
    cache = repository / "street" / "1" / "__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_bytes(b"")  # as Triton leaves it behind
    write(exported("semantic"), output=repository, name="street")
    assert Settings.read(repository / "street" / "1").spec.task == "semantic"
    assert not cache.exists()


@pytest.mark.parametrize("file", ["model.py", "notes.txt"])
def test_files_of_the_user_are_not_replaced(repository, exported, file):
    path = repository / "street" / "1" / file
    path.write_text("mine")
    assert not is_our_version(path.parent)
    with pytest.raises(OutputError, match="which eomt-deploy did not write"):
        write(exported("panoptic"), output=repository, name="street")
    assert path.read_text() == "mine"
    write(exported("panoptic"), output=repository, name="street", overwrite=True)
    assert is_our_version(path.parent)


def test_a_changed_configuration_is_not_replaced(repository, exported):
    path = repository / "street" / "config.pbtxt"
    path.write_text(path.read_text().replace("count: 1", "count: 7"))
    changed = path.read_text()
    with pytest.raises(OutputError, match="was changed since eomt-deploy wrote it"):
        write(exported("panoptic"), output=repository, name="street", version=2)
    assert path.read_text() == changed
    assert not (repository / "street" / "2").exists()
    write(exported("panoptic"), output=repository, name="street", version=2, overwrite=True)
    assert "count: 1" in path.read_text()


def test_an_input_is_never_replaced(repository):
    model = repository / "street" / "1" / "model.onnx"
    with pytest.raises(UsageError, match="which is an input of this command"):
        write(model, output=repository, name="street", overwrite=True)
    write(model, output=repository, name="street", version=2)
    assert (repository / "street" / "2" / "model.onnx").read_bytes() == model.read_bytes()


def test_nothing_is_written_if_the_second_model_is_refused(exported, tmp_path):
    other = tmp_path / "other.onnx"
    other.write_bytes(b"")
    with pytest.raises(ModelFileError):
        write(exported("panoptic"), other, output=tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_an_engine_without_weights_brings_its_model(exported, tmp_path):
    shutil.copyfile(exported("panoptic"), tmp_path / "street.onnx")
    engine = make_engine(tmp_path, stripped=True)
    write(engine, output=tmp_path / "repo")
    version = tmp_path / "repo" / "street" / "1"
    assert {path.name for path in version.iterdir()} == {
        "eomt-deploy.json", "model.engine", "model.engine.json", "model.py", "street.onnx",
    }  # fmt: skip
    (tmp_path / "street.onnx").unlink()
    with pytest.raises(ModelFileError, match="contains no weights"):
        write(engine, output=tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"target": "tensorrt-rtx"}, {"form": "bls"}, "no backend that runs street.engine"),
        ({"batch": (1, 1, 1)}, {"form": "ensemble"}, "fixed batch"),
        ({"batch": (1, 2, 2)}, {"form": "ensemble"}, "is too small"),
        ({}, {"form": "ensemble", "max_batch": 2}, "is too small"),
        ({}, {"device": "cpu"}, "does not run on the device 'cpu'"),
        ({}, {"backend": "openvino"}, "The backend 'openvino' does not run street.engine."),
        (
            {"batch": (2, 2, 2)},
            {"form": "bls", "max_queue_delay_us": 5},
            "--max-queue-delay-us does",
        ),
        ({}, {"form": "both"}, "no form 'both'"),
        ({}, {"form": "bls", "backend": "tensorrt"}, "--backend does not apply"),
        ({}, {"device": "tpu"}, "no device 'tpu'"),
        ({}, {"version": 0}, "--version must be between"),
        ({}, {"instances": 0}, "--instances must be between"),
        ({}, {"max_queue_delay_us": -1}, "--max-queue-delay-us must be between"),
        ({}, {"name": "../x"}, "cannot be the name of a model"),
        ({}, {"max_pixels": 0}, "max_pixels"),
    ],
)
def test_options_that_do_not_fit(tmp_path, changes, options, words):
    engine = make_engine(tmp_path, **changes)
    with pytest.raises(UsageError) as error:
        write(engine, output=tmp_path / "repo", **options)
    assert words in error.value.what
    assert error.value.fix
    assert not (tmp_path / "repo").exists()


def test_a_smaller_batch_of_the_model_is_named(tmp_path):
    engine = make_engine(tmp_path, (1, 2, 4))
    lines = write(engine, output=tmp_path / "repo", form="bls", max_batch=16)
    assert (
        lines[0] == "street.engine takes at most 4 inputs in a call, which replaces --max-batch 16"
    )
    assert not [
        line for line in write(engine, output=tmp_path / "b", form="bls") if "takes" in line
    ]


def test_names_must_differ(exported, tmp_path):
    path = exported("panoptic")
    network = tmp_path / "panoptic_network.onnx"
    shutil.copyfile(path, network)
    with pytest.raises(UsageError, match="Two of the models would be written to"):
        write(path, network, output=tmp_path / "repo", form="bls")
    with pytest.raises(UsageError, match="would both be the model panoptic"):
        TritonConfig((path, Path("other/panoptic.onnx")), tmp_path)
    with pytest.raises(UsageError, match="applies to one model"):
        TritonConfig((path, Path("b.onnx")), tmp_path, name="street")


@pytest.mark.parametrize("name", ["missing.onnx", "model.trt", "model"])
def test_files_that_are_not_models(tmp_path, name):
    with pytest.raises(ModelFileError):
        write(tmp_path / name, output=tmp_path / "repo")


def test_an_xml_without_its_weights(tmp_path):
    path = make_xml(tmp_path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelFileError, match=r"street\.bin is missing"):
        write(path, output=tmp_path / "repo")
