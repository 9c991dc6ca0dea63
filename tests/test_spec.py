from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.classes import make_classes
from eomt_deploy.errors import ArtifactError
from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, TASKS, Backbone, ModelSpec

CLASSES = make_classes([{"name": "sky", "thing": False}, {"name": "cat", "thing": True}], "test")
SPEC = ModelSpec(
    name="tiny",
    task="panoptic",
    image_size=(64, 96),
    patch_size=16,
    num_queries=9,
    num_blocks=2,
    num_upscale=2,
    classes=CLASSES,
    resize="letterbox",
    thresholds=TASK_THRESHOLDS["panoptic"],
    backbone=Backbone("dinov2", 64, 3, 1, "gelu", 4, 1234),
    provenance={"eomt_deploy": "0.1.0"},
)


@given(
    task=st.sampled_from(TASKS),
    grid=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    names=st.lists(st.text(min_size=1), min_size=1, max_size=5),
    batch=st.none() | st.integers(1, 64),
)
def test_json_round_trip(task, grid, names, batch):
    spec = replace(
        SPEC,
        task=task,
        image_size=(grid[0] * 16, grid[1] * 16),
        classes=make_classes([{"name": n, "thing": True} for n in names], "test"),
        resize=RESIZE_RULES[task],
        thresholds=TASK_THRESHOLDS[task],
        batch=batch,
    )
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_mask_size_is_a_quarter_of_the_image():
    assert SPEC.mask_size == (16, 24)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"task": "depth"}, "depth"),
        ({"image_size": (60, 64)}, "60x64"),
        ({"classes": ()}, "no classes"),
        ({"num_queries": 0}, "no queries"),
        ({"num_upscale": 5}, "masks larger than the image"),
        ({"classes": CLASSES[1:]}, "ids"),
        ({"batch": 0}, "batch 0"),
        ({"resize": "stretch"}, "stretch"),
    ],
)
def test_wrong_values_are_refused(change, word):
    with pytest.raises(ArtifactError, match=word):
        replace(SPEC, **change)


def test_newer_schema_is_refused_with_the_version_that_wrote_it():
    data = json.loads(SPEC.to_json()) | {"schema_version": 99}
    with pytest.raises(ArtifactError, match=r"schema 99(.|\n)*0\.1\.0"):
        ModelSpec.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"schema_version": 1}', '{"a": '])
def test_unreadable_text_is_refused(text):
    with pytest.raises(ArtifactError, match="cannot be read"):
        ModelSpec.from_json(text)
