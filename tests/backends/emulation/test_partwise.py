from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import tiny

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.emulation.partwise import PartwiseSession
from eomt_deploy.errors import ModelFileError
from eomt_deploy.exporting import graph

OUTPUTS = ["mask_logits", "class_logits"]


@pytest.mark.parametrize("part", [1, 20_000, 10**9])
def test_parts_give_the_same_result_as_the_complete_graph(traced, part):
    feeds = {"images": tiny.images(3)}
    options = onnxruntime.SessionOptions()
    # Fusions across part boundaries would round differently.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = PartwiseSession(traced(), options).run(OUTPUTS, feeds)
    session = PartwiseSession(traced(), options, max_loaded=0, part=part)
    assert (len(session._parts) > 1) == (part < 10**9)
    for found, want in zip(session.run(OUTPUTS, feeds), wanted, strict=True):
        np.testing.assert_array_equal(found, want)


def test_only_what_is_still_needed_is_kept(traced, monkeypatch):
    session = PartwiseSession(traced(), onnxruntime.SessionOptions(), max_loaded=0, part=1)
    needed = [len(part.inputs) for part in session._parts]
    assert max(needed) <= 6  # unused tensors are dropped
    assert session._kept is None
    loaded = []
    real = session._load
    monkeypatch.setattr(session, "_load", lambda part: loaded.append(part) or real(part))
    session.run(OUTPUTS, {"images": tiny.images(1)})
    assert loaded == session._parts


def test_a_graph_that_is_not_large_is_kept(traced):
    assert PartwiseSession(traced(), onnxruntime.SessionOptions())._kept is not None


@pytest.mark.parametrize(("left", "word"), [(None, "missing"), (5000, "cut off")])
def test_incomplete_side_files(lowered, tmp_path, left, word):
    spec = tiny.spec(precision="fp16")
    side, path = graph.save(lowered("fp16"), spec, tmp_path, "m.onnx", limit=1000)
    if left is None:
        side.unlink()
    else:
        side.write_bytes(side.read_bytes()[:left])
    with pytest.raises(ModelFileError, match=word):
        open_engine(path, backend="emulation")
