"""The confidence of a semantic result, against the literal scores in torch."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import literal
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_logits import make_logits, make_spec

from eomt_deploy import Segmenter
from eomt_deploy.errors import ImageError, UsageError
from eomt_deploy.processing import Processor
from eomt_deploy.processing.confidence import winning_share
from eomt_deploy.processing.geometry import plan


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    image=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    size=st.sampled_from([(64, 64), (48, 96), (96, 48)]),
)
def test_it_is_the_share_of_the_literal_scores(seed, image, size):
    try:
        geometry = plan(image, size, "windows")
    except ImageError:
        return
    shape = (geometry.num_inputs, size[0] // 4, size[1] // 4)
    classes, masks = make_logits(seed, shape)
    result = Processor(make_spec("semantic", size)).postprocess(classes, masks, geometry)
    found = winning_share(classes, masks, result.labels, geometry)
    scores = literal.class_scores(classes, masks, geometry).numpy()
    own = np.take_along_axis(scores, result.labels[None].astype(int), axis=0)[0]
    total = scores.sum(0)
    clear = total > 1e-6  # otherwise the share is a quotient of rounding errors
    np.testing.assert_allclose(found[clear], (own / total)[clear], rtol=1e-3, atol=1e-4)
    assert found.dtype == np.float32
    assert found.max() <= 1


@pytest.fixture
def predicted(exported, image_path):
    with Segmenter(exported("semantic")) as segmenter:
        result = segmenter.predict(image_path, confidence=True)
        # The random network gives all pixels the same class.
        labels = result.labels.copy()
        labels[:200] = (labels[0, 0] + 1) % len(result.classes)
        confidence = result.confidence.copy()
        confidence[:200] /= 2
        yield segmenter, replace(result, labels=labels, confidence=confidence)


def test_scores_of_regions_are_means(predicted, tmp_path):
    _, result = predicted
    assert result.confidence.shape == result.size
    for region in result:
        assert region.score == pytest.approx(result.confidence[region.mask].mean())
    assert len(result) == 2
    kept = result.filter(min_score=float(result.scores.mean()))
    assert kept.class_ids.tolist() == [result.class_ids[result.scores.argmax()]]
    assert result.to_supervision().confidence is not None
    result.save(tmp_path / "x.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["confidence"], result.confidence)


def test_all_ways_to_predict_agree(predicted, image_path):
    segmenter, _ = predicted
    result = segmenter.predict(image_path, confidence=True)
    for other in (
        segmenter.predict_batch([image_path], confidence=True)[0],
        next(segmenter.stream([image_path], confidence=True)),
        segmenter.predict([image_path], confidence=True)[0],
    ):
        np.testing.assert_array_equal(other.confidence, result.confidence)
    plain = segmenter.predict(image_path)
    assert plain.confidence is None
    np.testing.assert_array_equal(plain.labels, result.labels)


def test_without_confidence_there_is_no_made_up_score(predicted):
    _, result = predicted
    plain = replace(result, confidence=None)
    assert np.isnan(plain.scores).all()
    assert all("score" not in annotation for annotation in plain.to_coco())
    assert all(s["score"] is None for s in json.loads(plain.to_json())["segments"])
    assert plain.to_supervision().confidence is None
    assert all(math.isnan(score) for score in plain.to_pandas()["score"])
    with pytest.raises(UsageError, match="no scores"):
        plain.filter(min_score=0.5)
    assert len(plain.filter(min_area=1)) == len(plain)
    plain.overlay()


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_other_tasks_have_scores_of_segments(exported, task):
    with Segmenter(exported(task)) as segmenter:
        image = np.zeros((*tiny.SIZE, 3), np.uint8)
        with pytest.raises(UsageError, match="confidence is for semantic"):
            segmenter.predict(image, confidence=True)
