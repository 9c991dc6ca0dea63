"""A web server with one weight file, which records its requests."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from eomt_deploy.checkpoints.download import download

CONTENT = bytes(range(256)) * 2000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


@dataclass
class Behaviour:
    """The behaviour of the server, and the requests that it received."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    trusts: bool = False
    """Continues a range even if If-Range does not match the file."""
    stop_at: int | None = None
    """Number of bytes of the file after which the server closes the connection."""
    stall_at: int | None = None
    """Number of bytes of the file after which the server stops sending."""
    extra: dict = field(default_factory=dict)
    chunked: bool = False
    redirect: str | None = None
    requests: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    address: str = ""
    released: threading.Event = field(default_factory=threading.Event)


def handler_of(server: Behaviour):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            server.headers.append(dict(self.headers))
            if self.path.startswith("/redirected"):
                self.send_response(302)
                self.send_header("Location", server.redirect)
                self.end_headers()
            elif not self.path.partition("?")[0].endswith("w.pt"):
                self.send_error(404)
            else:
                self.send_file()

        def send_file(self):
            start, total = 0, len(server.content)
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            same = self.headers.get("If-Range") in (None, server.etag, server.modified)
            if match and server.ranges and (same or server.trusts):
                start = int(match[1])
            if start > total or (start and start == total):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if server.etag:
                self.send_header("ETag", server.etag)
            if server.modified:
                self.send_header("Last-Modified", server.modified)
            for name, value in server.extra.items():
                self.send_header(name, value)
            if server.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(total - start))
            self.end_headers()
            end = min(
                total, *(x for x in (server.stop_at, server.stall_at) if x is not None), total
            )
            body = server.content[start:end]
            if server.chunked:
                body = f"{len(body):x}\r\n".encode() + body + b"\r\n"
                body += b"0\r\n\r\n" if end == total else b""
            self.wfile.write(body)
            self.wfile.flush()
            if server.stall_at is not None:
                server.released.wait(20)

        def log_message(self, *_):
            pass

    return Handler


@contextmanager
def running_server() -> Iterator[Behaviour]:
    behaviour = Behaviour()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(behaviour))
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    behaviour.address = f"http://127.0.0.1:{running.server_port}"
    yield behaviour
    behaviour.released.set()
    running.shutdown()
    running.server_close()


def kept(tmp_path):
    """Names of the files in the cache, without the locks."""
    found = (tmp_path / "cache").rglob("*")
    return sorted(p.name for p in found if p.is_file() and p.parent.name != ".locks")


def fetch(server, path="w.pt", **options):
    return download(f"{server.address}/{path}", **{"insecure": True} | options)
