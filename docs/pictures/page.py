"""The pictures of docs/serving.md and docs/backends/web.md: the page in Chromium.

eomt-deploy export eomt-tiny-scenes -o tiny.onnx
eomt-deploy serve tiny.onnx
python docs/pictures/page.py http://127.0.0.1:8000 -o docs/pictures/page.png

eomt-deploy build tiny.onnx -o site/
python -m http.server -d site 8001
python docs/pictures/page.py http://127.0.0.1:8001 -o docs/pictures/site.png
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SCENE = Path(__file__).parents[2] / "examples" / "scenes" / "scene-1.png"
SIZE = {"width": 1180, "height": 700}


def main() -> None:
    """Open the page, choose an image, and save what the browser shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport=SIZE)
        page.goto(options.address)
        page.get_by_text("Choose an image.").wait_for()  # a site is loaded twice
        page.set_input_files("#file", SCENE)
        page.locator("#legend li").first.wait_for()
        box = page.locator("#canvas").bounding_box()
        assert box
        page.mouse.move(box["x"] + 0.55 * box["width"], box["y"] + 0.45 * box["height"])
        page.wait_for_timeout(300)
        shot = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(256).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
