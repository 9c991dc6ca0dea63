"""A site in a real browser: the results of Python, without a network or another server."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from eomt_deploy import Segmenter
from eomt_deploy.backends.web.build import build_web
from eomt_deploy.backends.web.config import WebConfig

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.external,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
# To optimise ONNX Runtime's code costs more than these tests compute.
RARELY_OPTIMISED = "--js-flags=--wasm-tiering-budget=100000000"
# A GPU that the CPU computes.
SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
TIMEOUT = 60_000
TRANSFER = """(name) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(window.given)], name, {type: 'image/png'}));
  return data;
}"""


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as found:
        yield found


@pytest.fixture(scope="module")
def launch(playwright: Any) -> Callable[..., Any]:
    return lambda *flags: playwright.chromium.launch(
        executable_path=BROWSER, args=["--no-sandbox", RARELY_OPTIMISED, *FAKE_CAMERA, *flags]
    )


@pytest.fixture(scope="module")
def chromium(launch: Callable[..., Any]) -> Iterator[Any]:
    found = launch()
    yield found
    found.close()


@contextmanager
def opened(chromium: Any, address: str) -> Iterator[Any]:
    """The page, ready; errors of its program and requests to other servers fail the test."""
    context = chromium.new_context(viewport={"width": 1100, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    problems: list[str] = []
    origin = address.split("?")[0]
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on("request", lambda request: check(request.url))

    def check(url: str) -> None:
        if not url.startswith((origin, "blob:")):
            problems.append(url)

    page.goto(address)
    page.get_by_text("Choose an image.").wait_for()
    yield page
    context.close()
    assert not problems


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def choose(page: Any, image: np.ndarray) -> None:
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(image)})


def segments(page: Any, count: int) -> None:
    page.get_by_text(f"({count})", exact=True).wait_for()


def coco_of(page: Any) -> dict[str, Any]:
    with page.expect_download() as found:
        page.get_by_role("button", name="Download COCO JSON").click()
    content: dict[str, Any] = json.loads(Path(found.value.path()).read_text())
    return content


def assert_equal(coco: dict[str, Any], expected: Any, *, differ: float = 0) -> None:
    """The masks of a COCO file are those of Python, except for this share of their pixels."""
    assert len(coco["annotations"]) == len(expected)
    wrong = []
    for annotation, region in zip(coco["annotations"], expected, strict=True):
        assert annotation["category_id"] == region.class_id
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        wrong.append((mask != region.mask).mean())
    assert np.mean(wrong or [0]) <= differ


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_images(task, chromium, make_site, scenes, ten_images, serve):
    with (
        serve(make_site(task)) as address,
        opened(chromium, address) as page,
        Segmenter(scenes(task), backend="onnxruntime", threads=1) as segmenter,
    ):
        assert page.evaluate("crossOriginIsolated")  # for threads
        # In Node, each task segments all of them.
        for image in list(ten_images.values())[:: 1 if task == "panoptic" else 3]:
            expected = segmenter.predict(image)
            choose(page, image)
            page.get_by_text(f"{image.shape[1]} × {image.shape[0]} pixels").wait_for()
            segments(page, len(expected))
            # A pixel of an instance whose logit is almost 0 may differ: see test_site_in_node.py.
            assert_equal(coco_of(page), expected, differ=1e-5 if task == "instance" else 0)
            page.get_by_role("button", name="Another image").click()


def test_drop_slider_legend_and_downloads(chromium, make_site, scenes, ten_images, serve):
    image = ten_images["scene-2"]
    with Segmenter(scenes("panoptic"), backend="onnxruntime", threads=1) as segmenter:
        default = segmenter.predict(image)
        low = segmenter.predict(image, score_threshold=0.99)
        colors = {info.id: info.color for info in segmenter.classes}
    assert 0 < len(low) < len(default)
    with serve(make_site("panoptic")) as address, opened(chromium, address) as page:
        page.evaluate("(bytes) => { window.given = bytes; }", list(png(image)))
        dropped = page.evaluate_handle(TRANSFER, "b.png")
        page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
        segments(page, len(default))
        assert "network" in page.inner_text("#times")
        page.locator("input[name=score]").fill("0.99")  # repeats only the post-processing
        segments(page, len(low))
        assert "network" not in page.inner_text("#times")
        assert page.locator("#legend li").count() == len(low)
        assert_equal(coco_of(page), low)

        region = next(r for r in low if not r.thing)
        page.locator("#outlines").uncheck()
        page.locator("#opacity").fill("1")
        with page.expect_download() as found:
            page.get_by_role("button", name="Download PNG").click()
        assert found.value.suggested_filename == "b-segments.png"
        drawn = np.asarray(Image.open(found.value.path()).convert("RGB"))
        assert {tuple(c) for c in drawn[region.mask]} == {tuple(colors[region.class_id])}

        box = page.locator("#canvas").bounding_box()
        y, x = np.argwhere(region.mask)[len(np.argwhere(region.mask)) // 2]
        page.mouse.move(
            box["x"] + (x + 0.5) / image.shape[1] * box["width"],
            box["y"] + (y + 0.5) / image.shape[0] * box["height"],
        )
        page.locator("#hint").wait_for()
        assert page.inner_text("#hint").startswith(region.class_name)


def test_paste_and_camera(chromium, make_site, ten_images, serve):
    with serve(make_site("panoptic")) as address, opened(chromium, address) as page:
        page.evaluate("(bytes) => { window.given = bytes; }", list(png(ten_images["scene-1"])))
        page.evaluate(
            f"""() => document.dispatchEvent(new ClipboardEvent('paste', {{
              clipboardData: ({TRANSFER})('c.png'), bubbles: true}}))"""
        )
        page.get_by_text("320 × 240 pixels").wait_for()
        page.get_by_role("button", name="Another image").click()
        page.get_by_role("button", name="Use the camera").click()
        page.get_by_role("button", name="Take a picture").click()
        page.get_by_role("status").get_by_text("segments,").wait_for()


def test_without_a_network(chromium, make_site, scenes, ten_images, serve):
    """The server stops; the page loads again, and segments."""
    image = ten_images["scene-1"]
    with Segmenter(scenes("panoptic"), backend="onnxruntime", threads=1) as segmenter:
        expected = segmenter.predict(image)
    stopped = serve(make_site("panoptic"))
    address = stopped.__enter__()
    with opened(chromium, address) as page:
        page.get_by_text("nothing is uploaded, works offline").wait_for()
        stopped.__exit__(None, None, None)
        page.reload()
        page.get_by_text("Choose an image.").wait_for()
        choose(page, image)
        segments(page, len(expected))
        assert_equal(coco_of(page), expected)


def test_a_new_version_of_the_site(chromium, package, scenes, serve, tmp_path):
    """A new build appears when all pages of the site have been closed, and never in part."""

    def build(task: Any) -> None:
        build_web(WebConfig(scenes(task), tmp_path / "s" / "index.html", onnxruntime_web=package))

    found = "async () => Boolean((await navigator.serviceWorker.getRegistration()).waiting)"
    build("panoptic")
    with serve(tmp_path / "s") as address, opened(chromium, address) as page:
        assert page.inner_text("#about").startswith("panoptic")
        build("semantic")
        page.reload()
        page.get_by_text("Choose an image.").wait_for()
        assert page.inner_text("#about").startswith("panoptic")
        for _ in range(100):
            if page.evaluate(found):
                break
            page.wait_for_timeout(200)
        else:
            pytest.fail("The new version was not found.")
        other = page.context.new_page()
        page.close()
        other.wait_for_timeout(2000)
        other.goto(address)
        other.get_by_text("semantic, ").wait_for(timeout=TIMEOUT)
        assert len(other.evaluate("() => caches.keys()")) == 1


def test_a_narrow_screen(chromium, make_site, ten_images, serve):
    with serve(make_site("panoptic")) as address, opened(chromium, address) as page:
        page.set_viewport_size({"width": 360, "height": 740})
        choose(page, ten_images["181x400"])
        page.get_by_role("status").get_by_text("segments,").wait_for()
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360


def test_other_servers_are_refused(chromium, make_site, serve):
    """The headers of the service worker and the page's own rule."""
    with serve(make_site("panoptic")) as address, opened(chromium, address) as page:
        headers = page.evaluate(
            "async () => Object.fromEntries((await fetch('page/worker.js')).headers)"
        )
        assert "default-src 'self'" in headers["content-security-policy"]
        refused = page.evaluate(
            "() => fetch('http://localhost:9/').then(() => '', (error) => error.message)"
        )
        violations = page.locator("meta[http-equiv=Content-Security-Policy]")
        assert refused
        assert "connect-src" in violations.get_attribute("content")


