"""Images at web addresses, from a local server."""

from __future__ import annotations

import http.server
import io
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from clips import QuietServer
from PIL import Image

from eomt_deploy import load_image, web
from eomt_deploy.errors import ImageError
from eomt_deploy.image_search import find_images, search_images
from eomt_deploy.predictions import identity, output_names

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/a.png?token=secret")
            self.end_headers()
        elif path == "/away.png":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/a.png")
            self.end_headers()
        elif path == "/endless.png":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
        elif path == "/elsewhere.png":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.path.split('?')[1]}/x.png")
            self.end_headers()
        elif path == "/slow.png":
            self.send_response(200)
            self.end_headers()
            for byte in png():
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        elif path == "/stuck.png":
            self.send_response(200)
            self.end_headers()
            self.server.stuck.wait(10)
        elif path == "/camera":
            self.answer("multipart/x-mixed-replace", b"--x")
        elif path == "/page.png":
            self.answer("text/html", b"<html>")
        elif path == "/private.png":
            allowed = self.headers.get("Authorization") == "Basic " + b64encode(b"me:p@ss").decode()
            self.answer("image/png", png()) if allowed else self.send_error(401)
        elif unquote(path) == "/stra\u00dfe und h\u00f6he.png":
            self.answer("image/png", png())
        elif path in ("/a.png", "/b/a.png", "/short.png"):
            content = png()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: 40 if path == "/short.png" else None])
        else:
            self.send_error(404)

    def answer(self, kind: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = QuietServer(("127.0.0.1", 0), Handler)
    server.stuck = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stuck.set()
    server.shutdown()
    server.server_close()


def test_user_and_password(site: str):
    address = site.replace("://", "://me:p%40ss@") + "/private.png"
    np.testing.assert_array_equal(load_image(address), PIXELS)
    with pytest.raises(ImageError, match="401"):
        load_image(f"{site}/private.png")


@pytest.mark.parametrize("path", ["/a.png", "/moved.png"])
def test_pixels(site: str, path: str):
    np.testing.assert_array_equal(load_image(site + path), PIXELS)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/none.png", "answers 404 Not Found"),
        ("/page.png", "page.png is not an image|cannot be decoded"),
        ("/camera", r"is a video or a stream \(multipart/x-mixed-replace\)"),
        ("/away.png", "cannot be downloaded|another kind of address"),
        ("/short.png", "ended after 40 of"),
    ],
)
def test_errors(site: str, path: str, words: str):
    with pytest.raises(ImageError, match=words) as caught:
        load_image(f"{site}{path}?token=secret")
    assert "secret" not in str(caught.value)
    assert caught.value.fix


def test_the_password_is_not_sent_to_another_server(site: str):
    seen = []

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.handle_request, daemon=True).start()
    address = f"{site}/elsewhere.png?{server.server_port}".replace("://", "://me:secret@")
    with pytest.raises(ImageError, match="404"):
        load_image(address)
    server.server_close()
    assert seen == [None]


def test_the_total_time(site: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "TOTAL_SECONDS", 0.5)
    with pytest.raises(ImageError, match=r"takes more than 0\.5 s"):
        load_image(f"{site}/slow.png")


def test_addresses_as_people_write_them(site: str):
    np.testing.assert_array_equal(load_image(f"{site}/stra\u00dfe und h\u00f6he.png"), PIXELS)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("http://h/a%00b.jpg", "ab.jpg"), ("http://h/a%0Ab%2F..%2Fc.jpg", "c.jpg"),
        ("http://h/...jpg", "jpg"), ("http://h/" + 300 * "a" + ".jpg", 96 * "a" + ".jpg"),
        ("http://[::1/x.jpg", "image"), ("http://h/%2e%2e/", "image"), ("http://h", "h"),
    ],
)  # fmt: skip
def test_names_of_files(address: str, wanted: str):
    assert web.file_name(address) == wanted


def test_size_limit(site: str):
    with pytest.raises(ImageError, match="the maximum for an image"):
        load_image(f"{site}/endless.png", max_pixels=100_000)


def test_time_limit(site: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "ANSWER_SECONDS", 0.2)
    with pytest.raises(ImageError, match="timed out"):
        load_image(f"{site}/stuck.png")


def test_a_server_that_does_not_exist():
    with pytest.raises(ImageError, match=r"downloaded: Connection refused\.") as caught:
        load_image("http://user:password@127.0.0.1:9/a.png?key=1")
    assert "password" not in str(caught.value)


def test_search(tmp_path: Path):
    (tmp_path / "list.txt").write_text("https://host/a.png\n")
    found = search_images([f"@{tmp_path}/list.txt", "https://host/b.png"], addresses=True)
    assert found.addresses == ("https://host/a.png", "https://host/b.png")
    with pytest.raises(ImageError, match="files are needed here"):
        find_images(["https://host/b.png"])


def test_names_and_identities():
    sources = [
        "https://one/a.png?id=1", "https://one/a.png?id=2", "https://two/", "https://one/x%20y.jpg",
    ]  # fmt: skip
    names = output_names([*sources, Path("folder/a.jpg")])
    assert [names[s] for s in sources] == ["a", "a (2)", "two", "x y"]
    assert names[Path("folder/a.jpg")] == "a (3)"
    first, second = (identity(s) for s in sources[:2])
    assert first != second
    assert first.startswith("https://one/a.png#")
    assert "id=" not in first


def test_many_addresses_with_the_same_name():
    sources = [f"https://host/{number}/image.jpg" for number in range(30_000)]
    names = output_names(sources)
    assert len(set(names.values())) == len(sources)
    assert names[sources[-1]] == "image (30000)"
