from __future__ import annotations

import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eomt_deploy.artifact import read_artifact, read_onnx_metadata
from eomt_deploy.engines import open_engine
from eomt_deploy.errors import ArtifactError
from eomt_deploy.spec import METADATA_KEY


def test_onnx_of_others_is_refused(tmp_path):
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "identity", value[:1], value[1:])
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    with pytest.raises(ArtifactError, match="not written by eomt-deploy"):
        read_artifact(path)


def test_files_that_are_no_onnx(tmp_path, exported):
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    cut = tmp_path / "cut.onnx"
    whole = exported("panoptic").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    for path in (text, cut):
        with pytest.raises(ArtifactError, match="not an ONNX model"):
            read_artifact(path)
    with pytest.raises(ArtifactError, match="No such file"):
        read_artifact(tmp_path / "none.onnx")
    with pytest.raises(ArtifactError, match=r"not an \.onnx file"):
        read_artifact(tmp_path / "model.engine")


def test_metadata_without_the_graph(tmp_path, exported):
    path = exported("panoptic")
    wanted = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert read_onnx_metadata(path) == wanted
    whole = path.read_bytes()
    for cut in range(0, len(whole), len(whole) // 50):
        (tmp_path / "cut.onnx").write_bytes(whole[:cut])
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
    for read in (read_artifact, open_engine):
        with pytest.raises(ArtifactError, match=r"\[batch, 96, 64, 3\].*\[batch, 64, 64, 3\]"):
            read(path)
