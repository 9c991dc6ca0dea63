"""benchmarks/gpu_graph.py compares forms of one network: all must compute the same function."""

from __future__ import annotations

import pytest
import tiny
import torch
from gpu_graph import GpuForm

from eomt_deploy.network.folds import fold


@pytest.mark.parametrize("form", ["plain", "patches", "upscale", "depthwise", "fp8"])
def test_forms_equal_the_network(form: str):
    model = fold(tiny.network())
    images = torch.from_numpy(tiny.images())
    with torch.inference_mode():
        wanted = model(images)
        have = GpuForm(model, form)(images)
    for found, expected in zip(have, wanted, strict=True):
        error = (found - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
        assert error < (0.1 if form == "fp8" else 1e-5)
