"""Build of a site: a folder of static files that segments images in the visitor's browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eomt_deploy.backends.building import Progress, no_progress
from eomt_deploy.backends.web.config import SITE, WebConfig
from eomt_deploy.backends.web.files import SiteFile, make_files, read_site, wasm_library
from eomt_deploy.backends.web.runtime import PROVIDERS, VERSION, runtime_files
from eomt_deploy.certificate import Certificate
from eomt_deploy.errors import UsageError
from eomt_deploy.files import staging_folder, unwritable
from eomt_deploy.model_file import read_model_file
from eomt_deploy.outputs import check_outputs, not_ours

PRECISIONS_HERE = ("fp32", "fp16", "int8")
"""Precisions that ONNX Runtime Web runs; it has no kernels for BF16 and FP8."""


@dataclass(frozen=True)
class WebReport:
    """Result of a build.

    Attributes:
        files: all files of the site.
        folder: the folder of the site.
        bytes: their size.
        visit_bytes: what a visitor downloads, by execution provider of ONNX Runtime Web.
        version: version of ONNX Runtime Web.
        precision: precision of the model.
        certificate: None, since the site contains the ONNX model itself.
        warnings: warnings for the user.
    """

    files: tuple[Path, ...]
    folder: Path
    bytes: int
    visit_bytes: dict[str, int]
    version: str
    precision: str
    certificate: Certificate | None = None
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The report as a few lines of text."""
        yield f"wrote {self.folder} ({len(self.files)} files, {self.bytes / 1e6:.1f} MB)"
        visits = (f"{size / 1e6:.1f} MB with {name}" for name, size in self.visit_bytes.items())
        yield f"  a visitor downloads {' or '.join(visits)}, once"
        yield f"  ONNX Runtime Web {self.version}, {self.precision} model, unchanged"
        yield f"  to try it: python -m http.server -d {self.folder}"

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON."""
        return {
            "files": [str(file) for file in self.files],
            "bytes": self.bytes,
            "visit_bytes": self.visit_bytes,
            "version": self.version,
            "precision": self.precision,
            "certificate": None,
            "warnings": list(self.warnings),
        }


def build_web(config: WebConfig, progress: Progress = no_progress) -> WebReport:
    """Build a site.

    Raises:
        ModelFileError: the model cannot be read, or was not written by eomt-deploy.
        UsageError: ONNX Runtime Web does not run the precision of the model, or the given package
            is not that of the tested version.
        MissingDependencyError: the files of ONNX Runtime Web are missing and cannot be downloaded.
        OutputError: a file cannot be written, or would replace one that eomt-deploy did not write.
    """
    check_outputs(config.outputs, inputs=config.inputs, overwrite=config.overwrite)
    spec = read_model_file(config.onnx).spec
    if spec.precision not in PRECISIONS_HERE:
        raise UsageError(
            f"ONNX Runtime Web does not run {spec.precision} models.",
            fix=f"Export in {', '.join(PRECISIONS_HERE[:-1])} or {PRECISIONS_HERE[-1]}: "
            "eomt-deploy export CHECKPOINT --precision fp32 -o m.onnx",
        )
    library = wasm_library()
    progress("fetching ONNX Runtime Web", None)
    runtime = runtime_files(config.onnxruntime_web)
    progress("writing the site", None)
    files = make_files(config.onnx, spec, library, runtime, webgpu=config.webgpu)
    before = _check_places(config, files)
    _write(config.folder, files, before)
    return WebReport(
        files=tuple(config.folder / file.path for file in files),
        folder=config.folder,
        bytes=sum(file.size for file in files),
        visit_bytes=_visits(files, config.webgpu),
        version=VERSION,
        precision=spec.precision,
    )


def _visits(files: list[SiteFile], webgpu: bool) -> dict[str, int]:
    """What a visitor downloads: all files except those of the other execution provider."""
    names = {"wasm": "WebAssembly", "webgpu": "WebGPU"}
    of = {p: {f"runtime/{file.target}" for file in PROVIDERS[p].values()} for p in PROVIDERS}
    return {
        names[provider]: sum(
            file.size
            for file in files
            if not any(file.path in of[other] for other in PROVIDERS if other != provider)
        )
        for provider in PROVIDERS
        if webgpu or provider != "webgpu"
    }


def _check_places(config: WebConfig, files: list[SiteFile]) -> set[str]:
    """Check that only files of an earlier site are replaced.

    Returns:
        paths of all files of the earlier site.

    Raises:
        OutputError: another file would be replaced.
    """
    site = read_site(config.folder)
    before = {str(entry["path"]) for entry in site["files"]} if site else set()
    ours = before | ({files[-1].path, SITE} if site else set())
    for file in files:
        path = config.folder / file.path
        if path.exists() and file.path not in ours and not config.overwrite:
            raise not_ours(path, "-o")
    return before


def _write(folder: Path, files: list[SiteFile], before: set[str]) -> None:
    """Write all files, then rename them into place: first those that the last ones list."""
    with staging_folder(folder / SITE) as staging:
        try:
            for number, file in enumerate(files):
                if isinstance(file.content, bytes):
                    (staging / str(number)).write_bytes(file.content)
                else:
                    shutil.copyfile(file.content, staging / str(number))
            for number, file in enumerate(files):
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / str(number), target)
        except OSError as error:
            raise unwritable(folder, error) from error
    for path in before - {file.path for file in files}:
        with suppress(OSError):
            (folder / path).unlink()
