"""Download of checkpoints from a URL into the cache folder."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from eomt_deploy.addresses import scrubbed, without_secrets
from eomt_deploy.checkpoints import tensor_files, transfer
from eomt_deploy.checkpoints.prefixes import printable
from eomt_deploy.errors import CheckpointError
from eomt_deploy.files import cache_folder

PARTIAL = ".partial"
KEPT_SECONDS = 14 * 24 * 3600
"""Partial files that were not resumed for this time are removed."""


@dataclass(frozen=True)
class _Download:
    """A file on the web, and its place in the cache."""

    request: transfer.Request
    digest: str
    target: Path
    shown: str

    @property
    def partial(self) -> Path:
        return self.target.with_name(self.target.name + PARTIAL)


def download(address: str, *, insecure: bool = False) -> Path:
    """Download a file, unless it is in the cache. An interrupted download is resumed.

    ``HF_HUB_OFFLINE`` applies here, too, because it means that the user does not want network
    access.

    Args:
        address: URL. It can end with ``#sha256=…``, the hash that the file must have, and can have
            ``user:password@`` before the host.
        insecure: allow ``http://`` without a hash.

    Returns:
        path of the file in the cache.

    Raises:
        CheckpointError: the download failed or was incomplete, the file has another hash, or the
            URL is ``http://`` without a hash.
    """
    wanted = _parsed(address, insecure)
    try:
        if _is_here(wanted):
            return wanted.target
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            raise CheckpointError(
                f"{wanted.shown} is not in the cache, and HF_HUB_OFFLINE forbids downloads.",
                fix="Unset HF_HUB_OFFLINE, or download the file elsewhere and pass its path.",
            )
        if not wanted.request.plain and wanted.request.address.startswith("http:"):
            raise CheckpointError(
                f"{wanted.shown} was not downloaded: over http://, anyone on the network could "
                "replace the file.",
                why="The URL does not contain a hash to verify the file.",
                fix="Use https://, add #sha256=… with the hash of the file, or pass --insecure.",
            )
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(wanted):
            if not _is_here(wanted):  # another process may have downloaded it meanwhile
                _clean_up(wanted)
                _fetch(wanted)
    except (OSError, ValueError, http.client.HTTPException, transfer.TransferError) as error:
        raise _failed(wanted, error) from None  # its text may contain secrets from the URL
    except (KeyboardInterrupt, SystemExit):
        if size := transfer.resumable_bytes(wanted.request, wanted.partial):
            print(
                f"Stopped: {size / 1e6:.1f} MB of {wanted.shown} are kept, and the next run "
                "resumes from there.",
                file=sys.stderr,
            )
        raise
    return wanted.target


def _parsed(address: str, insecure: bool) -> _Download:
    """Parse a URL.

    Raises:
        CheckpointError: it is invalid.
    """
    plain, _, fragment = address.partition("#")
    shown = without_secrets(address)
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment.lower())
    try:
        parts = urllib.parse.urlsplit(plain)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urllib.parse.urlsplit(""), "", None
    name = re.sub(r"[^\w.+-]", "_", Path(parts.path).name)[-100:]
    problem = ""
    if fragment and not match:
        problem = "The part after # must be sha256= and 64 hexadecimal digits."
    elif not host:
        problem = "The URL does not contain a valid host."
    elif not name.strip("."):
        problem = "The URL does not contain a file name."
    if problem:
        raise CheckpointError(f"{shown} cannot be downloaded.", why=problem, fix="Correct the URL.")
    authority = f"[{host}]" if ":" in host else host
    authority += f":{port}" if port is not None else ""
    authorization = None
    if parts.username is not None:
        pair = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
        authorization = f"Basic {base64.b64encode(pair.encode('utf-8', 'replace')).decode()}"
    quoted = urllib.parse.quote(
        parts._replace(scheme=parts.scheme.lower(), netloc=authority).geturl(),
        safe="%/:=&?~+!$,;'@()*[]",
        errors="replace",
    )
    digest = match[1] if match else ""
    # Files of the same name from different URLs must not replace each other.
    key = (digest or hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest())[:16]
    request = transfer.Request(quoted, authorization, bool(digest), insecure or bool(digest))
    return _Download(request, digest, cache_folder() / "checkpoints" / key / name, shown)


def _is_here(wanted: _Download) -> bool:
    """Whether the cache has the file. Without a hash, it could be outdated and is not used."""
    digest = wanted.digest
    return (
        bool(digest) and wanted.target.is_file() and tensor_files.sha256([wanted.target]) == digest
    )


def _fetch(wanted: _Download) -> None:
    resumed = transfer.fetch(wanted.request, wanted.partial)
    found = tensor_files.sha256([wanted.partial]) if wanted.digest else ""
    if found != wanted.digest and resumed:  # the first part may be from another file
        transfer.discard(wanted.partial)
        transfer.fetch(wanted.request, wanted.partial)
        found = tensor_files.sha256([wanted.partial])
    if found != wanted.digest:
        transfer.discard(wanted.partial)
        raise CheckpointError(
            f"{wanted.shown} does not have the expected hash.",
            why=f"Its SHA-256 is {found}, expected {wanted.digest}.",
            fix="Try again. If the error persists, the file has changed: pass a local copy of the "
            "original file.",
        )
    os.replace(wanted.partial, wanted.target)
    transfer.discard(wanted.partial)


def _failed(wanted: _Download, error: Exception) -> CheckpointError:
    if isinstance(error, urllib.error.HTTPError):
        why = f"The server responded with {error.code} {printable(str(error.reason))}."
    elif isinstance(error, urllib.error.URLError):
        why = str(error.reason)
    elif isinstance(error, OSError) and error.strerror:
        why = error.strerror
    else:
        why = str(error) or type(error).__name__
    if "timed out" in why:
        why = f"The server did not answer within {transfer.TIMEOUT:g} seconds."
    size = transfer.resumable_bytes(wanted.request, wanted.partial)
    again = f"Run the command again to resume after the {size:,} bytes that are kept"
    fix = f"{again if size else 'Check the network'}, or download the file elsewhere and pass its "
    fix += "path."
    return CheckpointError(f"{wanted.shown} cannot be downloaded.", why=scrubbed(why), fix=fix)


@contextmanager
def _locked(wanted: _Download) -> Iterator[None]:
    """Allow only one process at a time to write a partial file. The lock ends with its process."""
    lock = _lock_of(wanted.target.parent)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"Waiting for another process that downloads {wanted.shown}.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_of(folder: Path) -> FileLock:
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{folder.name}.lock")


def _clean_up(wanted: _Download) -> None:
    """Remove partial files that will not be resumed.

    These are files of an earlier version of this URL, old files, and files that earlier versions of
    eomt-deploy left in this folder.
    """
    here = wanted.target.parent
    for partial in _partials(here):
        if partial != wanted.partial:
            transfer.discard(partial)
    for folder in here.parent.iterdir():
        if folder == here or not folder.is_dir():
            continue
        for partial in _partials(folder):
            superseded = transfer.started_from(partial) == wanted.request.identity
            if superseded or time.time() - transfer.last_change(partial) > KEPT_SECONDS:
                _discard_unused(partial)


def _partials(folder: Path) -> set[Path]:
    notes = {path.with_suffix("") for path in folder.glob(f"*{PARTIAL}.json")}
    return notes | set(folder.glob(f"*{PARTIAL}"))


def _discard_unused(partial: Path) -> None:
    """Remove a partial file, unless another process is writing it."""
    lock = _lock_of(partial.parent)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return
    try:
        transfer.discard(partial)
        if not any(partial.parent.iterdir()):
            partial.parent.rmdir()
    finally:
        lock.release()