def test_a_file_is_missing(chromium, make_site, serve, tmp_path):
    shutil.copytree(make_site("panoptic"), tmp_path / "site")
    (tmp_path / "site" / "model" / "model.onnx").unlink()
    with serve(tmp_path / "site") as address:
        page = chromium.new_page()
        page.goto(address)
        page.get_by_text("model.onnx cannot be loaded: the server answers 404").wait_for()
        page.close()


def test_webgpu(launch, exported, package, ten_images, serve, tmp_path):
    """WebGPU on a GPU that the CPU computes; pixels whose classes are almost equal may differ."""
    image, model = ten_images["scene-1"], exported("instance")
    build_web(WebConfig(model, tmp_path / "site" / "index.html", onnxruntime_web=package))
    with Segmenter(model, backend="onnxruntime", threads=1) as segmenter:
        expected = segmenter.predict(image)
    assert len(expected) > 1
    with serve(tmp_path / "site") as address:
        chromium = launch(*SOFTWARE_GPU)
        page = chromium.new_page()
        page.set_default_timeout(TIMEOUT)
        page.goto(address)
        page.get_by_text("Choose an image.").wait_for()
        about = page.inner_text("#about")
        if "no GPU" in about:
            pytest.skip("this Chromium has no software GPU")
        assert "WebGPU;" in about
        choose(page, image)
        segments(page, len(expected))
        assert_equal(coco_of(page), expected, differ=1e-3)
        chromium.close()
