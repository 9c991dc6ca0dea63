"""The files of a site: our page, the compiled C library, ONNX Runtime Web and the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eomt_deploy import __version__
from eomt_deploy.backends.web.config import INDEX, SITE
from eomt_deploy.backends.web.runtime import PROVIDERS, VERSION
from eomt_deploy.errors import MissingDependencyError
from eomt_deploy.external_data import side_files
from eomt_deploy.files import GENERATOR, JSON_LIMIT, read_json
from eomt_deploy.processing.tables import PILLOW
from eomt_deploy.sidecar import sha256
from eomt_deploy.spec import ModelSpec

PACKAGE = Path(__file__).parents[2]
COMMON = PACKAGE / "page"
OWN = Path(__file__).parent / "page"
WORKER = "service-worker.js"
LIBRARY = "runtime/eomt.wasm"
GENERATED = '<meta name="generator" content='
PILLOW_RELEASES = (((13, 0), 0), ((12, 2), 1), ((0, 0), 2))
"""From this version of Pillow on, the number of its order of passes in ``eomt.h``."""
LARGE_BYTES = 1_000_000
"""Larger files are kept by the service worker only when they are used."""


@dataclass(frozen=True)
class SiteFile:
    """A file of a site; ``content`` is its content, or the file that is copied."""

    path: str
    content: bytes | Path
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, content: bytes | Path) -> SiteFile:
        if isinstance(content, bytes):
            return cls(path, content, len(content), sha256_of(content))
        return cls(path, content, content.stat().st_size, sha256(content))


def wasm_library() -> bytes:
    """The C library of ``eomt.h`` as WebAssembly.

    Raises:
        MissingDependencyError: it is missing.
    """
    try:
        return (PACKAGE / "processing/native/eomt.wasm").read_bytes()
    except OSError as error:
        raise MissingDependencyError(
            "The part of eomt-deploy that is compiled to WebAssembly is missing.",
            fix="Reinstall eomt-deploy; in a clone: pip install -e .",
        ) from error


def page_files() -> dict[str, bytes]:
    """The page, which is shared with the server, and our scripts."""
    found = {}
    for folder, place in ((COMMON, "page/common/"), (OWN, "page/")):
        for path in sorted(folder.iterdir()):
            found[place + path.name] = path.read_bytes()
    del found[f"page/{WORKER}"]
    index = found.pop(f"page/common/{INDEX}").decode()
    head = f'<head>\n  {GENERATED}"{GENERATOR}">'
    return {INDEX: index.replace("<head>", head, 1).encode(), **found}


def make_files(
    model: Path, spec: ModelSpec, library: bytes, runtime: dict[str, bytes], *, webgpu: bool
) -> list[SiteFile]:
    """All files of a site; the last two, ``site.json`` and the service worker, list the others.

    Args:
        model: the .onnx file, whose side files are included.
        library: the compiled C library.
        runtime: files of ONNX Runtime Web, by name.
        webgpu: include the variant for GPUs.
    """
    providers = [name for name in PROVIDERS if webgpu or name != "webgpu"]
    runtimes = {
        name: {use: f"runtime/{file.target}" for use, file in PROVIDERS[name].items()}
        for name in providers
    }
    # The names of side files are in the model, so they must stay.
    sides = [(f"model/{side.relative_to(model.parent).as_posix()}", side)
             for side in side_files(model)]  # fmt: skip
    contents: dict[str, bytes | Path] = {
        **page_files(),
        LIBRARY: library,
        **{place: runtime[place.removeprefix("runtime/")]
           for files in runtimes.values() for place in files.values()},
        "model/model.onnx": model,
        **dict(sides),
    }  # fmt: skip
    files = [SiteFile.of(path, content) for path, content in contents.items()]
    site: dict[str, Any] = {
        "generator": GENERATOR,
        "spec": json.loads(spec.to_json()),
        "pillow": next(number for version, number in PILLOW_RELEASES if version <= PILLOW),
        "onnxruntime_web": VERSION,
        "library": LIBRARY,
        "runtimes": runtimes,
        "model": {"model": "model/model.onnx", "sides": [path for path, _ in sides]},
        "files": [
            {"path": f.path, "bytes": f.size, "sha256": f.sha256} for f in files
        ],
    }  # fmt: skip
    site["version"] = f"{__version__}-{sha256_of(json.dumps(site).encode())[:16]}"
    listed = SiteFile.of(SITE, json.dumps(site, ensure_ascii=False, indent=1).encode())
    return [*files, listed, SiteFile.of(WORKER, worker_script(site["version"], [*files, listed]))]


def worker_script(version: str, files: list[SiteFile]) -> bytes:
    """The service worker with its list of files; browsers install it again when it changes."""
    small = [file.path for file in files if file.size <= LARGE_BYTES and not is_model(file.path)]
    large = [file.path for file in files if file.path not in small]
    data = json.dumps({"version": version, "small": small, "large": large})
    return f"const SITE = {data};\n".encode() + (OWN / WORKER).read_bytes()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_model(path: str) -> bool:
    return path.startswith("model/")


def read_site(folder: Path) -> dict[str, Any] | None:
    """The ``site.json`` of a site that eomt-deploy wrote; None for other folders."""
    try:
        data = read_json(folder / SITE, JSON_LIMIT)
        paths = [str(entry["path"]) for entry in data["files"]]
        ours = str(data["generator"]).startswith("eomt-deploy ")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    inside = all(not Path(path).is_absolute() and ".." not in Path(path).parts for path in paths)
    return data if ours and inside else None
