"""Measure a site in Chromium on this machine: size, start, and the stages of each image.

    eomt-deploy export eomt-tiny-scenes -o tiny.onnx
    python benchmarks/web.py tiny.onnx --rounds 20

It needs playwright and Chromium. The page comes from a server on this machine, so the times contain
no network.
"""

from __future__ import annotations

import argparse
import functools
import io
import shutil
import statistics
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from eomt_deploy.backends.web.build import build_web
from eomt_deploy.backends.web.config import WebConfig
from eomt_deploy.sources import load_image

SCENE = Path(__file__).parents[1] / "examples" / "scenes" / "scene-1.png"
SIZES = ((240, 320), (720, 1280))


class Quiet(SimpleHTTPRequestHandler):
    """A file server without messages."""

    def log_message(self, *_: object) -> None:
        pass


def png(height: int, width: int) -> bytes:
    """The drawn scene at another size."""
    scene = Image.fromarray(load_image(SCENE)).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    scene.save(buffer, "PNG")
    return buffer.getvalue()


def start(page: Any, address: str) -> float:
    """Open the page; seconds until an image can be segmented."""
    began = time.perf_counter()
    page.goto(address)
    page.get_by_text("Choose an image.").wait_for()
    return time.perf_counter() - began


def segment(page: Any, image: bytes) -> dict[str, float]:
    """Milliseconds of each stage, as the page shows them."""
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": image})
    page.get_by_role("status").get_by_text("segments,").wait_for()
    rows = page.locator("#times tr").all()
    found = {row.locator("th").inner_text(): float(row.locator("td").inner_text()) for row in rows}
    page.get_by_role("button", name="Another image").click()
    return found


def main() -> None:
    """Print the figures of one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--onnxruntime-web", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        site = Path(folder) / "site"
        report = build_web(
            WebConfig(options.model, site / "index.html", onnxruntime_web=options.onnxruntime_web)
        )
        for line in report.lines():
            print(line)
        server = ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.set_default_timeout(120_000)
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"first visit: ready after {start(page, address):.2f} s")
        print(f"second visit: ready after {start(page, address):.2f} s")
        print(page.inner_text("#about"))
        for height, width in SIZES:
            image = png(height, width)
            print(f"{width}x{height}, first image, ms:", segment(page, image))
            times = [segment(page, image) for _ in range(options.rounds)]
            medians = {name: statistics.median(t[name] for t in times) for name in times[0]}
            shown = ", ".join(f"{name} {value:.0f}" for name, value in medians.items())
            print(f"{width}x{height}, median of {options.rounds}, ms: {shown}")
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main()
