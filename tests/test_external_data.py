from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from eomt_deploy import external_data
from eomt_deploy.backends import open_engine
from eomt_deploy.backends.openvino.engine import OpenVinoEngine
from eomt_deploy.errors import ModelFileError
from eomt_deploy.external_data import CHILDREN, side_files, without_links
from eomt_deploy.model_file import read_model_file

BACKENDS = ("onnxruntime", "openvino", "emulation")
IMAGES = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "eomt-deploy"


@pytest.fixture
def external(tmp_path, exported) -> Callable[..., Path]:
    """The tiny model with its weights in a side file, named in the model as ``location``."""

    def make(location: str = "m.onnx.data", folder: str = "model") -> Path:
        path = tmp_path / folder / "m.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        model = onnx.load(exported("semantic"))
        onnx.save_model(
            model, path, save_as_external_data=True, location="made.data", size_threshold=100
        )
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
        return path

    return make


def outputs(path: Path, backend: str) -> list[np.ndarray]:
    with open_engine(path, backend=backend, threads=1) as engine:
        return list(engine.run(IMAGES))


def files_below(folder: Path) -> list[Path]:
    """All files except those in the cache."""
    return sorted(p for p in folder.rglob("*") if p.relative_to(folder).parts[0] != "cache")


def hub_layout(path: Path, data: Path, folder: Path) -> Path:
    """Both files as links into a folder of blobs, as in the cache of huggingface_hub."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for source, name, blob in ((path, "m.onnx", "4f1e"), (data, "m.onnx.data", "9c0d")):
        shutil.copy(source, blobs / blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    return snapshot / "m.onnx"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layout_of_the_hugging_face_cache(external, exported, tmp_path, backend, monkeypatch):
    path = external()
    linked = hub_layout(path, path.with_name("made.data"), tmp_path / "hub")
    before = files_below(tmp_path)
    wanted = outputs(exported("semantic"), backend)
    for _ in range(2):  # the second time, OpenVINO loads its compiled model
        for have, want in zip(outputs(linked, backend), wanted, strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)
    monkeypatch.chdir(linked.parent)
    outputs(Path("m.onnx"), backend)
    assert files_below(tmp_path) == before  # nothing is left beside the blobs
    assert read_model_file(linked).bytes == sum(f.stat().st_size for f in linked.parent.iterdir())


def test_files_that_cannot_be_linked_are_copied(external, tmp_path, monkeypatch):
    path = external("made.data")
    with without_links(path) as same:
        assert same == path
    path = external()
    linked = hub_layout(path, path.with_name("made.data"), tmp_path / "hub")

    def refuse(*_):
        raise OSError("Invalid cross-device link")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with without_links(linked) as copied:
            assert copied.read_bytes() == linked.read_bytes()
            assert not copied.is_symlink()
            assert copied.with_name("m.onnx.data").stat().st_nlink == 1
        assert not copied.exists()
        patch.setattr(shutil, "copyfile", refuse)
        with (
            pytest.raises(ModelFileError, match=r"cannot be copied(.|\n)*cross-device(.|\n)*cp -L"),
            OpenVinoEngine(linked),
        ):
            pass
    with without_links(linked) as second:
        assert second.with_name("m.onnx.data").stat().st_nlink == 2
    assert linked.with_name("m.onnx.data").stat().st_nlink == 1


@pytest.mark.parametrize("location", ["weights/w.bin", "./w.bin", "w w.bin"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_files_inside_the_folder_are_read(external, exported, backend, location):
    path = external(location)
    (path.parent / location).parent.mkdir(exist_ok=True)
    path.with_name("made.data").rename(path.parent / location)
    assert side_files(path) == (path.parent / location,)
    wanted = outputs(exported("semantic"), backend)
    for have, want in zip(outputs(path, backend), wanted, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "location",
    ["../secret.data", "/etc/hostname", "a/../../secret.data", "a/../b", "..", "\\secret",
     "..\\secret.data", "C:\\secret", "C:secret", "", "a\0b"],
)  # fmt: skip
def test_files_outside_the_folder_are_refused_by_every_backend(external, location, tmp_path):
    path = external(location)
    shutil.copy(path.with_name("made.data"), tmp_path / "secret.data")
    for backend in BACKENDS:
        with pytest.raises(ModelFileError, match="not inside its folder"):
            open_engine(path, backend=backend)
    with pytest.raises(ModelFileError, match="not inside its folder"):
        read_model_file(path)
    with pytest.raises(ModelFileError, match="not inside its folder"):
        OpenVinoEngine(path)


def test_what_is_missing_or_cut_off_is_named(external, cli):
    path = external()
    assert read_model_file(path).spec.task == "semantic"  # this does not need the weights
    with pytest.raises(ModelFileError, match=r"m.onnx.data is missing"):
        open_engine(path)
    data = path.with_name("made.data").read_bytes()
    path.with_name("m.onnx.data").write_bytes(data[:-1])
    with pytest.raises(ModelFileError, match=f"it has {len(data) - 1:,} of {len(data):,} bytes"):
        open_engine(path)
    path.with_name("m.onnx.data").unlink()
    path.with_name("m.onnx.data").mkdir()
    with pytest.raises(ModelFileError, match=r"m.onnx.data is missing"):
        open_engine(path)


# --- Places of tensors in a model


def hidden_tensor(location: str = "../secret") -> TensorProto:
    tensor = TensorProto(name="t", dims=[1], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value="4")
    return tensor


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def nested(tensor: TensorProto) -> onnx.NodeProto:
    graph = helper.make_graph([constant(tensor)], "inner", [], [])
    return helper.make_node("If", ["x"], ["y"], alpha=1.5, then_branch=graph, else_branch=graph)


def model_with(place: str) -> onnx.ModelProto:
    tensor = hidden_tensor()
    model = onnx.ModelProto(ir_version=10)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "sparse initializer":
        model.graph.sparse_initializer.add().indices.CopyFrom(tensor)
    elif place == "constant":
        model.graph.node.append(constant(tensor))
    elif place == "subgraph":
        model.graph.node.append(nested(tensor))
    elif place == "subgraph of a subgraph":
        inner = helper.make_graph([nested(tensor)], "graph", [], [])
        model.graph.node.append(helper.make_node("Loop", [], [], body=inner))
    elif place == "list of an attribute":
        node = model.graph.node.add(op_type="X")
        node.attribute.add(name="a", f=0.5, tensors=[tensor])
        node.attribute[0].type = onnx.AttributeProto.TENSORS
    elif place == "function":
        model.functions.add(name="f").node.append(constant(tensor))
    elif place == "default of a function":
        model.functions.add(name="f").attribute_proto.add(name="a", t=tensor)
    else:
        model.training_info.add().algorithm.node.append(constant(tensor))
    return model


@pytest.mark.parametrize(
    "place",
    ["initializer", "sparse initializer", "constant", "subgraph", "subgraph of a subgraph",
     "list of an attribute", "function", "default of a function", "training"],
)  # fmt: skip
def test_no_place_of_a_tensor_is_forgotten(tmp_path, place):
    path = tmp_path / "m.onnx"
    path.write_bytes(model_with(place).SerializeToString())
    with pytest.raises(ModelFileError, match=r"'../secret'"):
        side_files(path)


def test_the_table_has_every_message_that_may_have_a_tensor():
    """Compare our table with onnx's own description of the format."""
    names = {
        "model": onnx.ModelProto, "graph": onnx.GraphProto, "node": onnx.NodeProto,
        "attribute": onnx.AttributeProto, "sparse": onnx.SparseTensorProto,
        "tensor": onnx.TensorProto, "function": onnx.FunctionProto,
        "training": onnx.TrainingInfoProto, "entry": onnx.StringStringEntryProto,
    }  # fmt: skip
    known = {kind.DESCRIPTOR.full_name: name for name, kind in names.items()}
    for name, fields in CHILDREN.items():
        wanted = {
            field.number: known[field.message_type.full_name]
            for field in names[name].DESCRIPTOR.fields
            if field.message_type is not None and field.message_type.full_name in known
        }
        if name != "tensor":  # entries of a model's metadata are not tensors
            wanted = {number: child for number, child in wanted.items() if child != "entry"}
        else:
            wanted = {13: "entry"}
        assert dict(fields) == wanted, name


