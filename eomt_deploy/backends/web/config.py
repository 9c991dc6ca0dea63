"""Configuration of a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eomt_deploy.backends.building import BuildConfig, check_suffix, option
from eomt_deploy.errors import UsageError

HTML = ".html"
INDEX, SITE = "index.html", "site.json"
"""The page, and the list of the files of the site."""


@dataclass(frozen=True, kw_only=True)
class WebConfig(BuildConfig):
    """Configuration of one site. ``output`` is its ``index.html``; the other files are beside it.

    Attributes:
        onnxruntime_web: package onnxruntime-web as ``npm pack`` writes it (.tgz), or its folder;
            None uses the cache folder, or `npm pack`.
        webgpu: include the variant for GPUs.
    """

    onnxruntime_web: Path | None = option(
        None,
        "The package onnxruntime-web, as a .tgz file of `npm pack` or a folder (default: run "
        "`npm pack` once).",
        Path,
    )
    webgpu: bool = option(True, "Include the variant for GPUs, 27 MB (default: on).", bool)

    def __post_init__(self) -> None:
        check_suffix(self.output, HTML, "a site")
        if self.output.name != INDEX:
            raise UsageError(
                f"A site is a folder with {INDEX}, but the output is {self.output}.",
                fix=f"Use -o {self.output.with_suffix('')}/.",
            )
        if self.check_images is not None:
            raise UsageError(
                "--check-images does not apply to a site.",
                why="The site contains the ONNX model itself, so there is nothing to compare.",
                fix="Leave it out.",
            )

    @property
    def folder(self) -> Path:
        """The folder of the site."""
        return self.output.parent

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files and folders that are read and must not be replaced."""
        package = [self.onnxruntime_web] if self.onnxruntime_web else []
        return (*super().inputs, *package)

    @property
    def outputs(self) -> Mapping[str, Path]:
        """Files that are written, by their name in messages."""
        return {"-o": self.output, "The list of files": self.folder / SITE}
