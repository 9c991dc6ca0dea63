from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import tiny

from eomt_deploy.engines.partwise import PartwiseSession

OUTPUTS = ["mask_logits", "class_logits"]


@pytest.mark.parametrize("part", [1, 20_000, 10**9])
def test_parts_give_what_the_whole_gives(traced, part):
    feeds = {"images": tiny.photos(3)}
    options = onnxruntime.SessionOptions()
    # Fusions across the borders of parts would round differently.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = PartwiseSession(traced(), options).run(OUTPUTS, feeds)
    session = PartwiseSession(traced(), options, whole=0, part=part)
    assert (len(session._parts) > 1) == (part < 10**9)
    for found, want in zip(session.run(OUTPUTS, feeds), wanted, strict=True):
        np.testing.assert_array_equal(found, want)


def test_only_what_is_still_needed_is_kept(traced, monkeypatch):
    session = PartwiseSession(traced(), onnxruntime.SessionOptions(), whole=0, part=1)
    needed = [len(part.inputs) for part in session._parts]
    assert max(needed) <= 6  # not all that was ever computed
    assert session._kept is None
    loaded = []
    real = session._load
    monkeypatch.setattr(session, "_load", lambda part: loaded.append(part) or real(part))
    session.run(OUTPUTS, {"images": tiny.photos(1)})
    assert loaded == session._parts
