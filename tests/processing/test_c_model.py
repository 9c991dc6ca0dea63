"""The C library reads what Python reads, with the same values, and refuses the rest."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import c_library
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mutations import VALUES, changed, names_it, nested, paths, without

from eomt_deploy.classes import make_classes
from eomt_deploy.errors import ModelFileError
from eomt_deploy.fields import UNPRINTABLE
from eomt_deploy.sidecar import Sidecar
from eomt_deploy.spec import RESIZE_RULES, TASK_THRESHOLDS, TASKS, ModelSpec, Thresholds

SPEC = tiny.spec()
DATA = json.loads(SPEC.to_json())
PRINTABLE = st.characters(exclude_categories=sorted(UNPRINTABLE))


def facts(model: c_library.Handle) -> ModelSpec:
    """The Python description with everything that the C library keeps."""
    classes = []
    for i in range(model.get("classes")):
        color = model.get("class_color", i)
        classes.append({
            "name": model.get("class_name", i).decode(),
            "thing": bool(model.get("class_is_thing", i)),
            "color": [color >> 16, color >> 8 & 255, color & 255],
        })  # fmt: skip
    return replace(
        SPEC,
        name=model.get("name").decode(),
        task=c_library.TASKS[model.get("task")],
        image_size=(model.get("height"), model.get("width")),
        num_queries=model.get("queries"),
        classes=make_classes(classes, "C"),
        resize=c_library.RESIZES[model.get("resize")],
        thresholds=Thresholds(*(model.get("threshold", i) for i in range(3))),
        precision=model.get("precision").decode(),
        batch=model.get("batch") or None,
    )


def accepts_both(text: str | bytes) -> bool:
    """Whether both readers accept a description; they must agree."""
    try:
        wanted = ModelSpec.from_json(text)
    except ModelFileError:
        wanted = None
    if wanted is None:
        with pytest.raises(c_library.CallError) as failure:
            c_library.read_model(text)
        assert failure.value.code == c_library.WRONG_MODEL
        return False
    found = c_library.read_model(text)
    assert facts(found) == replace(
        wanted,
        patch_size=SPEC.patch_size, num_blocks=SPEC.num_blocks, num_upscale=SPEC.num_upscale,
        backbone=SPEC.backbone, provenance=SPEC.provenance,
    )  # fmt: skip
    assert (found.get("mask_height"), found.get("mask_width")) == wanted.mask_size
    return True


@given(
    task=st.sampled_from(TASKS),
    grid=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    names=st.lists(st.text(PRINTABLE, max_size=20), min_size=1, max_size=5),
    batch=st.none() | st.integers(1, 64),
    score=st.floats(0, 1),
    ascii_only=st.booleans(),
)
def test_any_description(task, grid, names, batch, score, ascii_only):
    spec = replace(
        SPEC,
        task=task,
        image_size=(grid[0] * 16, grid[1] * 16),
        classes=make_classes([{"name": n, "thing": len(n) % 2 == 0} for n in names], "test"),
        resize=RESIZE_RULES[task],
        thresholds=replace(TASK_THRESHOLDS[task], score=score),
        batch=batch,
    )
    text = json.dumps(json.loads(spec.to_json())) if ascii_only else spec.to_json()
    assert accepts_both(text)


@pytest.mark.parametrize("task", TASKS)
def test_the_description_in_an_exported_model(task, tmp_path):
    import onnx

    from eomt_deploy.spec import METADATA_KEY

    model = onnx.ModelProto()
    model.metadata_props.add(key=METADATA_KEY, value=tiny.spec(task, "fp16").to_json())
    (entry,) = onnx.load_from_string(model.SerializeToString()).metadata_props
    assert facts(c_library.read_model(entry.value)) == tiny.spec(task, "fp16")


def test_the_description_of_an_engine():
    sidecar = Sidecar(
        spec=SPEC, target="tensorrt", library_version="10.13.0.35", precision="fp16",
        batch=(1, 1, 4), compute_capabilities=("8.9",), gpu=None, driver=None,
        version_compatible=False, hardware_compatibility="none", stripped=False, plan_bytes=9,
        plan_sha256="0" * 64, onnx="m\udc80.onnx", onnx_sha256="0" * 64, settings={"a": "b"},
    )  # fmt: skip
    assert facts(c_library.read_model(sidecar.to_json())) == SPEC


@pytest.mark.parametrize("path", paths(DATA), ids=str)
def test_every_field_with_every_value(path):
    texts = [changed(DATA, path, value) for value in VALUES]
    refused = [text for text in [*texts, without(DATA, path)] if not accepts_both(text)]
    if path[0] != "provenance":
        for text in refused:
            with pytest.raises(c_library.CallError) as failure:
                c_library.read_model(text)
            said = str(failure.value)  # NaN and Infinity are not JSON
            assert names_it(said, path) or "a value is not valid" in said


@settings(max_examples=200)
@given(st.data())
def test_damaged_text(data):
    text = bytearray(SPEC.to_json().encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(0, len(text) - 1)))
        text = text or bytearray(b"{")
        kind = data.draw(st.sampled_from(["replace", "delete", "insert", "cut"]))
        new = data.draw(
            st.sampled_from([*b'{}[]",:\\u0129.eE+-tfn \n\x00\x1f\x7f\x80\xc3\xed\xff'])
        )
        if kind == "replace":
            text[place] = new
        elif kind == "delete":
            del text[place]
        elif kind == "insert":
            text.insert(place, new)
        else:
            del text[max(1, place) :]
    accepts_both(bytes(text))


def test_every_beginning_of_a_description_is_refused():
    text = SPEC.to_json().encode()
    for length in range(len(text)):
        with pytest.raises(c_library.CallError) as failure:
            c_library.read_model(text[:length])
        assert failure.value.code == c_library.WRONG_MODEL


@pytest.mark.parametrize(
    "text",
    ["", " ", "{}", "[]", "null", "{", '{"a"', '{"a":', '{"a":1', '{"a":1,}', "{,}", '{"a" 1}',
     '{"a":01}', '{"a":1.}', '{"a":.5}', '{"a":1e}', '{"a":+1}', '{"a":tru}', '{"a":"\\x"}',
     '{"a":"\\u12g4"}', '{"a":"\\', "{'a':1}", "\ufeff{}", nested(100_000), '{"a":' * 100_000],
)  # fmt: skip
def test_other_texts(text):
    assert not accepts_both(text)


def test_spaces_keys_with_escapes_and_repeated_keys():
    text = SPEC.to_json()
    assert accepts_both(f" \t\r\n{json.dumps(DATA, indent=3)}\n ")
    assert accepts_both(text.replace('"name": "tiny"', '"na\\u006de": "\\ud83d\\ude00\\/\\u00e9"'))
    assert accepts_both(text.replace('"name": "tiny"', '"name": 5, "name": "last"'))
    assert not accepts_both(text.replace('"name": "tiny"', '"name": "tiny", "name": 5'))
    assert not accepts_both(text.replace('"name": "tiny"', '"name": "\\udc00\\ud800"'))


def number_texts():
    plain = st.floats(0, 1).map(repr)
    digits = st.text("0123456789", min_size=1, max_size=60)
    return st.one_of(
        plain,
        digits.map(lambda d: f"0.{d}"),
        st.tuples(digits, st.integers(-340, 3)).map(lambda p: f"0.{p[0]}e{p[1]}"),
        st.tuples(st.floats(0, 1), st.sampled_from(["0" * 90 + "1", "5", "49999", ""])).map(
            lambda p: f"{math.floor(p[0] * 2**53) / 2**53:.60f}".rstrip("0") + p[1]
        ),
    )


@settings(max_examples=250)
@given(number_texts())
@example("1." + "0" * 90 + "1")  # is rounded to 1
@example("1.00000000000000011102230246251565404")  # 1 + 2^-53
@example("1.00000000000000011102230246251565405")
@example("1.0000000000000002")
def test_thresholds_are_rounded_as_in_python(text):
    accepts_both(changed(DATA, ("thresholds", "score"), text))


def test_numbers_halfway_between_two_doubles():
    from fractions import Fraction

    chance = random.Random(0)
    for _ in range(300):
        low = chance.random()
        middle = (Fraction(low) + Fraction(math.nextafter(low, 1))) / 2
        power = middle.denominator.bit_length() - 1
        digits = str(middle.numerator * 5**power).zfill(power)
        for end in ("", "1"):
            assert accepts_both(changed(DATA, ("thresholds", "score"), f"0.{digits}{end}"))


def test_nothing_without_arguments():
    from ctypes import byref, c_void_p

    pointer = c_void_p(1)
    assert c_library.call("model_read", None, 3, byref(pointer)) == c_library.WRONG_ARGUMENT
    assert not pointer.value
    assert c_library.call("model_read", b"{}", 2, None) == c_library.WRONG_ARGUMENT
    c_library.call("model_free", None)
    for name, value in {"name": None, "precision": None, "task": -1, "resize": -1, "height": 0,
                        "classes": 0, "batch": 0}.items():  # fmt: skip
        assert c_library.call(f"model_{name}", None) == value
    model = c_library.read_model(SPEC)
    for place in (-1, len(SPEC.classes), 2**31 - 1, -(2**31)):
        assert model.get("class_name", place) is None
        assert model.get("class_is_thing", place) == -1
        assert model.get("class_color", place) == -1
        assert math.isnan(model.get("threshold", place))
    assert c_library.call("abi_version") == 1
