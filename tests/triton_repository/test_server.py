"""The real tritonserver, with NVIDIA's clients: the results are those of ``Segmenter``.

The package nvidia-pytriton contains the server with its Python backend only, so Python also runs
the networks of the forms bls and ensemble here; everything else is what users run.
"""

from __future__ import annotations

import io
import runpy
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import triton_server
import tritonclient.grpc
import tritonclient.http
from filelock import FileLock
from PIL import Image
from tritonclient.utils import InferenceServerException

from eomt_deploy import Segmenter
from eomt_deploy.triton.options import TritonConfig
from eomt_deploy.triton.repository import write_repository

# It downloads the server, 144 MB: a test run must not depend on that.
pytestmark = pytest.mark.slow
TASKS = ("semantic", "instance", "panoptic")


@pytest.fixture(scope="session")
def installed(common: Path, pytestconfig: pytest.Config) -> Path:
    """The folder with the server, installed once and kept for the next test run."""
    if reason := triton_server.problem():
        pytest.skip(reason)
    cache = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("tritonserver") if cache else common / "tritonserver"
    folder.mkdir(exist_ok=True)
    with FileLock(common / "tritonserver.lock"):
        try:
            triton_server.install(folder)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"pip could not install the server: {error}")
    return folder


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Client:
    """Sends images over HTTP or gRPC, and compares the results with those of a model file."""

    def __init__(self, module, address: str) -> None:
        self.module = module
        options = {"concurrency": 8} if module is tritonclient.http else {}
        self.connection = module.InferenceServerClient(address, **options)

    def send(self, name: str, images: list[bytes], version: str = "", **thresholds) -> list[str]:
        tensor = self.module.InferInput("image", [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(images, object).reshape(-1, 1))
        reply = self.connection.infer(
            name, [tensor], model_version=version, parameters=thresholds or None
        )
        result = reply.as_numpy("result")
        assert result.shape == (len(images), 1)
        return [text.decode() for text in result.ravel()]

    def refuses(self, name: str, images: list[bytes], **thresholds) -> str:
        with pytest.raises(InferenceServerException) as error:
            self.send(name, images, **thresholds)
        return error.value.message()


def expected(segmenter: Segmenter, images: list[bytes], **thresholds) -> list[str]:
    return [segmenter.predict(i, **thresholds).to_json(masks="rle") for i in images]


def test_the_results_of_a_real_server(installed, exported, image_path, gradient, tmp_path, capsys):
    repository = tmp_path / "repo"

    def write(task, name, **options):
        config = TritonConfig(
            (exported(task),), repository, name=name, device="cpu", instances=1, **options
        )
        write_repository(config)

    for task in TASKS:
        write(task, task, max_queue_delay_us=20_000)
    write("semantic", "calling", form="bls", max_batch=2)
    write("semantic", "steps", form="ensemble", max_batch=4)
    for network in repository.glob("*_network"):
        triton_server.run_network_in_python(network)
    photo = image_path.read_bytes()
    long = jpeg(np.tile(gradient, (1, 4, 1)))  # six windows
    images = [photo, jpeg(gradient), jpeg(np.rot90(gradient))]
    poll = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with triton_server.TritonServer(repository, installed, tmp_path / "log.txt", poll) as server:
        segmenters = {task: Segmenter(exported(task), device="cpu") for task in TASKS}
        http = Client(tritonclient.http, server.http)
        grpc = Client(tritonclient.grpc, server.grpc)
        for client in (http, grpc):
            check_results(client, segmenters, images, long)
            assert not client.connection.is_model_ready("panoptic", "2")
            check_thresholds(client, segmenters, images)
            check_errors(client, photo, long)
        check_that_an_error_is_of_one_request(grpc, segmenters, photo)
        write("semantic", "panoptic", version=2, max_queue_delay_us=20_000)
        check_a_version_that_is_added_to_a_running_server(grpc, segmenters, images)
        program = runpy.run_path(str(triton_server.ROOT / "examples" / "triton_client.py"))
        program["main"](server.grpc, "instance", str(image_path))
        log = server.log()
    result = segmenters["instance"].predict(image_path)
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == f"{image_path}: instance, {len(result)} segments"
    assert [int(row.split()[-2]) for row in rows] == list(result.areas)
    assert "Traceback" not in log
    assert "failed to run warmup" not in log.lower()


def check_results(client, segmenters, images, long):
    for task, segmenter in segmenters.items():
        assert client.send(task, images) == expected(segmenter, images)
    semantic = expected(segmenters["semantic"], [*images, long])
    assert client.send("calling", [*images, long]) == semantic
    for image, result in zip(images, semantic, strict=False):
        assert client.send("steps", [image]) == [result]


def check_a_version_that_is_added_to_a_running_server(client, segmenters, images):
    for _ in range(600):
        if client.connection.is_model_ready("panoptic", "2"):
            break
        time.sleep(0.1)
    semantic = expected(segmenters["semantic"], images)
    assert client.send("panoptic", images, "2") == semantic
    assert client.send("panoptic", images) == semantic  # the newest version
    assert client.send("panoptic", images, "1") == expected(segmenters["panoptic"], images)


def check_thresholds(client, segmenters, images):
    given = {"score_threshold": 0.3, "mask_threshold": 0.6, "overlap_threshold": 0.5}
    found = client.send("panoptic", images, **given)
    assert found == expected(segmenters["panoptic"], images, **given)
    assert found != expected(segmenters["panoptic"], images)
    score = {"score_threshold": 0.01}
    assert client.send("instance", images, **score) == expected(
        segmenters["instance"], images, **score
    )


def check_errors(client, photo, long):
    for name in ("semantic", "calling", "steps"):
        assert "E203: The encoded image" in client.refuses(name, [photo[:2000]])
        assert "E203: The encoded image" in client.refuses(name, [b"/etc/hostname"])
        words = client.refuses(name, [photo], score_threshold=0.5)
        assert "E201: The score threshold does not apply to a semantic model" in words
    assert "must be between 0 and 1" in client.refuses("instance", [photo], score_threshold=2)
    assert "have 6 network inputs, the maximum is 4" in client.refuses("steps", [long])


def check_that_an_error_is_of_one_request(client, segmenters, photo):
    """Triton combines requests that arrive together into one call of the Python model."""

    def send(number):
        image = photo[:3000] if number % 3 == 0 else photo
        try:
            return client.send("instance", [image], score_threshold=number / 100)
        except InferenceServerException as error:
            return error.message()

    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(send, range(9)))
    for number, result in enumerate(found):
        if number % 3 == 0:
            assert "E203: The encoded image" in result
        else:
            score = number / 100
            assert result == expected(segmenters["instance"], [photo], score_threshold=score)
