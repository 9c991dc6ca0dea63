"""Read the body of a request within its limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from eomt_deploy.serving.config import Limits
from eomt_deploy.serving.work import RequestError

MULTIPART = "multipart/form-data"
FIELD = "image"


async def read_body(request: Request, limits: Limits, take: Callable[[int], None]) -> bytes:
    """The body of a request.

    Args:
        request: the request.
        limits: its maximum size and time.
        take: takes bytes from the :class:`MemoryBudget`.

    Raises:
        RequestError: the body is too large, too slow, compressed, or the memory is used up.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise RequestError(
            415,
            f"The body is compressed ({encoding[:50]}).",
            why="Image files are compressed already.",
            fix="Send it without Content-Encoding.",
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body_bytes:
        raise _too_large(limits)
    body = bytearray()
    chunks = request.stream()
    deadline = asyncio.get_running_loop().time() + limits.body_seconds
    try:
        while True:
            left = deadline - asyncio.get_running_loop().time()
            chunk = await asyncio.wait_for(anext(chunks), max(left, 0.001))
            if len(body) + len(chunk) > limits.body_bytes:
                raise _too_large(limits)
            take(len(chunk))
            body += chunk
    except StopAsyncIteration:
        return bytes(body)
    except asyncio.TimeoutError:
        raise RequestError(
            408,
            f"The body did not arrive in {limits.body_seconds:g} s.",
            fix="Send a smaller image, or use a faster connection.",
        ) from None


def _too_large(limits: Limits) -> RequestError:
    return RequestError(
        413,
        f"The body has more than {limits.body_bytes >> 20} MiB.",
        fix="Send a smaller image, or start the server with a larger --max-mib.",
    )


class _InMemory(MultiPartParser):
    """The body is in memory already; files on disk would only be a second copy."""

    spool_max_size = 1 << 62


async def image_of(request: Request, body: bytes) -> bytes:
    """The image in a body: the body itself, or the field ``image`` of a form.

    Raises:
        RequestError: there is no image, or the form is damaged.
    """
    kind = request.headers.get("content-type", "")
    if parse_options_header(kind)[0].decode("latin-1") != MULTIPART:
        if not body:
            raise RequestError(400, "The body is empty.", fix="Send the bytes of an image file.")
        return body

    async def chunks() -> AsyncIterator[bytes]:
        yield body
        yield b""

    parser = _InMemory(request.headers, chunks(), max_files=1, max_fields=8)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        text = getattr(error, "message", str(error))
        raise RequestError(
            400, f"The form cannot be read: {text}", fix="Send a valid form."
        ) from None
    file = form.get(FIELD)
    if not isinstance(file, UploadFile):
        raise RequestError(
            400,
            f"The form has no file in the field {FIELD!r}.",
            fix=f"Send e.g. `curl -F {FIELD}=@street.jpg …`.",
        )
    return await file.read()
