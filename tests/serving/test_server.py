"""A real server: clients of the protocol, `POST /segment`, formats and errors."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tiny
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from served import encoded, running

from eomt_deploy import Segmentation, Segmenter
from eomt_deploy.errors import UsageError
from eomt_deploy.files import JPEG_MAX_SIDE
from eomt_deploy.serving.formats import encode
from eomt_deploy.serving.run import Running
from eomt_deploy.serving.work import Options

TASKS = ("panoptic", "instance", "semantic")
LOW = {"panoptic": {"score_threshold": 0.1, "overlap_threshold": 0.1}, "instance": {}}
"""Thresholds at which a network with random weights finds segments."""
SIZES = [(48, 64), (90, 40), (64, 64), (33, 71), (120, 100)]
IMAGES = [encoded(i, SIZES[i % 5], "JPEG" if i % 3 == 2 else "PNG") for i in range(17)]
"""With three tasks, 51 results are compared in each test."""


@pytest.fixture(scope="module")
def paths(exported: Any) -> dict[str, Path]:
    return {task: exported(task) for task in TASKS}


@pytest.fixture(scope="module")
def server(paths: dict[str, Path]) -> Iterator[Running]:
    with running(paths, grpc_port=0) as found:
        yield found


@pytest.fixture(scope="module")
def web(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def expected(paths: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Results of `Segmenter.predict` by task."""
    found = {}
    for task, path in paths.items():
        with Segmenter(path, backend="onnxruntime", threads=1) as segmenter:
            found[task] = [
                segmenter.predict(image, **LOW.get(task, {})).to_dict(masks="rle")
                for image in IMAGES
            ]
    assert all(any(one["segments"] for one in many) for many in found.values())
    return found


