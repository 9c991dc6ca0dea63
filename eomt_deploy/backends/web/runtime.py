"""The files of ONNX Runtime Web, which a site contains: from the cache folder, or from npm."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eomt_deploy import cache
from eomt_deploy.errors import MissingDependencyError, OutputError, UsageError
from eomt_deploy.files import cache_folder

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
PACK_SECONDS = 600
CACHE = "onnxruntime-web"
"""Folder in the cache folder; `cache.FILES` describes it."""
MAX_BYTES = 64 << 20
"""Maximum size of a file of the package."""


@dataclass(frozen=True)
class RuntimeFile:
    """A file of the package.

    Attributes:
        source: name in the folder ``dist`` of the package.
        target: name in the folder ``runtime`` of the site. Scripts end with ``.js``, because some
            servers send ``.mjs`` with a type that browsers refuse.
        sha256: hash of the file.
    """

    source: str
    target: str
    sha256: str


PROVIDERS: dict[str, dict[str, RuntimeFile]] = {
    "wasm": {
        "library": RuntimeFile(
            "ort.wasm.min.mjs", "ort.wasm.js",
            "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
        ),
        "loader": RuntimeFile(
            "ort-wasm-simd-threaded.mjs", "loader.wasm.js",
            "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
        ),
        "wasm": RuntimeFile(
            "ort-wasm-simd-threaded.wasm", "ort.wasm",
            "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
        ),
    },
    "webgpu": {
        "library": RuntimeFile(
            "ort.webgpu.min.mjs", "ort.webgpu.js",
            "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
        ),
        "loader": RuntimeFile(
            "ort-wasm-simd-threaded.asyncify.mjs", "loader.webgpu.js",
            "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
        ),
        "wasm": RuntimeFile(
            "ort-wasm-simd-threaded.asyncify.wasm", "ort.webgpu.wasm",
            "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
        ),
    },
}  # fmt: skip
"""Files by execution provider of ONNX Runtime Web, and by their use."""
FILES = tuple(file for files in PROVIDERS.values() for file in files.values())
ELSEWHERE = (
    f"On a machine with npm and a network, run `npm pack {PACKAGE}`, and pass the file: "
    f"--onnxruntime-web onnxruntime-web-{VERSION}.tgz"
)


def runtime_files(given: Path | None) -> dict[str, bytes]:
    """The content of all files, by their name in the site.

    Args:
        given: the package as a .tgz file or a folder; None uses the cache, or `npm pack`.

    Raises:
        UsageError: ``given`` is not the package, or has another version.
        MissingDependencyError: the files are not in the cache, and npm is missing or fails.
    """
    if given is not None:
        return _checked(_from_folder(given) if given.is_dir() else _from_archive(given), given)
    kept = _from_cache()
    if kept is not None:
        return kept
    with tempfile.TemporaryDirectory(prefix="eomt-deploy-") as folder:
        archive = _pack(Path(folder))
        found = _checked(_from_archive(archive), archive)
    _keep(found)
    return found


def can_download() -> bool:
    """Whether a build without ``given`` has its files, or npm to download them."""
    return _from_cache() is not None or shutil.which("npm") is not None


def _from_cache() -> dict[str, bytes] | None:
    """The files in the cache folder; None if one is missing or damaged."""
    found = {}
    with suppress(OutputError):  # the user has no cache folder
        for file in FILES:
            content = cache.load(_place(file))
            if content is None or hashlib.sha256(content).hexdigest() != file.sha256:
                return None
            found[file.target] = bytes(content)
        return found
    return None


def _keep(files: dict[str, bytes]) -> None:
    """Keep the files for the next build; without a cache folder, they are downloaded again."""
    with suppress(OutputError):
        for file in FILES:
            cache.store(_place(file), partial(_copy, files[file.target]))


def _copy(content: bytes, sink: io.BytesIO) -> None:
    sink.write(content)


def _place(file: RuntimeFile) -> Path:
    return cache_folder() / CACHE / f"{VERSION}-{file.target}"


def _pack(folder: Path) -> Path:
    """Let npm download the package, from the registry and with the proxy that it is set up for."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingDependencyError(
            f"A site needs {PACKAGE}, and npm, which downloads it, is not installed.",
            fix=f"Install Node.js. {ELSEWHERE}",
        )
    try:
        done = subprocess.run(
            [npm, "pack", PACKAGE, "--silent", "--ignore-scripts"],
            cwd=folder, capture_output=True, text=True, timeout=PACK_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MissingDependencyError(
            f"`npm pack {PACKAGE}` takes more than {PACK_SECONDS} s.", fix=ELSEWHERE
        ) from error
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or not archives:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise MissingDependencyError(
            f"npm could not download {PACKAGE}.", why=lines[-1], fix=ELSEWHERE
        )
    return archives[0]


def _from_folder(folder: Path) -> dict[str, bytes]:
    """The files of an unpacked package, of its parent folder or of its folder ``dist``."""
    for dist in (folder / "dist", folder / "package" / "dist", folder):
        paths = {file.target: dist / file.source for file in FILES}
        if any(path.is_file() for path in paths.values()):
            return {
                name: path.read_bytes()
                for name, path in paths.items()
                if path.is_file() and path.stat().st_size <= MAX_BYTES
            }
    return {}


def _from_archive(path: Path) -> dict[str, bytes]:
    names = {f"package/dist/{file.source}": file.target for file in FILES}
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in names and member.isfile() and member.size <= MAX_BYTES:
                    content = archive.extractfile(member) or io.BytesIO()
                    found[names[member.name]] = content.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UsageError(
            f"{path} is not the package onnxruntime-web: {error}.",
            fix=f"Pass the .tgz file that `npm pack {PACKAGE}` writes, or its unpacked folder.",
        ) from error
    return found


def _checked(found: dict[str, bytes], origin: Path) -> dict[str, bytes]:
    """Compare all files with the hashes of the version that we test."""
    for file in FILES:
        content = found.get(file.target)
        if content is None or hashlib.sha256(content).hexdigest() != file.sha256:
            wrong = "is missing in" if content is None else "differs in"
            raise UsageError(
                f"{file.source} of {PACKAGE} {wrong} {origin}.",
                why="The package has another version, or it is damaged.",
                fix=f"Pass the .tgz file that `npm pack {PACKAGE}` writes, or its unpacked folder.",
            )
    return found
