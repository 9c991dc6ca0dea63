"""The compiled kernels: variants, unusual sizes, and a missing library."""

from __future__ import annotations

import cv2
import literal
import numpy as np
import pytest
from cuda_place import make_logits, make_spec

from eomt_deploy.errors import MissingDependencyError
from eomt_deploy.processing import Processor, compiled, pixels
from eomt_deploy.processing.geometry import Geometry, plan
from eomt_deploy.processing.tables import composed_table, logit_table
from eomt_deploy.spec import TASKS


@pytest.fixture
def fresh_library():
    compiled.library.cache_clear()
    yield
    compiled.library.cache_clear()


def results(task):
    spec = make_spec(task, (160, 160), queries=40, classes=30)
    geometry = plan((417, 380), (160, 160), spec.resize)
    result = Processor(spec).postprocess(*make_logits(spec, geometry.num_inputs, 7), geometry)
    return [(s.class_id, s.score, s.mask) for s in result.regions()]


@pytest.mark.parametrize("task", TASKS)
def test_every_variant_gives_the_same(fresh_library, monkeypatch, task):
    """Fused multiply-adds round differently, so a few pixels may differ."""
    best = results(task)
    monkeypatch.setattr(cv2, "checkHardwareSupport", lambda feature: False)
    compiled.library.cache_clear()
    base = results(task)
    assert "base" in compiled.library()._name
    assert [class_id for class_id, _, _ in base] == [class_id for class_id, _, _ in best]
    np.testing.assert_allclose([s for _, s, _ in base], [s for _, s, _ in best], rtol=1e-4)
    assert sum((a != b).sum() for (_, _, a), (_, _, b) in zip(base, best, strict=True)) <= 20


def test_a_missing_library_says_what_to_do(fresh_library, monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    with pytest.raises(MissingDependencyError, match="compiled part") as error:
        compiled.library()
    assert "pip install" in str(error.value.fix)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (2, 40), (3, 3)])
def test_masks_smaller_than_three_pixels(task, shape):
    geometry = Geometry((50, 70), (2 * shape[0], 2 * shape[1]), (2 * shape[0], 2 * shape[1]))
    masks = np.random.default_rng(0).normal(size=(4, *shape), scale=5).astype(np.float32)
    logits = literal.at_image(masks, geometry).numpy()
    resize = pixels.mask_resize(shape, geometry)
    if task == "panoptic":
        owner, areas = pixels.paint_queries(masks, resize, np.ones(4, np.float32), 0.5)
        decided = (np.abs(logits) > 1e-4).all(axis=0)
        wanted = np.where(logits.max(axis=0) >= 0, logits.argmax(axis=0), -1)
        assert (owner == wanted)[decided].all()
        assert abs(areas[0] - (logits >= 0).sum(axis=(1, 2))).max() <= (~decided).sum()
    else:
        found = pixels.measure_masks(masks, [0, 1, 2, 3], resize)
        for (mask, inside), wanted in zip(found, logits, strict=True):
            assert (mask.unpack() != (wanted > 0)).sum() <= (abs(wanted) < 1e-4).sum()
            on = 1 / (1 + np.exp(-wanted[wanted > 0].astype(float)))
            assert inside == pytest.approx(on.sum(), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("classes", [3, 16, 40])
def test_the_first_class_wins_ties(classes):
    probabilities = np.full((1, 5, classes), 0.1, np.float32)
    masks = np.random.default_rng(0).normal(size=(1, 5, 16, 16)).astype(np.float32)
    geometry = Geometry((50, 70), (64, 64), (64, 64))
    assert not pixels.classify_pixels(probabilities, masks, geometry).any()


@pytest.mark.parametrize("sides", [(16, 64, 64, 300), (16, 64, 23, 7), (160, 640, 360, 1080),
                                   (40, 40, 40, 40), (3, 12, 5, 90)])  # fmt: skip
def test_two_resizings_are_one(sides):
    source, between, scaled, target = sides
    first, second = logit_table(source, between), logit_table(scaled, target)
    spans = composed_table(first, second, source)
    values = np.random.default_rng(0).normal(size=source)
    middle = values[first["low"]] * first["rest"] + values[first["high"]] * first["weight"]
    wanted = middle[second["low"]] * second["rest"] + middle[second["high"]] * second["weight"]
    found = sum(values[spans["first"] + i] * spans["weights"][:, i] for i in range(3))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(spans["weights"].sum(axis=1), 1, atol=1e-6)
    assert (spans["weights"] >= 0).all()  # required to skip work by the range of the logits
