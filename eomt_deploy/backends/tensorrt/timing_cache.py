"""TensorRT's timing cache: kernel timings on this GPU, which speed up the next build."""

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
    """Cache file for a library version and GPU: the library rejects caches of other ones.

    Returns:
        None if there is no cache folder.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"tensorrt-{version}-{gpu.name}")
    try:
        return cache_folder() / f"{name}.timing"
    except OutputError:
        return None


def attach(settings: Any, path: Path, lines: list[Line]) -> list[str]:
    """Set the timing cache of an ``IBuilderConfig`` to the one in ``path``, or to an empty one.

    Args:
        settings: the ``IBuilderConfig``.
        path: a file that the user chose has the library's format; one in our cache folder also has
            our header, see :mod:`eomt_deploy.cache`.
        lines: captured log of the library. Messages about an unusable cache are removed from it,
            because the build continues without this cache.

    Returns:
        warnings: why the file is not used.

    Raises:
        UsageError: a file that the user chose is not a timing cache; the build would replace it.
    """
    own = _is_ours(path)
    try:
        content = bytes(cache_files.load(path) or b"") if own else path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        settings.set_timing_cache(settings.create_timing_cache(b""), False)
        return [f"the timing cache {path} cannot be read ({error.strerror}) and is not used"]
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
            f"{path} is not a timing cache for this GPU and TensorRT version, or it is damaged.",
            fix="Use a file that does not exist yet, or delete this one.",
        )
    if refused or (own and not content and path.exists()):
        return [f"the timing cache {path} is damaged or from another machine and will be replaced"]
    return []


def save(settings: Any, path: Path) -> list[str]:
    """Write the cache after the build; a failure is only a warning, since the engine is built.

    Returns:
        warnings.
    """
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
        return [f"the timing cache was not saved: {error.what}"]
    return []


def _is_ours(path: Path) -> bool:
    try:
        return path.parent == cache_folder()
    except OutputError:
        return False
