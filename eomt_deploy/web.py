"""Images at http(s) addresses, with limits of size and time."""

from __future__ import annotations

import time
from base64 import b64encode
from http import HTTPStatus
from http.client import HTTPException, InvalidURL
from pathlib import PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from eomt_deploy.addresses import is_address, scrubbed, without_secrets
from eomt_deploy.errors import ImageError
from eomt_deploy.files import GENERATOR

ANSWER_SECONDS = 20.0
"""Maximum time between two packets of an answer."""
TOTAL_SECONDS = 120.0
PART_BYTES = 1 << 20
SAFE = "%/:=&;+,~@!$'()*-._"
"""Characters that stay in the path and the query of an address."""
LONGEST_NAME = 100
STREAMS = ("multipart/", "video/", "application/vnd.apple.mpegurl", "application/x-mpegurl")
"""Content types of videos and streams, which have no end or are far larger than images."""


def download(address: str, limit: int) -> bytes:
    """Download an image.

    Args:
        address: http(s) address. Redirects to other http(s) addresses are followed.
        limit: maximum number of bytes.

    Raises:
        ImageError: the server does not answer in time, reports an error, or sends a video or more
            than ``limit`` bytes.
    """
    shown = without_secrets(address)
    began = time.monotonic()
    try:
        with urlopen(_request(address), timeout=ANSWER_SECONDS) as answer:
            if not is_address(answer.url):
                raise ImageError(f"{shown} redirects to another kind of address.", fix=DOWNLOAD)
            kind = answer.headers.get_content_type()
            if kind.startswith(STREAMS):
                raise ImageError(
                    f"{shown} is a video or a stream ({kind}), not an image.",
                    fix="Use an address that ends with the suffix of a video or stream, e.g. .mp4 "
                    "or .mjpg: add #.mjpg to this one, or #.mp4.",
                )
            content = bytearray()
            while part := answer.read1(PART_BYTES):
                content += part
                if len(content) > limit:
                    raise ImageError(
                        f"{shown} has more than {limit} bytes, the maximum for an image.",
                        fix="Pass a larger max_pixels if it is really an image.",
                    )
                if time.monotonic() - began > TOTAL_SECONDS:
                    raise ImageError(f"{shown} takes more than {TOTAL_SECONDS:g} s.", fix=DOWNLOAD)
            wanted = answer.headers.get("Content-Length")
            if wanted is not None and len(content) < int(wanted):
                raise ImageError(
                    f"{shown} ended after {len(content)} of {wanted} bytes.", fix="Try it again."
                )
            return bytes(content)
    except HTTPError as error:
        raise ImageError(
            f"{shown} cannot be downloaded: the server answers {_answer(error.code)}.",
            fix="Check the address.",
        ) from error
    except InvalidURL as error:
        raise ImageError(
            f"{shown} is not a valid address.",
            fix="Write special characters as %XX, e.g. / in a password as %2F.",
        ) from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise ImageError(
            f"{shown} cannot be downloaded: {_reason(error)}.",
            fix="Check the address and the network.",
        ) from error


def _reason(error: Exception) -> str:
    """The cause of an error in words: without its number, and without secrets."""
    cause = getattr(error, "reason", error)
    text = getattr(cause, "strerror", None) or str(cause) or type(error).__name__
    return scrubbed(str(text))


def _request(address: str) -> Request:
    """A request with the user and password of the address, which cameras often need."""
    parts = urlsplit(address)
    user, found, host = parts.netloc.rpartition("@")
    path = quote(parts.path, safe=SAFE)
    plain = parts._replace(
        netloc=host.encode("idna").decode() if not host.isascii() else host,
        path=path, query=quote(parts.query, safe=SAFE + "?"), fragment="",
    )  # fmt: skip
    request = Request(
        plain.geturl(), headers={"User-Agent": GENERATOR.replace(" ", "/"), "Accept": "*/*"}
    )
    if found:  # not for another server that this one redirects to
        secret = b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


def _answer(code: int) -> str:
    """The server's own words may contain secrets."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


DOWNLOAD = "Download the image first, and pass the file."


def file_name(address: str) -> str:
    """The last part of the path of an address, or the host if it has no path; usable as the name
    of a file."""
    try:
        parts = urlsplit(address)
        name = PurePosixPath(unquote(parts.path)).name or parts.hostname or ""
    except ValueError:  # not a valid address
        name = ""
    usable = "".join(c for c in name if c.isprintable() and c not in '\\/:*?"<>|').strip(". ")
    return usable[-LONGEST_NAME:] or "image"
