"""Checkpoints from a web address, kept in the cache folder."""

from __future__ import annotations

import os
import sys
import urllib.parse
from pathlib import Path

from eomt_deploy.checkpoints import files
from eomt_deploy.errors import CheckpointError
from eomt_deploy.files import cache_folder

PREFIXES = ("https://", "http://")
HASH = "sha256="


def is_address(text: str) -> bool:
    return text.startswith(PREFIXES)


def download(address: str) -> Path:
    """Fetch a file, unless it is in the cache.

    ``HF_HUB_OFFLINE`` is respected here, too: it says that the user wants no network.

    Args:
        address: may end in ``#sha256=…``, which the file must then have.

    Raises:
        CheckpointError: no network or no such file, or another one than the hash says.
    """
    import torch

    plain, _, fragment = address.partition("#")
    digest = fragment.removeprefix(HASH) if fragment.startswith(HASH) else ""
    name = Path(urllib.parse.urlparse(plain).path).name
    target = cache_folder() / "checkpoints" / (digest[:16] or "unverified") / name
    if target.is_file() and digest and files.sha256([target]) == digest:
        return target
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise CheckpointError(
            f"{plain} is not in the cache, and HF_HUB_OFFLINE forbids to download it.",
            fix="Unset HF_HUB_OFFLINE, or download the file elsewhere and pass its path.",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Writes beside the target, compares the hash, then renames.
        torch.hub.download_url_to_file(
            plain, str(target), hash_prefix=digest or None, progress=sys.stderr.isatty()
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"{plain} is not the file that the catalog knows.",
            why=str(error),
            fix="Try again; if it stays so, the file was changed: pass your own copy.",
        ) from error
    except OSError as error:  # URLError is one
        raise CheckpointError(
            f"{plain} cannot be downloaded.",
            why=str(error),
            fix="Check the network, or download the file elsewhere and pass its path.",
        ) from error
    return target
