from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import VALUES, changed, names_it, nested, paths, without

from eomt_deploy.classes import make_classes
from eomt_deploy.errors import ModelFileError, UsageError
from eomt_deploy.fields import MAX_LENGTH, is_printable, printable
from eomt_deploy.spec import (
    MAX_CLASSES,
    RESIZE_RULES,
    TASK_THRESHOLDS,
    TASKS,
    Backbone,
    ModelSpec,
    Thresholds,
)

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
    names=st.lists(st.text(max_size=255).filter(is_printable), min_size=1, max_size=5),
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
    ("change", "words"),
    [
        ({"task": "depth"}, "`task` must be one of semantic, instance, panoptic, got 'depth'"),
        ({"image_size": (60, 64)}, "multiple of patch_size 16, got 60x64"),
        ({"image_size": (1, 1), "patch_size": 1}, r"`image_size\[0\]` must be .* from 8 to 16384"),
        ({"image_size": (100_000, 100_000)}, r"`image_size\[0\]` .* got 100000"),
        ({"patch_size": 0}, "`patch_size` must be an integer from 1 to 1024, got 0"),
        ({"classes": ()}, "`classes` must have 1 to 16384 entries, got 0"),
        ({"classes": CLASSES[:1] * (MAX_CLASSES + 1)}, "got 16385"),
        ({"num_queries": 0}, "`num_queries` .* got 0"),
        ({"num_upscale": 5}, "masks are not larger than the image"),
        ({"num_upscale": 10**30}, "`num_upscale` must be an integer from 0 to 10"),
        ({"num_queries": 10_000, "image_size": (16_384, 16_384)}, "mask logits"),
        ({"classes": CLASSES[1:]}, r"ids must count from 0 without gaps, got \[1\]"),
        ({"batch": 0}, "`batch` .* got 0"),
        ({"batch": True}, "`batch` .* got True"),
        ({"resize": "stretch"}, "`resize` must be one of letterbox, windows, got 'stretch'"),
        ({"resize": "windows"}, "resize of a panoptic model must be letterbox, got windows"),
        ({"thresholds": Thresholds(score=float("nan"))}, "`thresholds.score` .* got nan"),
        ({"precision": "fp64"}, "`precision` .* got 'fp64'"),
        ({"classes": (replace(CLASSES[0], name="\ud800"),)}, r"`classes\[0\].name` .*\\ud800"),
        ({"classes": (replace(CLASSES[0], color=(1, 2)),)}, r"`classes\[0\].color` must have 3"),
        ({"classes": (replace(CLASSES[0], color=(1, 2, True)),)}, r"color\[2\]` .* got True"),
        ({"provenance": {"a": "b\0"}}, "provenance"),
    ],
)
def test_wrong_values_are_refused(change, words):
    with pytest.raises(ModelFileError, match=words):
        replace(SPEC, **change)


DATA = json.loads(SPEC.to_json())


@pytest.mark.parametrize("path", list(paths(DATA)), ids=str)
def test_any_value_in_any_field_is_read_or_refused(path):
    """Within a second: one error that names the field, or a valid description."""
    accepted = 0
    for value in VALUES:
        text = changed(DATA, path, value)
        began = time.thread_time()
        try:
            spec = ModelSpec.from_json(text)
        except ModelFileError as error:
            message = error.what
            assert names_it(message, path)
            assert len(message) < 1000
            assert is_printable(message)
        else:
            accepted += 1
            assert ModelSpec.from_json(spec.to_json()) == spec
            assert min(spec.mask_size) >= 0
            assert str(spec.classes).encode()
        assert time.thread_time() - began < 1
    assert accepted < 20


@pytest.mark.parametrize("path", list(paths(DATA)), ids=str)
def test_missing_fields(path):
    older = ("provenance", "precision", "batch", "thresholds")
    if (path[0] in older and path != ("thresholds",)) or isinstance(path[-1], int):
        return
    with pytest.raises(ModelFileError, match=f"{path[-1]}` is missing"):
        ModelSpec.from_json(without(DATA, path))


def test_older_files_lack_some_fields_and_have_any_provenance():
    data = {k: v for k, v in DATA.items() if k not in ("precision", "batch", "provenance")}
    spec = ModelSpec.from_json(json.dumps(data | {"thresholds": {}}))
    assert (spec.precision, spec.batch, spec.provenance) == ("fp32", None, {})
    assert spec.thresholds == Thresholds()
    story = {"eomt_deploy": "0.0.1", "what nobody knows": "a; b (c) – d"}
    assert ModelSpec.from_json(json.dumps(DATA | {"provenance": story})).provenance == story


@pytest.mark.parametrize("place", [(), ("backbone",), ("thresholds",), ("classes", 0)])
def test_unknown_fields_are_named(place):
    data = json.loads(SPEC.to_json())
    target = data
    for key in place:
        target = target[key]
    target["surprise\ud800"] = 1
    with pytest.raises(ModelFileError, match=r"the field '.*surprise\\ud800' is unknown"):
        ModelSpec.from_json(json.dumps(data))


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from(list(paths(DATA))),
)
def test_any_json_in_any_field(value, path):
    try:
        spec = ModelSpec.from_json(changed(DATA, path, json.dumps(value)))
    except ModelFileError as error:
        message = error.what
        assert is_printable(message)
    else:
        assert ModelSpec.from_json(spec.to_json()) == spec


def test_newer_schema_is_refused_with_the_version_that_wrote_it():
    data = json.loads(SPEC.to_json()) | {"schema_version": 99}
    with pytest.raises(ModelFileError, match=r"schema 99(.|\n)*0\.1\.0"):
        ModelSpec.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("[]", "must be an object"),
        ("null", "must be an object"),
        ('{"a": ', "cannot be read"),
        (b"\xff", "cannot be read: 'utf-8'"),
        (nested(1_000_000), "nested too deeply"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
        (" " * MAX_LENGTH + "{}", "the maximum is"),
        ("{}", "`name` is missing"),
        ('{"schema_version": 1}', "`name` is missing"),
    ],
)
def test_unreadable_text_is_refused(text, words):
    with pytest.raises(ModelFileError, match=words):
        ModelSpec.from_json(text)


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "a\nb", "\x1b[31m", "x" * 300, "\u2029"])
def test_class_names_that_cannot_be_drawn(name):
    with pytest.raises(UsageError, match="entry 0 of the list"):
        make_classes([{"name": name, "thing": True}], "the list")
    assert is_printable(printable(name))


@pytest.mark.parametrize("name", ["straße", "桌子", "a\u3000b", "👩\u200d🚒", "café\u0301", ""])
def test_class_names_of_any_language(name):
    assert make_classes([{"name": name, "thing": True}], "the list")[0].name == name
    assert printable(name) == name
