"""The timing cache: what TensorRT measured on this GPU, kept for the next build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from eomt_deploy import cache as cache_files
from eomt_deploy.backends.tensorrt.library import Line
from eomt_deploy.devices import Gpu
from eomt_deploy.errors import OutputError, UsageError
from eomt_deploy.files import cache_folder, write_atomically


def default_file(version: str, gpu: Gpu) -> Path | None:
    """One cache a library version and GPU: the library takes no other.

    Returns:
        None for a user without a cache folder.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"tensorrt-{version}-{gpu.name}")
    try:
        return cache_folder() / f"{name}.timing"
    except OutputError:
        return None


def attach(settings: Any, path: Path, lines: list[Line]) -> list[str]:
    """Give an ``IBuilderConfig`` the cache in ``path``, or an empty one.

    Args:
        path: a file of the user's own has the library's own format; one in our cache folder has
            our header, too, see :mod:`eomt_deploy.cache`.
        lines: where the library's words are heard; its complaint about a cache that it cannot
            read is taken out, since the build goes on without it.

    Returns:
        warnings: why the file is not used.

    Raises:
        UsageError: a file that the user named is no cache; it would be replaced after the build.
    """
    own = _is_ours(path)
    try:
        content = bytes(cache_files.load(path) or b"") if own else path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        settings.set_timing_cache(settings.create_timing_cache(b""), False)
        return [f"the timing cache {path} cannot be read ({error.strerror}); it is left out"]
    before = len(lines)
    cache = settings.create_timing_cache(content)
    refused = bool(content) and (cache is None or len(lines) > before)
    del lines[before:]
    if cache is None or not settings.set_timing_cache(cache, False):
        refused = bool(content)
        settings.set_timing_cache(settings.create_timing_cache(b""), False)
    del lines[before:]
    if refused and not own:
        raise UsageError(
            f"{path} is no timing cache of this machine and version, or it is damaged.",
            fix="Name a file that does not exist yet, or remove it.",
        )
    if refused or (own and not content and path.exists()):
        return [f"the timing cache {path} is damaged or of another machine; a new one replaces it"]
    return []


def save(settings: Any, path: Path) -> list[str]:
    """Write the cache after the build; failing to is a warning, since the engine is there."""
    cache = settings.get_timing_cache()
    if cache is None:
        return []
    try:
        content = bytes(memoryview(cache.serialize()))
        if _is_ours(path):
            cache_files.store(path, lambda file: file.write(content))
        else:
            write_atomically(path, content)
    except OutputError as error:
        return [f"the timing cache was not kept: {error.what}"]
    return []


def _is_ours(path: Path) -> bool:
    try:
        return path.parent == cache_folder()
    except OutputError:
        return False
