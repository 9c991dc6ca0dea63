from __future__ import annotations

import json
import time

import hand_made
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eomt_deploy import model_file
from eomt_deploy.backends import open_engine
from eomt_deploy.errors import ModelFileError
from eomt_deploy.model_file import read_model_file, read_onnx_metadata, read_xml
from eomt_deploy.spec import METADATA_KEY


def test_onnx_of_others_is_refused(tmp_path):
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "identity", value[:1], value[1:])
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    with pytest.raises(ModelFileError, match="not written by eomt-deploy"):
        read_model_file(path)


def test_files_that_are_no_onnx(tmp_path, exported):
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    cut = tmp_path / "cut.onnx"
    complete = exported("panoptic").read_bytes()
    cut.write_bytes(complete[: len(complete) // 2])
    for path in (text, cut):
        with pytest.raises(ModelFileError, match="not an ONNX model"):
            read_model_file(path)
    with pytest.raises(ModelFileError, match="No such file"):
        read_model_file(tmp_path / "none.onnx")
    with pytest.raises(ModelFileError, match=r"not an \.onnx file"):
        read_model_file(tmp_path / "model.engine")


def test_metadata_without_the_graph(tmp_path, exported):
    path = exported("panoptic")
    wanted = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert read_onnx_metadata(path) == wanted
    complete = path.read_bytes()
    for cut in range(0, len(complete), len(complete) // 50):
        (tmp_path / "cut.onnx").write_bytes(complete[:cut])
        assert read_onnx_metadata(tmp_path / "cut.onnx") == {}


def varint(value):
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


fields = st.builds(
    lambda field, kind, length, content: varint(8 * field + kind) + varint(length) + content,
    st.sampled_from([1, 7, 14]), st.integers(0, 7), st.integers(0, 2**70), st.binary(max_size=9),
)  # fmt: skip


@given(content=st.one_of(st.binary(max_size=200), st.lists(fields, max_size=4).map(b"".join)))
@example(b"\xff" * 1_000_000)
@example(b"\x72\x04\x0a\x02\xff\xfe")
def test_metadata_of_any_file_at_all(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    for key, value in read_onnx_metadata(path).items():
        assert isinstance(key, str)
        assert isinstance(value, str)


def test_file_that_contradicts_its_own_description(tmp_path, exported):
    model = onnx.load(exported("panoptic"))
    entry = next(e for e in model.metadata_props if e.key == METADATA_KEY)
    entry.value = entry.value.replace('"image_size": [64, 64]', '"image_size": [96, 64]')
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    for read in (read_model_file, open_engine):
        with pytest.raises(ModelFileError, match=r"\[batch, 96, 64, 3\].*\[batch, 64, 64, 3\]"):
            read(path)


def with_metadata(exported, path, value, key=METADATA_KEY):
    """The exported model with other metadata, which may be invalid text."""
    model = onnx.load(exported("panoptic"))
    del model.metadata_props[:]
    content = model.SerializeToString()
    key = key.encode()
    entry = b"\x0a" + varint(len(key)) + key + b"\x12" + varint(len(value)) + value
    path.write_bytes(content + b"\x72" + varint(len(entry)) + entry)
    return path


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "emulation", None])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: spec.replace(b'"name": "', b'"name": "\xff'), "name|utf-8"),
        (lambda spec: spec.replace(b'"score": ', b'"score": NaN, "x": '), "score"),
        (lambda spec: b"[" * 100_000, "nested too deeply"),
        (lambda spec: b"\x00", "cannot be read"),
        (lambda spec: b"", "cannot be read|not written by"),
    ],
)
def test_every_reader_refuses_a_damaged_description(exported, tmp_path, backend, change, words):
    complete = onnx.load(exported("panoptic"))
    spec = next(e.value for e in complete.metadata_props if e.key == METADATA_KEY).encode()
    path = with_metadata(exported, tmp_path / "m.onnx", change(spec))
    with pytest.raises(ModelFileError, match=f"m.onnx(.|\n)*({words})"):
        read_model_file(path) if backend is None else open_engine(path, backend=backend)


