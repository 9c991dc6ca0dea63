"""Masks as runs of pixels."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eomt_deploy.masks import RunMask, decode_mask, encode_mask

masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(masks)
@example(np.ones((1, 1), bool))
@example(np.ones((3, 4), bool))
@example(np.zeros((3, 4), bool))
def test_runs_hold_a_mask_exactly(mask):
    found = RunMask.from_mask(mask)
    assert (found.unpack() == mask).all()
    assert found.area == mask.sum()
    assert found.runs.dtype == np.uint32
    edges = found.runs.reshape(-1).astype(int)
    assert (np.diff(edges) > 0).all()  # ascending, with gaps
    if mask.any():
        ys, xs = np.nonzero(mask)
        assert found.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    else:
        assert found.box == (0, 0, 0, 0)


@given(masks)
def test_coco_rle_holds_a_mask_exactly(mask):
    assert (decode_mask(encode_mask(mask)) == mask).all()


def test_a_mask_need_not_be_contiguous():
    mask = np.arange(24).reshape(4, 6) % 3 == 0
    for view in (mask.T, mask[::2, ::-1]):
        assert (RunMask.from_mask(view).unpack() == view).all()
