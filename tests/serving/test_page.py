"""The page in a real browser."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from served import TOKEN, encoded, running

from eomt_deploy import Segmenter
from eomt_deploy.serving.run import Running

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.external,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
TIMEOUT = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", *FAKE_CAMERA]
        )
        yield found
        found.close()


@pytest.fixture(scope="module")
def models(exported: Any) -> dict[str, Path]:
    return {task: exported(task) for task in ("panoptic", "semantic")}


@pytest.fixture(scope="module")
def server(models: dict[str, Path]) -> Iterator[Running]:
    with running(models) as found:
        yield found


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    yield from opened(browser, server)


def opened(browser: Any, server: Running) -> Iterator[Any]:
    """The open page; errors of its program and requests to other servers fail the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))

    def check(request: Any) -> None:
        if not request.url.startswith((server.address, "blob:")):
            problems.append(request.url)

    page.on("request", check)
    page.goto(server.address)
    yield page
    context.close()
    assert not problems


def choose(page: Any, image: bytes) -> None:
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": image})


def segments(page: Any, count: int) -> None:
    page.get_by_text(f"({count})", exact=True).wait_for()


def test_an_image_and_its_downloads(page, models):
    image = encoded(1, (90, 120))
    with Segmenter(models["panoptic"], backend="onnxruntime", threads=1) as segmenter:
        low = segmenter.predict(image, score_threshold=0.1, overlap_threshold=0.1)
        default = segmenter.predict(image)
    assert len(low) != len(default)
    choose(page, image)
    segments(page, len(default))
    # The sliders repeat only the post-processing.
    with page.expect_response(lambda r: "overlap_threshold=0.1" in r.url) as answer:
        page.locator("input[name=score]").fill("0.1")
        page.locator("input[name=overlap]").fill("0.1")
    assert "image=" in answer.value.url
    assert "network" not in answer.value.headers["server-timing"]
    segments(page, len(low))
    assert page.locator("#legend li").count() == len(low)
    assert "network" not in page.inner_text("#times")

    with page.expect_download() as found:
        page.get_by_role("button", name="Download COCO JSON").click()
    content = json.loads(Path(found.value.path()).read_text())
    assert found.value.suggested_filename == "a-coco.json"
    for annotation, segment in zip(content["annotations"], low.segments, strict=True):
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        np.testing.assert_array_equal(mask, segment.mask)

    with page.expect_download() as found:
        page.get_by_role("button", name="Download PNG").click()
    drawn = Image.open(io.BytesIO(Path(found.value.path()).read_bytes()))
    assert drawn.size == (120, 90)


def test_the_overlay_shows_the_masks(page, models):
    """Pixels of a segment have its colour at full opacity."""
    image = encoded(1, (90, 120))
    with Segmenter(models["semantic"], backend="onnxruntime", threads=1) as segmenter:
        result = segmenter.predict(image)
        colors = {info.id: info.color for info in segmenter.classes}
    page.select_option("#model", "semantic")
    page.locator("#outlines").uncheck()
    page.locator("#opacity").fill("1")
    choose(page, image)
    segments(page, len(result))
    with page.expect_download() as found:
        page.get_by_role("button", name="Download PNG").click()
    drawn = np.asarray(Image.open(found.value.path()).convert("RGB"))
    expected = np.zeros_like(drawn)
    for region in result:
        expected[region.mask] = colors[region.class_id]
    np.testing.assert_array_equal(drawn, expected)


def test_hover_and_keyboard(page):
    choose(page, encoded(1, (90, 120)))
    page.select_option("#model", "semantic")
    page.locator("#legend li").first.wait_for()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#hint").wait_for()
    assert "pixels" in page.inner_text("#hint")
    first = page.locator("#legend button").first
    first.focus()
    assert "pixels" in first.get_attribute("aria-label")
    assert page.locator("#canvas").get_attribute("aria-label").startswith("Segments: ")
    # Everything that can be operated has a name for screen readers.
    for role in ("button", "slider", "checkbox", "combobox"):
        for control in page.get_by_role(role).all():
            snapshot = control.aria_snapshot()
            assert '"' in snapshot.splitlines()[0], snapshot


def test_the_camera(page):
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Take a picture").click()
    page.get_by_role("status").get_by_text("segments").wait_for()
    assert page.locator("#live").is_hidden()
    page.get_by_role("button", name="Another image").click()
    page.get_by_role("button", name="Choose a file").wait_for()


def test_a_late_answer_does_not_mix_images(page):
    """The answer for the first image arrives after the second was chosen."""
    held: list[Any] = []

    def hold(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.select_option("#model", "semantic")
    page.route("**/segment?*", hold)
    choose(page, encoded(1, (60, 100)))
    page.wait_for_timeout(200)
    choose(page, encoded(2, (200, 300)))
    page.get_by_text("300 × 200 pixels").wait_for()
    with page.expect_response(lambda r: "/segment" in r.url):
        held[0].continue_()
    with page.expect_download() as found:
        page.get_by_role("button", name="Download COCO JSON").click()
    content = json.loads(Path(found.value.path()).read_text())
    assert content["images"][0]["height"] == 200


def test_a_wrong_file(page):
    choose(page, b"no image")
    page.get_by_text("not an image that the browser can show").wait_for()


def test_a_narrow_screen(page):
    page.set_viewport_size({"width": 360, "height": 740})
    choose(page, encoded(1, (90, 400)))
    page.locator("#legend li, #actions").first.wait_for(state="attached")
    page.get_by_role("status").get_by_text("segments").wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360


def test_the_token(browser, models):
    with running({"m": models["semantic"]}, token=TOKEN) as server:
        for page in opened(browser, server):
            page.get_by_label("Token").fill("wrong")
            page.get_by_role("button", name="Use this token").click()
            page.get_by_text("token is missing or wrong").wait_for()
            page.get_by_label("Token").fill(TOKEN)
            page.get_by_role("button", name="Use this token").click()
            page.get_by_text("Choose an image.").wait_for()
            choose(page, encoded(2))
            page.locator("#legend li").first.wait_for()
            page.goto(f"{server.address}/docs")
            page.get_by_text("POST /segment", exact=True).wait_for()
