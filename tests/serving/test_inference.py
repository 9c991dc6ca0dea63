"""Requests of the Open Inference Protocol, without a server."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.serving.inference import (
    MAX_IMAGES,
    InferRequest,
    Tensor,
    join_bytes,
    options_of,
    split_bytes,
    works_of,
)
from eomt_deploy.serving.protocol import CALLS, MESSAGES
from eomt_deploy.serving.rest import infer_response, parse_infer
from eomt_deploy.serving.work import Pixels, RequestError


def infer(inputs: object, tail: bytes = b"", **more: object) -> tuple[bytes, str]:
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + tail, str(len(head))


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_bytes_round_trip(elements):
    assert split_bytes(join_bytes(elements)) == elements


@given(st.binary(max_size=200), st.none() | st.integers(0, 250).map(str) | st.text(max_size=5))
def test_any_body_is_read_or_refused(body, length):
    try:
        works_of(parse_infer(body, length)[0])
    except RequestError as error:
        found = (error.status, bool(error.fix))
        assert found == (400, True)


def test_images_in_json_and_as_binary_data():
    images = [b"first", b"second image"]
    text = [base64.b64encode(image).decode() for image in images]
    entry = {"name": "image", "datatype": "BYTES", "shape": [2]}
    body, _ = infer([entry | {"data": text}], id="7", parameters={"score_threshold": 0.25})
    request, binary = parse_infer(body, None)
    assert [work.image for work in works_of(request)] == images
    assert works_of(request)[0].options.thresholds == {"score": 0.25}
    assert (request.id, binary) == ("7", False)

    tail = join_bytes(images)
    body, length = infer(
        [entry | {"parameters": {"binary_data_size": len(tail)}}],
        tail,
        parameters={"binary_data_output": True},
    )
    request, binary = parse_infer(body, length)
    assert [work.image for work in works_of(request)] == images
    assert binary


def test_pixels():
    entry = {"name": "image", "datatype": "UINT8", "shape": [2, 1, 2, 3]}
    body, _ = infer([entry | {"data": list(range(12))}])
    works = works_of(parse_infer(body, None)[0])
    assert [work.image for work in works] == [
        Pixels(1, 2, bytes(range(6))),
        Pixels(1, 2, bytes(range(6, 12))),
    ]


IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"inputs": []}, "needs one input"),
        ({"inputs": [IMAGE, IMAGE]}, "needs one input"),
        ({"inputs": {}}, "must be a list"),
        ({"inputs": [IMAGE] * 17}, "at most 16"),
        ({"inputs": [IMAGE | {"name": "images"}]}, "'images'"),
        ({"inputs": [IMAGE | {"shape": [2]}]}, "there are 1 elements"),
        ({"inputs": [IMAGE | {"shape": [-1]}]}, "must be positive"),
        ({"inputs": [IMAGE | {"shape": "1"}]}, "list of integers"),
        ({"inputs": [IMAGE | {"shape": [True]}]}, "list of integers"),
        ({"inputs": [IMAGE | {"shape": [1, 1, 1]}]}, r"\[N\] or \[N, 1\]"),
        ({"inputs": [IMAGE | {"data": ["no base64!"]}]}, "base64"),
        ({"inputs": [IMAGE | {"data": [7]}]}, "base64"),
        ({"inputs": [IMAGE | {"data": None}]}, "neither data nor"),
        ({"inputs": [IMAGE | {"datatype": "FP32", "data": [1]}]}, "BYTES or UINT8"),
        ({"inputs": [IMAGE | {"datatype": "UINT8", "data": [1]}]}, r"\[H, W, 3\]"),
        ({"inputs": [IMAGE | {"datatype": "UINT8", "shape": [1, 1, 3], "data": [1]}]}, "3 bytes"),
        ({"inputs": [IMAGE | {"datatype": "UINT8", "shape": [3], "data": [1, 256]}]}, "0 to 255"),
        ({"inputs": [IMAGE | {"datatype": "UINT8", "data": [[1], [2, 3]]}]}, "different lengths"),
        ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 9}}]}, "0 bytes are left"),
        ({"inputs": [IMAGE], "parameters": []}, None),
        ({"inputs": [IMAGE], "parameters": [1]}, "must be an object"),
        ({"inputs": [IMAGE], "outputs": [{"name": "masks"}]}, "no output 'masks'"),
        ({"inputs": [IMAGE], "parameters": {"format": "png"}}, "is not text"),
        ({"inputs": [IMAGE], "parameters": {"format": "gif"}}, "no format"),
        ({"inputs": [IMAGE], "parameters": {"score_threshold": "high"}}, "must be a number"),
        ({"inputs": [IMAGE], "parameters": {"score_threshold": -1}}, "from 0 to"),
        ({"inputs": [IMAGE], "parameters": {"score_threshold": True}}, "must be a number"),
        ({"inputs": [IMAGE], "parameters": {"score_threshold": 10**400}}, "must be a number"),
        ({"inputs": [IMAGE], "parameters": {"tolerance": 1e300}}, "from 0 to"),
        ({"inputs": [IMAGE], "parameters": {"format": ["rle"]}}, "no format"),
        ({"inputs": [IMAGE], "parameters": {"classes": 5}}, "list of names"),
        ({"inputs": [IMAGE], "parameters": {"classes": [None]}}, "list of names"),
        ({"inputs": [IMAGE | {"data": [["AAAA"], 5]}]}, "base64"),
        ({"inputs": [IMAGE], "id": "\ud800"}, "not valid Unicode"),
        ([IMAGE], "must be a JSON object"),
    ],
)
def test_requests_that_do_not_follow_the_protocol(content, text):
    if text is None:
        assert len(works_of(parse_infer(json.dumps(content).encode(), None)[0])) == 1
        return
    with pytest.raises(RequestError, match=text) as found:
        works_of(parse_infer(json.dumps(content).encode(), None)[0])
    assert found.value.status == 400
    assert found.value.fix


def test_binary_data_must_fit():
    body, length = infer([IMAGE], b"more")
    with pytest.raises(RequestError, match="4 bytes more"):
        parse_infer(body, length)
    with pytest.raises(RequestError, match="longer than its data"):
        split_bytes(b"\xff\0\0\0a")
    for length in ("3", "-1", "x", "9" * 5000):
        with pytest.raises(RequestError, match="a body of 2 bytes"):
            parse_infer(b"{}", length)
    with pytest.raises(RequestError, match="more than 8 MiB") as found:
        parse_infer(bytes(9 << 20), None)
    assert found.value.status == 413


def test_deeply_nested_json():
    with pytest.raises(RequestError, match="not JSON"):
        parse_infer(b"[" * 100_000, None)


def test_too_many_images():
    many = [b""] * (MAX_IMAGES + 1)
    request = InferRequest([Tensor("image", "BYTES", (len(many),), many)])
    with pytest.raises(RequestError, match="Split the request"):
        works_of(request)


def test_options():
    given = {"classes": "sky, car", "format": "polygons", "tolerance": 1.5, "mask_threshold": None}
    options = options_of(given)
    assert options.classes == ("sky", "car")
    assert (options.format, options.tolerance, options.thresholds) == ("polygons", 1.5, {})


@pytest.mark.parametrize("binary", [True, False])
def test_response(binary):
    body, headers = infer_response("m", "4", ["ä".encode(), b"two"], binary=binary)
    length = int(headers.get("inference-header-content-length", len(body)))
    content = json.loads(body[:length])
    assert content["id"] == "4"
    (output,) = content["outputs"]
    assert output["shape"] == [2]
    if binary:
        assert split_bytes(body[length:]) == ["ä".encode(), b"two"]
    else:
        assert output["data"] == ["ä", "two"]


def test_messages_are_those_of_other_implementations():
    """Names, numbers and types of our messages equal those of NVIDIA's client."""
    from tritonclient.grpc import service_pb2

    theirs = service_pb2.DESCRIPTOR
    for name, ours in MESSAGES.items():
        if "Entry" in name:
            continue
        other = theirs.message_types_by_name[name]
        for field in ours.DESCRIPTOR.fields:
            same = other.fields_by_name[field.name]
            assert (field.number, field.type) == (same.number, same.type), (name, field.name)
    methods = theirs.services_by_name["GRPCInferenceService"].methods_by_name
    for name, (request, response) in CALLS.items():
        assert methods[name].input_type.name == request
        assert methods[name].output_type.name == response
