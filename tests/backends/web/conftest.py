"""Sites with the tiny models, and programs that run them."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from filelock import FileLock
from PIL import Image

import eomt_deploy
from eomt_deploy.backends.web.build import build_web
from eomt_deploy.backends.web.config import WebConfig
from eomt_deploy.backends.web.runtime import FILES, runtime_files
from eomt_deploy.errors import MissingDependencyError
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.spec import METADATA_KEY, RESIZE_RULES, TASK_THRESHOLDS, ModelSpec, Task

PROGRAM = Path(__file__).parent / "run_site.mjs"
SCENES = Path(eomt_deploy.__file__).parents[1] / "examples" / "scenes"
SIZES = ((37, 53), (64, 64), (300, 90), (181, 400))
"""Sizes of the generated images."""


@pytest.fixture(scope="session")
def package(common: Path) -> Path:
    """The files of the package onnxruntime-web, from the cache folder or from npm."""
    folder = common / "onnxruntime-web"
    with FileLock(common / "onnxruntime-web.lock"):
        if not folder.exists():
            try:
                files = runtime_files(None)
            except MissingDependencyError as error:
                pytest.skip(str(error))
            folder.mkdir()
            for file in FILES:
                (folder / file.source).write_bytes(files[file.target])
    return folder


@pytest.fixture(scope="session")
def scenes(common: Path) -> Callable[[Task], Path]:
    """The embedded model for each task; its graph is the same for all of them."""
    folder = common / "scene_models"
    folder.mkdir(exist_ok=True)

    def get(task: Task) -> Path:
        path = folder / f"{task}.onnx"
        with FileLock(common / "scenes.lock"):
            if not (folder / "panoptic.onnx").exists():
                export(ExportConfig("eomt-tiny-scenes", folder / "panoptic.onnx"))
            if not path.exists():
                model = onnx.load(folder / "panoptic.onnx")
                (entry,) = (e for e in model.metadata_props if e.key == METADATA_KEY)
                entry.value = dataclasses.replace(
                    ModelSpec.from_json(entry.value), task=task, resize=RESIZE_RULES[task],
                    thresholds=TASK_THRESHOLDS[task],
                ).to_json()  # fmt: skip
                onnx.save(model, path)
        return path

    return get


@pytest.fixture(scope="session")
def make_site(
    package: Path, scenes: Callable[[Task], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Task], Path]:
    """Build a site with the embedded model, once per task."""

    @functools.cache
    def make(task: Task) -> Path:
        folder = tmp_path_factory.mktemp(f"site-{task}")
        build_web(WebConfig(scenes(task), folder / "index.html", onnxruntime_web=package))
        return folder

    return make


@pytest.fixture(scope="session")
def ten_images() -> dict[str, np.ndarray]:
    """The drawn scenes, and generated images of other sizes, uint8 [H, W, 3], by name."""
    found = {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in SCENES.iterdir()}
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        coarse = rng.integers(0, 256, (-(-height // 12), -(-width // 12), 3), np.uint8)
        image = coarse.repeat(12, 0).repeat(12, 1)[:height, :width]
        found[f"{height}x{width}"] = np.ascontiguousarray(image)
    assert len(found) == 10
    return found


@dataclass(frozen=True)
class NodeResult:
    """What a site computed in Node.

    Attributes:
        data: task, size and segments.
        masks: bool [N, H, W].
        logits: class logits and mask logits of the network, float32, flat.
        coco: the result in COCO's format.
    """

    data: dict[str, Any]
    masks: np.ndarray
    logits: tuple[np.ndarray, np.ndarray]
    coco: dict[str, Any]


@pytest.fixture
def in_node(tmp_path: Path) -> Callable[..., list[NodeResult]]:
    """Segment images with a site in Node.

    The thresholds are a list: the network runs once, and the last thresholds give the result.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")

    def run(
        site: Path, images: list[np.ndarray], thresholds: list[dict[str, float]]
    ) -> list[NodeResult]:
        copy = tmp_path / "site"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(site, copy)
        (copy / "package.json").write_text('{"type": "module"}')  # for Node; browsers do not ask
        jobs = []
        for number, image in enumerate(images):
            pixels = tmp_path / f"{number}.rgba"
            opaque = np.full((*image.shape[:2], 1), 255, np.uint8)
            pixels.write_bytes(np.concatenate([image, opaque], axis=2).tobytes())
            jobs.append({
                "pixels": str(pixels), "height": image.shape[0], "width": image.shape[1],
                "thresholds": thresholds, "out": str(tmp_path / str(number)),
            })  # fmt: skip
        (tmp_path / "jobs.json").write_text(json.dumps(jobs))
        # To optimise ONNX Runtime's code costs V8 more than these tests compute.
        command = [node, "--wasm-tiering-budget=100000000", PROGRAM, copy, tmp_path / "jobs.json"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        return [_read(tmp_path / str(number), image) for number, image in enumerate(images)]

    return run


def _read(out: Path, image: np.ndarray) -> NodeResult:
    data = json.loads(out.with_suffix(".json").read_text())
    masks = np.frombuffer(out.with_suffix(".masks").read_bytes(), np.uint8)
    classes, logits = (
        np.frombuffer(out.with_suffix(suffix).read_bytes(), np.float32)
        for suffix in (".classes", ".logits")
    )
    return NodeResult(
        data["result"],
        masks.reshape(-1, *image.shape[:2]).astype(bool),
        (classes, logits),
        data["coco"],
    )


@pytest.fixture
def serve() -> Callable[..., Any]:
    """Serve a folder as `python -m http.server` does; a context manager that gives the address."""

    @contextmanager
    def run(folder: Path) -> Iterator[str]:
        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    return run