def test_more_metadata_than_any_file_of_ours(exported, tmp_path, monkeypatch):
    path = with_metadata(exported, tmp_path / "m.onnx", b"x" * 5000)
    assert len(read_onnx_metadata(path)[METADATA_KEY]) == 5000
    monkeypatch.setattr(model_file, "MAX_METADATA_BYTES", 4000)
    with pytest.raises(ModelFileError, match="more than 0 MiB of metadata"):
        read_onnx_metadata(path)


def test_more_fields_than_any_file_of_ours(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x72\x00" * 10_000_000)
    began = time.thread_time()
    with pytest.raises(ModelFileError, match="more than 10000 fields"):
        read_onnx_metadata(path)
    assert time.thread_time() - began < 1


def openvino_xml(spec: str, arithmetic: str = "bf16", head: str = "", body: str = "") -> bytes:
    quoted = spec.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return (
        f'<?xml version="1.0"?>{head}<net name="m" version="11">{body}<rt_info><framework>'
        f'<{METADATA_KEY} value="{quoted}" /></framework><eomt_deploy>'
        f'<arithmetic value="{arithmetic}" /></eomt_deploy></rt_info></net>'
    ).encode()


SPEC_JSON = hand_made.SPEC.to_json()
LAUGHS = '<!DOCTYPE l [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {x} "{f"&{y};" * 10}">' for x, y in zip("bcdefghij", "abcdefghi", strict=True)
) + "]>"  # fmt: skip


def test_description_in_an_xml(tmp_path):
    path = tmp_path / "m.xml"
    path.write_bytes(openvino_xml(SPEC_JSON, body="<layers><layer><rt_info/></layer></layers>"))
    assert read_xml(path) == (hand_made.SPEC, "bf16", "", "", None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (openvino_xml(SPEC_JSON, "f8"), "`arithmetic` must be fp32 or bf16 or fp16, got 'f8'"),
        (openvino_xml(SPEC_JSON, head=LAUGHS), "document type declaration"),
        (openvino_xml("&j;", head=LAUGHS), "document type declaration"),
        (openvino_xml(SPEC_JSON, head='<!DOCTYPE l SYSTEM "file:///etc/passwd">'), "document type"),
        (openvino_xml(SPEC_JSON).replace(b"made", b"ma\xffde"), "is not an .xml file of OpenVINO"),
        (openvino_xml(SPEC_JSON)[:-9], "is not an .xml file of OpenVINO"),
        (openvino_xml("[" * 50_000), "nested too deeply"),
        (openvino_xml(json.dumps({"schema_version": 1})), "`name` is missing"),
        (b"<a>" * 1_000_000, "nested more than 100 levels"),
        (b"\0" * 1000, "is not an .xml file of OpenVINO"),
        (b"", "is not an .xml file of OpenVINO"),
    ],
)
def test_hostile_xml(tmp_path, content, words):
    path = tmp_path / "m.xml"
    path.write_bytes(content)
    began = time.thread_time()
    with pytest.raises(ModelFileError, match=words):
        read_xml(path)
    assert time.thread_time() - began < 1


def test_an_xml_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "m.xml"
    with path.open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(ModelFileError, match=r"5,368,709,120 bytes, the maximum of an \.xml file"):
        read_xml(path)


@pytest.mark.shared_data
def test_model_files_that_failed_before(shared):
    for path in sorted((shared / "cases" / "artifacts").iterdir()):
        for backend in ("onnxruntime", "openvino", "emulation", None):
            began = time.thread_time()
            with pytest.raises(ModelFileError, match=r"The model description|cannot be read"):
                read_model_file(path) if backend is None else open_engine(path, backend=backend)
            assert time.thread_time() - began < 2  # imports included
