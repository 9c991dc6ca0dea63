from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eomt_deploy.processing.tables import bands, image_table, logit_table

sides = st.integers(1, 300)


@given(sides, sides)
def test_resize_weights_sum_to_one(source, target):
    bounds, weights = image_table(source, target)
    assert (bounds[:, 0] >= 0).all()
    assert (bounds.sum(axis=1) <= source).all()
    assert (bounds[:, 1] <= weights.shape[1]).all()
    assert (abs(weights.sum(axis=1) - (1 << 22)) <= weights.shape[1]).all()
    if source == target:
        assert (weights[:, 0] == 1 << 22).all()


@settings(deadline=None)
@given(sides, sides, st.integers(0, 99))
def test_logits_are_resized_as_cv2_does(source, target, seed):
    line = np.random.default_rng(seed).normal(size=(1, source), scale=30).astype(np.float32)
    taps = logit_table(source, target)
    found = line[0, taps["low"]] * taps["rest"] + line[0, taps["high"]] * taps["weight"]
    wanted = cv2.resize(line, (target, 1), interpolation=cv2.INTER_LINEAR)[0]
    # For small maps cv2 rounds positions to float32: 2e-5 pixels between values 200 apart.
    np.testing.assert_allclose(found, wanted, atol=4e-3)


def test_large_logits_are_resized_as_cv2_does():
    rng = np.random.default_rng(0)
    for (height, width), new in (((160, 160), (640, 640)), ((480, 640), (1080, 1919))):
        logits = rng.normal(size=(height, width), scale=9).astype(np.float32)
        x, y = logit_table(width, new[1]), logit_table(height, new[0])
        rows = logits[:, x["low"]] * x["rest"] + logits[:, x["high"]] * x["weight"]
        found = rows[y["low"]] * y["rest"][:, None] + rows[y["high"]] * y["weight"][:, None]
        wanted = cv2.resize(logits, new[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(found, wanted, atol=4e-3)


@given(sides, sides, st.integers(2, 50))
def test_bands_cover_all_rows_with_few_of_the_source(source, target, max_rows):
    table = logit_table(source, target)
    found = list(bands(table, max_rows))
    assert [band.start for band in found] == [0, *(band.end for band in found[:-1])]
    assert found[-1].end == target
    for band in found:
        used = table[band.start : band.end]
        assert used["low"].min() == band.source_start
        assert used["high"].max() == band.source_start + band.source_rows - 1
        assert band.source_rows <= max_rows
