"""One file over HTTP, with time-outs, and resumed where an earlier attempt ended.

A partial file is continued only if it is the beginning of the same file: the server must confirm
its ETag or date (If-Range), or the hash of the complete file must be known.
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
"""Seconds to connect, and between two pieces of data."""
CHUNK = 1 << 20


class TransferError(Exception):
    """The file did not arrive completely; what arrived is kept."""


class _OtherFileError(Exception):
    """The partial file does not belong to what the server has now."""


@dataclass(frozen=True)
class Request:
    """What is fetched.

    Attributes:
        address: without user, password and fragment.
        authorization: header for the host of the address, and no other.
        verified: whether a hash of the complete file is known.
        plain: whether ``http://`` may be used, also after a redirect.
    """

    address: str
    authorization: str | None
    verified: bool
    plain: bool

    @property
    def identity(self) -> str:
        """A digest of the address without its query, which may be a secret that changes."""
        return hashlib.sha256(without_secrets(self.address).encode()).hexdigest()


def fetch(request: Request, partial: Path) -> bool:
    """Complete ``partial``; returns whether it was resumed.

    Raises:
        TransferError: the server sent less than it announced, or what cannot be used.
        OSError: no connection, no answer in time, an HTTP error, or a full disk.
        http.client.HTTPException: the server does not speak HTTP.
    """
    try:
        return _fetch(request, partial, resumable_bytes(request, partial))
    except _OtherFileError:
        discard(partial)
        return _fetch(request, partial, 0)


def resumable_bytes(request: Request, partial: Path) -> int:
    """How much of the file is here and can be continued."""
    if not partial.is_file() or not (request.verified or _validator(partial)):
        return 0
    return partial.stat().st_size


def discard(partial: Path) -> None:
    """Remove a partial file and what is known of it."""
    partial.unlink(missing_ok=True)
    _notes(partial).unlink(missing_ok=True)


def started_from(partial: Path) -> str | None:
    """Identity of the request that a partial file comes from; None where it is not known."""
    return _read_notes(partial).get("address")


def last_change(partial: Path) -> float:
    """When something of it was last written, in seconds since 1970; 0 where it is gone."""
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
        if total and int(total[1]) == have:  # all of it was here
            return True
        raise _OtherFileError from None
    with response:
        headers = response.headers
        if headers.get("Content-Encoding", "identity") != "identity":
            raise TransferError(f"the server sent it as {headers['Content-Encoding']}")
        found = _validator_of(headers)
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            part = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
            if not part or int(part[1]) != have or (validator and found not in (None, validator)):
                raise _OtherFileError
        elif response.status == http.HTTPStatus.OK:
            have = 0  # the server ignores ranges, or has another file now
            discard(partial)
        else:
            raise TransferError(f"the server answered with status {response.status}")
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
            while chunk := response.read1(CHUNK):  # as it comes: a stall loses nothing
                file.write(chunk)
                size += len(chunk)
                bar.update(len(chunk))
        except (http.client.IncompleteRead, TimeoutError, ConnectionError) as error:
            cause = (
                f"nothing came for {TIMEOUT:g} seconds"
                if isinstance(error, TimeoutError)
                else "the connection ended"
            )
            raise TransferError(f"{cause} after {_amount(size, expected)}") from error
    if expected is not None and size != expected:
        raise TransferError(f"the connection ended after {_amount(size, expected)}")


def _amount(size: int, expected: int | None) -> str:
    return f"{size:,} of {expected:,} bytes" if expected is not None else f"{size:,} bytes"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects that keep what the user was promised."""

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
    # As it is stored: a compressed body has neither the length nor the hash of the file.
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
    """What tells one version of the file from the next: a strong ETag, else the date."""
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
    except (OSError, ValueError, RecursionError):  # killed while it was written: start anew
        return {}
    return {k: v for k, v in notes.items() if isinstance(v, str)} if isinstance(notes, dict) else {}


def _validator(partial: Path) -> str | None:
    return _read_notes(partial).get("validator")