def test_a_group_is_refused(tmp_path):
    """Other readers skip a group and continue after it."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x5b\x5c" + model_with("initializer").SerializeToString())
    with pytest.raises(ModelFileError, match="protobuf group"):
        side_files(path)


def test_damaged_files_are_left_to_the_backend(tmp_path, external):
    path = external()
    complete = path.read_bytes()
    generator = random.Random(0)
    for number in range(300):
        content = bytearray(complete)
        if number % 3 == 0:
            del content[generator.randrange(len(content)) :]
        else:
            for _ in range(generator.randrange(1, 20)):
                content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        with suppress(ModelFileError):  # a name was changed, or there is a group
            assert set(side_files(path, complete=False)) <= set(path.parent.iterdir())
    for content in (b"", b"\x0a", b"\xff" * 20, b"\x3a\xff\xff\xff\xff\x7f", b"plain text"):
        path.write_bytes(content)
        assert side_files(path) == ()


def test_nested_messages_end_in_time(tmp_path):
    message = b""
    for _ in range(1000):
        for tag in (0x32, 0x2A, 0x0A):  # a graph in an attribute in a node in a graph
            size = len(message)
            length = b""
            while size > 0x7F:
                length += bytes([size & 0x7F | 0x80])
                size >>= 7
            message = bytes([tag]) + length + bytes([size]) + message
    path = tmp_path / "m.onnx"
    path.write_bytes(message)
    assert side_files(path) == ()
    assert external_data.MAX_DEPTH == 100