def array_of(images: list[bytes]) -> np.ndarray:
    array = np.empty(len(images), object)
    array[:] = images
    return array


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_over_http(server, expected, task, binary):
    client = tritonclient.http.InferenceServerClient(server.address.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(task)
    assert client.get_server_metadata()["name"] == "eomt-deploy"
    assert client.get_model_metadata(task, "1")["inputs"][0]["name"] == "image"
    tensor = tritonclient.http.InferInput("image", [len(IMAGES)], "BYTES")
    tensor.set_data_from_numpy(array_of(IMAGES))
    wanted = tritonclient.http.InferRequestedOutput("result", binary_data=binary)
    answer = client.infer(
        task, [tensor], outputs=[wanted], request_id="a", parameters=LOW.get(task)
    )
    assert answer.get_response()["id"] == "a"
    found = answer.as_numpy("result")
    assert [json.loads(text) for text in found] == expected[task]


@pytest.mark.parametrize("task", TASKS)
def test_tritonclient_over_grpc(server, expected, task):
    client = tritonclient.grpc.InferenceServerClient(server.grpc_address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(task, "1")
    assert client.get_server_metadata().name == "eomt-deploy"
    assert client.get_model_metadata(task).outputs[0].name == "result"
    assert {m.name for m in client.get_model_repository_index().models} == set(TASKS)
    tensor = tritonclient.grpc.InferInput("image", [len(IMAGES), 1], "BYTES")
    tensor.set_data_from_numpy(array_of(IMAGES).reshape(-1, 1))
    answer = client.infer(task, [tensor], parameters=LOW.get(task))
    assert [json.loads(text) for text in answer.as_numpy("result")] == expected[task]


def test_tritonclient_sends_pixels(server, expected):
    client = tritonclient.grpc.InferenceServerClient(server.grpc_address)
    pixels = np.asarray(Image.open(io.BytesIO(IMAGES[0])))
    tensor = tritonclient.grpc.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    answer = client.infer("panoptic", [tensor], parameters=LOW["panoptic"])
    assert json.loads(answer.as_numpy("result")[0]) == expected["panoptic"][0]


def test_typed_contents_over_grpc(server, expected):
    """Clients other than tritonclient may put the elements into the typed contents."""
    import grpc

    from eomt_deploy.serving.protocol import MESSAGES, SERVICE

    request = MESSAGES["ModelInferRequest"](model_name="semantic", id="x")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(IMAGES[1])
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=MESSAGES["ModelInferRequest"].SerializeToString,
            response_deserializer=MESSAGES["ModelInferResponse"].FromString,
        )
        answer = call(request)
    (text,) = answer.outputs[0].contents.bytes_contents
    assert json.loads(text) == expected["semantic"][1]


def test_errors_over_grpc(server):
    client = tritonclient.grpc.InferenceServerClient(server.grpc_address)
    tensor = tritonclient.grpc.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(array_of([b"no image"]))
    with pytest.raises(tritonclient.grpc.InferenceServerException) as found:
        client.infer("panoptic", [tensor])
    assert found.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(tritonclient.grpc.InferenceServerException, match="no model 'cars'"):
        client.infer("cars", [tensor])
    with pytest.raises(tritonclient.grpc.InferenceServerException, match="no version"):
        client.infer("panoptic", [tensor], model_version="2")


@pytest.mark.parametrize("task", TASKS)
def test_segment(web, expected, task):
    for image, wanted in zip(IMAGES, expected[task], strict=True):
        answer = web.post("/segment", params={"model": task} | LOW.get(task, {}), content=image)
        assert answer.status_code == 200
        assert answer.json() == wanted
        stages = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
        assert stages == ["queue", "read", "network", "postprocess", "encode"]


def test_segment_takes_a_form(web, expected):
    answer = web.post("/segment", params=LOW["panoptic"], files={"image": ("a.png", IMAGES[0])})
    assert answer.json() == expected["panoptic"][0]
    answer = web.post("/segment", files={"photo": ("a.png", IMAGES[0])})
    assert answer.status_code == 400
    assert "'image'" in answer.json()["error"]
    answer = web.post(
        "/segment", content=b"broken", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 400


def test_formats(web, paths):
    with Segmenter(paths["panoptic"], backend="onnxruntime", threads=1) as segmenter:
        result = segmenter.predict(IMAGES[0], **LOW["panoptic"])

    def get(form: str, **more: Any) -> httpx.Response:
        params = {"format": form, **LOW["panoptic"], **more}
        answer = web.post("/segment", params=params, content=IMAGES[0])
        assert answer.status_code == 200, answer.text
        return answer

    assert get("polygons", tolerance=2).json() == result.to_dict(2)
    coco = get("coco").json()
    assert [a["segmentation"] for a in coco["annotations"]] == [
        a["segmentation"] for a in result.to_coco()
    ]
    assert {a["image_id"] for a in coco["annotations"]} == {coco["images"][0]["id"]}
    picture, info = result.to_panoptic()
    panoptic = get("panoptic").json()
    assert panoptic["segments_info"] == info
    decoded = Image.open(io.BytesIO(base64.b64decode(panoptic["png"])))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture))
    png = get("png")
    assert png.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(png.content))), np.asarray(result.label_image())
    )
    overlay = get("overlay")
    assert Image.open(io.BytesIO(overlay.content)).size == SIZES[0][::-1]
    name = result.regions()[0].class_name
    kept = get("rle", classes=name).json()
    assert kept == result.filter(classes=name).to_dict(masks="rle")
    assert {s["class_name"] for s in kept["segments"]} == {name}


@pytest.mark.parametrize(
    ("params", "content", "status", "text"),
    [
        ({}, b"no image", 400, "image"),
        ({}, b"", 400, "The body is empty"),
        ({}, IMAGES[0][:60], 400, ""),
        ({"model": "cars"}, IMAGES[0], 404, "no model 'cars'"),
        ({"format": "gif"}, IMAGES[0], 400, "format"),
        ({"score_threshold": 2}, IMAGES[0], 400, "score_threshold"),
        ({"model": "semantic", "score_threshold": 0.5}, IMAGES[0], 400, "does not apply"),
        ({"model": "instance", "format": "png"}, IMAGES[0], 400, "overlap"),
        ({"model": "semantic", "format": "panoptic"}, IMAGES[0], 400, "panoptic"),
        ({"classes": "unicorn"}, IMAGES[0], 400, "unicorn"),
        ({"classes": "1" * 5000}, IMAGES[0], 400, "1111"),
        ({"tolerance": 1e300, "format": "polygons"}, IMAGES[0], 400, "tolerance"),
        ({"image": "0" * 32}, b"", 404, "not kept"),
    ],
)
def test_errors_over_http(web, params, content, status, text):
    answer = web.post("/segment", params=params, content=content)
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert text in found["error"]
    assert found["fix"]


def test_an_overlay_that_is_too_wide():
    size = (1, JPEG_MAX_SIDE + 1)
    result = Segmentation("semantic", size, tiny.spec().classes, labels=np.zeros(size, np.uint8))
    with pytest.raises(UsageError, match="pixels per side"):
        encode(result, Options("overlay"))


