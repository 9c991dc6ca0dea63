"""What works without coremltools: smaller weights, and the error."""

from __future__ import annotations

import numpy as np
import pytest

from eomt_deploy.backends.coreml import library
from eomt_deploy.backends.coreml.build import build_core_ml
from eomt_deploy.backends.coreml.config import CoreMlConfig
from eomt_deploy.backends.coreml.weights import palettized, quantized
from eomt_deploy.errors import MissingDependencyError


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_int8_rounds_to_the_nearest_step_of_each_row(dtype):
    weight = np.random.default_rng(0).normal(size=(48, 40)).astype(dtype)
    weight[3] = 0
    data, scale = quantized(weight)
    assert (data.dtype, scale.dtype, scale.shape) == (np.int8, dtype, (48, 1))
    assert np.abs(data).max() == 127
    error = np.abs(data * scale.astype(np.float64) - weight)
    assert (error <= 0.51 * scale.astype(np.float64) + 1e-12).all()
    assert not data[3].any()


def test_a_palette_is_as_good_as_many_clusters_allow():
    weight = np.random.default_rng(0).normal(size=(32, 200)).astype(np.float32)
    before = np.inf
    for bits in (4, 6, 8):
        indices, palettes = palettized(weight, bits)
        assert (indices.shape, palettes.shape) == (weight.shape, (2, 1, 1 << bits, 1))
        assert indices.max() < 1 << bits
        found = np.take_along_axis(palettes[:, 0, :, 0], indices.reshape(2, -1).astype(int), 1)
        error = np.square(found.reshape(weight.shape) - weight).mean()
        # The smallest possible error of b bits for normal values (Panter and Dite) is near
        # sqrt(3) * pi / 2 / 4**b; k-means ends in a local minimum.
        assert 0.5 < error / (np.sqrt(3) * np.pi / 2 / 4**bits) < 1.3
        assert error < before / 10
        before = error


def test_a_palette_keeps_few_values_and_odd_numbers_of_rows_share_one():
    weight = np.array([[1.0, -2.0, 0.5], [0.5, 1.0, -2.0]], np.float16)
    indices, palettes = palettized(weight, 4)
    assert palettes.shape == (1, 1, 16, 1)
    np.testing.assert_array_equal(palettes[0, 0, :, 0][indices], weight)


def test_a_missing_library_is_one_clear_error(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "package_version", lambda _: None)
    with pytest.raises(MissingDependencyError, match="coremltools is not installed") as error:
        build_core_ml(CoreMlConfig(exported("panoptic"), tmp_path / "m.mlpackage"))
    assert "eomt-deploy[coreml]" in error.value.fix
    found = library.problem()
    assert (found.what, found.fix) == (error.value.what, error.value.fix)
