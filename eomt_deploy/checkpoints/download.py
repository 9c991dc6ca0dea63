"""Checkpoints from a web address, kept in the cache folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import urllib.parse
from pathlib import Path

from eomt_deploy.checkpoints import files
from eomt_deploy.errors import CheckpointError
from eomt_deploy.files import cache_folder

PREFIXES = ("https://", "http://")


def is_address(text: str) -> bool:
    return text.startswith(PREFIXES)


def shown(address: str) -> str:
    """The address without query and fragment: what may be printed and stored."""
    return urllib.parse.urlsplit(address)._replace(query="", fragment="").geturl()


def download(address: str) -> Path:
    """Fetch a file, unless it is in the cache.

    ``HF_HUB_OFFLINE`` is respected here, too: it says that the user wants no network.

    Args:
        address: may end in ``#sha256=…``, which the file must then have.

    Raises:
        CheckpointError: no network or no such file, or another one than the hash says.
    """
    import torch

    try:
        name, plain, digest = _parts(address)
        # Files of the same name from two places must not replace each other.
        folder = digest or hashlib.sha256(plain.encode()).hexdigest()
        target = cache_folder() / "checkpoints" / folder[:16] / name
        if target.is_file() and digest and files.sha256([target]) == digest:
            return target
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            raise CheckpointError(
                f"{shown(address)} is not in the cache, and HF_HUB_OFFLINE forbids to download it.",
                fix="Unset HF_HUB_OFFLINE, or download the file elsewhere and pass its path.",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        # Writes beside the target, compares the hash, then renames.
        torch.hub.download_url_to_file(
            plain, str(target), hash_prefix=digest or None, progress=sys.stderr.isatty()
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"{shown(address)} is not the file that its hash says.",
            why=str(error),
            fix="Try again; if it stays so, the file was changed: pass your own copy.",
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        raise CheckpointError(
            f"{address.split('?')[0]} cannot be downloaded.",
            why=str(error) or repr(error),
            fix="Check the network, or download the file elsewhere and pass its path.",
        ) from error
    return target


def _parts(address: str) -> tuple[str, str, str]:
    """File name, address without fragment, and hash (empty where none is given)."""
    plain, _, fragment = address.partition("#")
    name = Path(urllib.parse.urlsplit(plain).path).name
    if not name:
        raise ValueError("the address names no file")
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment.lower())
    if fragment and not match:
        raise ValueError(f"{fragment!r} is no sha256= with 64 hexadecimal digits")
    return name, plain, match[1] if match else ""
