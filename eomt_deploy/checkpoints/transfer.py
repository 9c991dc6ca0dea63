"""Download of one file over HTTP, with timeouts and resumption.

A partial file is resumed only if it belongs to the same file: the server must confirm its ETag or
date (If-Range), or the hash of the complete file must be known.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eomt_deploy import __version__
from eomt_deploy.addresses import without_secrets

TIMEOUT = 30.0
"""Timeout in seconds, for connecting and between two chunks of data."""
CHUNK = 1 << 20


class TransferError(Exception):
    """The transfer failed or was incomplete; the received part is kept."""


class _OtherFileError(Exception):
    """The partial file is not a part of the file that the server has now."""


@dataclass(frozen=True)
class Request:
    """A file to download.

    Attributes:
        address: URL without user, password and fragment.
        authorization: Authorization header, which is sent only to the host of the URL.
        verified: whether the hash of the complete file is known.
        plain: whether ``http://`` is allowed, even after a redirect.
    """

    address: str
    authorization: str | None
    verified: bool
    plain: bool

    @property
    def identity(self) -> str:
        """Digest of the URL without its query, which can contain a changing secret."""
        return hashlib.sha256(without_secrets(self.address).encode()).hexdigest()


def fetch(request: Request, partial: Path) -> bool:
    """Download into ``partial``, resuming it if possible. Return whether it was resumed.

    Raises:
        TransferError: the server sent less than it announced, or an unusable response.
        OSError: there is no connection, a timeout, an HTTP error, or the disk is full.
        http.client.HTTPException: the response is not valid HTTP.
    """
    try:
        return _fetch(request, partial, resumable_bytes(request, partial))
    except _OtherFileError:
        discard(partial)
        return _fetch(request, partial, 0)


def resumable_bytes(request: Request, partial: Path) -> int:
    """Number of bytes of a partial file that can be resumed."""
    if not partial.is_file() or not (request.verified or _validator(partial)):
        return 0
    return partial.stat().st_size


def discard(partial: Path) -> None:
    """Remove a partial file and its notes."""
    partial.unlink(missing_ok=True)
    _notes(partial).unlink(missing_ok=True)


def started_from(partial: Path) -> str | None:
    """Identity of the request that a partial file comes from; None if it is unknown."""
    return _read_notes(partial).get("address")


def last_change(partial: Path) -> float:
    """Time of the last write to a partial file or its notes (Unix time, seconds); 0 if deleted."""
    times = [0.0]
    for path in (partial, _notes(partial)):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _fetch(request: Request, partial: Path, have: int) -> bool:
    validator = _validator(partial) if have else None
    try:
        response = _open(request, have, validator)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
                raise
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if total and int(total[1]) == have:  # the partial file is already complete
            return True
        raise _OtherFileError from None
    with response:
        headers = response.headers
        if headers.get("Content-Encoding", "identity") != "identity":
            raise TransferError(f"the server encoded the file as {headers['Content-Encoding']}")
        found = _validator_of(headers)
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            part = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
            if not part or int(part[1]) != have or (validator and found not in (None, validator)):
                raise _OtherFileError
        elif response.status == http.HTTPStatus.OK:
            have = 0  # the server does not support ranges, or has another file now
            discard(partial)
        else:
            raise TransferError(f"the server responded with status {response.status}")
        _notes(partial).write_text(json.dumps({"validator": found, "address": request.identity}))
        length = headers.get("Content-Length", "")
        expected = have + int(length) if re.fullmatch(r"\d{1,18}", length) else None
        _receive(response, partial, have, expected)
    return have > 0


def _receive(response: Any, partial: Path, have: int, expected: int | None) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    size = have
    with (
        partial.open("ab") as file,
        tqdm(
            total=expected, initial=have, unit="B", unit_scale=True, desc=partial.stem,
            disable=not sys.stderr.isatty(),
        ) as bar,
    ):  # fmt: skip
        try:
            while chunk := response.read1(CHUNK):  # without buffering: a stall loses no data
                file.write(chunk)
                size += len(chunk)
                bar.update(len(chunk))
        except (http.client.IncompleteRead, TimeoutError, ConnectionError) as error:
            cause = (
                f"no data was received for {TIMEOUT:g} seconds"
                if isinstance(error, TimeoutError)
                else "the connection ended"
            )
            raise TransferError(f"{cause} after {_amount(size, expected)}") from error
    if expected is not None and size != expected:
        raise TransferError(f"the connection ended after {_amount(size, expected)}")


def _amount(size: int, expected: int | None) -> str:
    return f"{size:,} of {expected:,} bytes" if expected is not None else f"{size:,} bytes"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects without a downgrade to http:// and without credentials for other hosts."""

    def __init__(self, plain: bool) -> None:
        self._plain = plain

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        parts = urllib.parse.urlsplit(newurl)
        if parts.scheme != "https" and not (self._plain and parts.scheme == "http"):
            raise TransferError(
                f"the server redirects to {parts.scheme}:// on {parts.hostname}, where anyone on "
                "the network could replace the file"
            )
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and (new.host != req.host or (req.type, new.type) == ("https", "http")):
            new.remove_header("Authorization")
        return new


def _open(request: Request, have: int, validator: str | None) -> Any:
    # Without compression: a compressed body has neither the length nor the hash of the file.
    headers = {"User-Agent": f"eomt-deploy/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    if request.authorization:
        headers["Authorization"] = request.authorization
    opener = urllib.request.build_opener(_Redirects(request.plain))
    return opener.open(urllib.request.Request(request.address, headers=headers), timeout=TIMEOUT)


def _validator_of(headers: Any) -> str | None:
    """Identifier of the version of a file: a strong ETag, else the date."""
    etag: str | None = headers.get("ETag")
    if etag and etag.startswith('"'):
        return etag
    date: str | None = headers.get("Last-Modified")
    return date


def _notes(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _read_notes(partial: Path) -> dict[str, str]:
    try:
        notes = json.loads(_notes(partial).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):  # e.g. interrupted while writing: start again
        return {}
    return {k: v for k, v in notes.items() if isinstance(v, str)} if isinstance(notes, dict) else {}


def _validator(partial: Path) -> str | None:
    return _read_notes(partial).get("validator")
