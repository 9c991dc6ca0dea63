from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from eomt_deploy.network.position import resample_position


@pytest.mark.parametrize("new", [(8, 8), (3, 7), (16, 5), (5, 5)])
def test_resampling_is_antialiased_bicubic(new):
    """Pillow's bicubic filter on float images is an independent implementation."""
    position = torch.randn(1, 6 * 6, 4, generator=torch.manual_seed(0))
    found = resample_position(position, (6, 6), new)
    assert found.shape == (1, new[0] * new[1], 4)
    for channel in range(4):
        plane = Image.fromarray(position[0, :, channel].reshape(6, 6).numpy())
        wanted = np.asarray(plane.resize((new[1], new[0]), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(found[0, :, channel].reshape(new), wanted, atol=1e-5)


def test_same_grid_is_untouched():
    position = torch.randn(1, 12, 4)
    assert resample_position(position, (3, 4), (3, 4)) is position
