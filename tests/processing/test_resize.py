from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from eomt_deploy.processing.geometry import plan
from eomt_deploy.processing.resize import resize_logits, sigmoid, softmax, unletterbox

sides = st.integers(1, 90)
# Both libraries compute sample positions in float32: at position 90 that is 4e-6 pixels, between
# neighbours that differ by up to 200.
ROUNDING = 2e-3


@settings(deadline=None)
@given(st.tuples(sides, sides), st.tuples(sides, sides), st.integers(0, 99))
def test_logits_resize_as_torch_does(old, new, seed):
    logits = np.random.default_rng(seed).normal(size=old, scale=30).astype(np.float32)
    wanted = F.interpolate(torch.from_numpy(logits)[None, None], new, mode="bilinear")[0, 0]
    np.testing.assert_allclose(resize_logits(logits, new), wanted.numpy(), atol=ROUNDING)


@settings(deadline=None)
@given(st.tuples(st.integers(8, 200), st.integers(8, 200)), st.integers(0, 99))
def test_unletterbox_interpolates_twice(image_size, seed):
    logits = np.random.default_rng(seed).normal(size=(16, 16), scale=20).astype(np.float32)
    geometry = plan(image_size, (64, 64), "letterbox")
    at_input = F.interpolate(torch.from_numpy(logits)[None, None], (64, 64), mode="bilinear")
    cropped = at_input[..., : geometry.scaled_size[0], : geometry.scaled_size[1]]
    wanted = F.interpolate(cropped, image_size, mode="bilinear")[0, 0]
    np.testing.assert_allclose(unletterbox(logits, geometry), wanted.numpy(), atol=ROUNDING)


def test_activations_match_torch_and_do_not_warn():
    logits = np.array([[-200, -90, -1, 0, 1, 90, 200]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(sigmoid(logits), torch.from_numpy(logits).sigmoid(), atol=1e-7)
        np.testing.assert_allclose(softmax(logits), torch.from_numpy(logits).softmax(-1), atol=1e-7)
    assert sigmoid(logits).dtype == softmax(logits).dtype == np.float32
