"""Images at http(s) addresses, with limits of size and time."""

from __future__ import annotations

import time
from base64 import b64encode
from http.client import HTTPException
from pathlib import PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from eomt_deploy.addresses import is_address, scrubbed, without_secrets
from eomt_deploy.errors import ImageError
from eomt_deploy.files import GENERATOR

ANSWER_SECONDS = 20.0
"""Maximum time between two packets of an answer."""
TOTAL_SECONDS = 120.0
PART_BYTES = 1 << 20
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
                    "or .mjpg: add #.mjpg to this one.",
                )
            content = bytearray()
            while part := answer.read(PART_BYTES):
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
            f"{shown} cannot be downloaded: the server answers {error.code} {error.reason}.",
            fix="Check the address.",
        ) from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = scrubbed(str(getattr(error, "reason", error)) or type(error).__name__)
        raise ImageError(
            f"{shown} cannot be downloaded: {reason}.", fix="Check the address and the network."
        ) from error


def _request(address: str) -> Request:
    """A request with the user and password of the address, which cameras often need."""
    headers = {"User-Agent": GENERATOR.replace(" ", "/"), "Accept": "*/*"}
    parts = urlsplit(address)
    user, found, host = parts.netloc.rpartition("@")
    if found:
        headers["Authorization"] = "Basic " + b64encode(unquote(user).encode()).decode()
    return Request(parts._replace(netloc=host, fragment="").geturl(), headers=headers)


DOWNLOAD = "Download the image first, and pass the file."


def file_name(address: str) -> str:
    """The last part of the path of an address, or the host if it has no path."""
    parts = urlsplit(address)
    return PurePosixPath(unquote(parts.path)).name or (parts.hostname or "image")
