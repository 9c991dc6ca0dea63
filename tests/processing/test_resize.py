from __future__ import annotations

import numpy as np
import torch

from eomt_deploy.processing.pixels import softmax


def test_softmax_is_that_of_torch_and_does_not_warn():
    logits = np.array([[-200, -90, -1, 0, 1, 90, 200]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = softmax(logits)
    np.testing.assert_allclose(found, torch.from_numpy(logits).softmax(-1), atol=1e-7)
    assert found.dtype == np.float32