def test_one_bad_image_does_not_affect_others(web, expected):
    """Requests that arrive together form a batch."""
    from concurrent.futures import ThreadPoolExecutor

    bodies = [IMAGES[0], b"broken", IMAGES[1], b"", IMAGES[2], b"x" * 100] * 6

    def send(body: bytes) -> httpx.Response:
        return web.post("/segment", params=LOW["panoptic"], content=body)

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(send, bodies))
    for body, answer in zip(bodies, answers, strict=True):
        if body in IMAGES:
            assert answer.json() == expected["panoptic"][IMAGES.index(body)]
        else:
            assert answer.status_code == 400


def test_post_processing_again(web, paths):
    answer = web.post("/segment", params={"keep": True}, content=IMAGES[0])
    key = answer.headers["x-image"]
    again = web.post("/segment", params={"image": key, **LOW["panoptic"]})
    stages = again.headers["server-timing"]
    assert "postprocess" in stages
    assert "network" not in stages
    with Segmenter(paths["panoptic"], backend="onnxruntime", threads=1) as segmenter:
        result = segmenter.predict(IMAGES[0], **LOW["panoptic"])
    assert again.json() == result.to_dict(masks="rle")
    overlay = web.post("/segment", params={"image": key, "format": "overlay"})
    assert Image.open(io.BytesIO(overlay.content)).size == SIZES[0][::-1]
    other_model = web.post("/segment", params={"image": key, "model": "semantic"})
    assert other_model.status_code == 404


def test_descriptions(web):
    assert [model["name"] for model in web.get("/models").json()] == list(TASKS)
    semantic = web.get("/models").json()[2]
    assert semantic["thresholds"] == {}
    assert semantic["classes"][0]["name"]
    assert web.get("/v2").json()["extensions"] == ["model_repository"]
    assert web.get("/v2/models/none").status_code == 404
    assert web.get("/v2/models/semantic/versions/1/ready").status_code == 200
    schema = web.get("/openapi.json").json()
    assert "/segment" in schema["paths"]
    assert "multipart/form-data" in schema["paths"]["/segment"]["post"]["requestBody"]["content"]
    for path in ("/", "/docs", "/page/main.js"):
        assert web.get(path).status_code == 200
    assert web.get("/unknown").json()["error"] == "Not Found."
    assert web.get("/segment").status_code == 405
    assert web.head("/v2/health/ready").status_code == 200


def test_metrics(web):
    web.post("/segment", content=IMAGES[0])
    text = web.get("/metrics").text
    for name in (
        'eomt_requests_total{protocol="http",route="/segment",status="200"}',
        'eomt_stage_seconds_bucket{le="0.001",model="panoptic",stage="network"}',
        'eomt_batch_images_count{model="panoptic"}',
        'eomt_queue_requests{model="panoptic"} 0.0',
    ):
        assert name in text


def test_reload(exported, tmp_path):
    """A replaced model file is used after a reload, and a damaged one changes nothing."""
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("semantic").read_bytes())
    with (
        running({"m": path}, grpc_port=0) as server,
        httpx.Client(base_url=server.address, timeout=60) as web,
    ):
        path.write_bytes(exported("panoptic").read_bytes())
        assert web.get("/models").json()[0]["task"] == "semantic"
        client = tritonclient.http.InferenceServerClient(
            server.address.removeprefix("http://"), network_timeout=60
        )
        client.load_model("m")
        assert web.get("/models").json()[0]["task"] == "panoptic"
        assert web.post("/segment", content=IMAGES[0]).json()["task"] == "panoptic"
        kept = web.post("/segment", params={"keep": True}, content=IMAGES[0]).headers["x-image"]
        assert web.post("/segment", params={"image": kept}).status_code == 200
        client.load_model("m")
        assert web.post("/segment", params={"image": kept}).status_code == 404
        path.write_bytes(b"damaged")
        assert web.post("/v2/repository/models/m/load").status_code == 400
        assert web.post("/segment", content=IMAGES[0]).json()["task"] == "panoptic"
        refused = web.post(
            "/v2/repository/models/m/load", json={"parameters": {"file:1/model.onnx": "AAAA"}}
        )
        assert refused.status_code == 400
        assert "cannot send models" in refused.json()["error"]
