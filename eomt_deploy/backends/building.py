"""What the builds of all backends have in common: configuration, options and report.

A backend that builds files has a frozen configuration, derived from :class:`BuildConfig`. A field
declared with :func:`option` is also an option of `eomt-deploy build`, so that a new backend needs
no new code in the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from eomt_deploy.certificate import Certificate
from eomt_deploy.errors import ModelFileError, UsageError
from eomt_deploy.model_file import EXTERNAL_SUFFIX
from eomt_deploy.sidecar import Sidecar, read_sidecar, sidecar_path, write_sidecar
from eomt_deploy.units import counted

Progress = Callable[[str, float | None], None]
"""Called with the name of each phase, and the finished fraction (0 to 1; None if unknown)."""


@dataclass(frozen=True)
class Option:
    """An option of `eomt-deploy build`.

    Attributes:
        flag: ``--name``.
        help: one sentence, with unit and default.
        type: type on the command line: str, int, bool, Path or list[str].
        parse: converts it to the value of the field; raises UsageError.
    """

    flag: str
    help: str
    type: Any
    parse: Callable[[Any], Any]


def option(
    default: Any, help: str, type: Any = str, *, flag: str = "", parse: Any = lambda value: value
) -> Any:
    """Declare a configuration field that is also an option; the default flag is its name."""
    metadata = {"option": Option(flag, help, type, parse)}
    return field(default=default, metadata=metadata, kw_only=True)


def no_progress(_text: str, _fraction: float | None = None) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class BuildConfig:
    """Configuration of one build.

    Attributes:
        onnx: model file that `eomt-deploy export` wrote; the result has its precision.
        output: file to write.
        overwrite: replace existing files that eomt-deploy did not write.
        check: compare the new file with the ONNX model before it is published; a file that was not
            compared has no certificate, which its engine says.
        check_images: image or folder for the comparison; None uses the images of the package.
    """

    onnx: Path
    output: Path
    overwrite: bool = field(default=False, kw_only=True)
    check: bool = option(
        True, "Compare the new file with the ONNX model on this machine (default: on).", bool
    )
    check_images: Path | None = option(
        None, "Image or folder for this comparison (default: images of the package).", Path
    )

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files and folders that are read and must not be replaced."""
        images = [self.check_images] if self.check_images else []
        return (self.onnx, self.onnx.with_name(self.onnx.name + EXTERNAL_SUFFIX), *images)

    @property
    def outputs(self) -> Mapping[str, Path]:
        """Files that are written, by their name in messages."""
        return {"-o": self.output}

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Options of this configuration, by field name."""
        found = {}
        for entry in dataclasses.fields(cls):
            if "option" in entry.metadata:
                given: Option = entry.metadata["option"]
                flag = given.flag or f"--{entry.name.replace('_', '-')}"
                found[entry.name] = dataclasses.replace(given, flag=flag)
        return found


def config_fields(kind: type[BuildConfig]) -> tuple[str, ...]:
    """Names of the fields of a configuration, except model and output."""
    names = (entry.name for entry in dataclasses.fields(kind))
    return tuple(name for name in names if name not in ("onnx", "output"))


class BuildReport(Protocol):
    """Result of a build."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that were written."""

    @property
    def certificate(self) -> Certificate | None:
        """Comparison with the ONNX model; None if there was none."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user."""

    def lines(self) -> Iterator[str]:
        """The report as a few lines of text."""

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON."""


class BuiltFile(Protocol):
    """A built file, its origin and its certificate.

    Attributes:
        onnx: file name of the ONNX model that it was built from; empty if it is not known.
        onnx_sha256: SHA-256 of the .onnx file, or of both files if it has a side file.
        certificate: None if there is none.
    """

    onnx: str
    onnx_sha256: str
    certificate: Certificate | None

    def __init__(self, path: Path) -> None: ...

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model."""

    def check_place(self, arithmetic: str | None) -> None:
        """Check that a certificate can be stored.

        Args:
            arithmetic: what the opened file computes in.

        Raises:
            UsageError: by default, the file computes in another arithmetic.
            ModelFileError: the file has no place for it.
        """

    def save(self, certificate: Certificate) -> None:
        """Write a certificate into the file or its description."""

    def rebuild(self, onnx: Path, output: Path, arithmetic: str | None) -> BuildConfig:
        """The configuration that builds another model with the same settings, without a check.

        Args:
            arithmetic: what the opened file computes in.
        """


class FileWithSidecar:
    """The part of :class:`BuiltFile` that all files with a description in a ``.json`` file share.

    Args:
        path: the built file.
        read: reads its description.
    """

    def __init__(self, path: Path, read: Callable[[Path], Sidecar] = read_sidecar) -> None:
        self._path, self._read = path, read
        self.sidecar = read(path)
        self.onnx, self.onnx_sha256 = self.sidecar.onnx, self.sidecar.onnx_sha256
        self.certificate = self.sidecar.certificate

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model."""
        return self._path, sidecar_path(self._path)

    def check_place(self, arithmetic: str | None) -> None:
        """A description always has a place for a certificate."""

    def save(self, certificate: Certificate) -> None:
        """Write a certificate into the description.

        Raises:
            ModelFileError: the file was rebuilt meanwhile.
        """
        now = self._read(self._path)
        if now.plan_sha256 != self.sidecar.plan_sha256:
            raise ModelFileError(
                f"{self._path} has changed during the comparison.", fix="Repeat it."
            )
        write_sidecar(self._path, replace(now, certificate=certificate))


def check_line(certificate: Certificate | None) -> str:
    """The line on the check in the report of a build."""
    if certificate is None:
        return "not compared with the ONNX model: the file has no certificate"
    return f"compared with the ONNX model on {counted(certificate.images, 'image')}: {certificate}"


def check_suffix(output: Path, suffix: str, what: str) -> None:
    """Check that the output has the suffix of its format.

    Raises:
        UsageError: it has another suffix.
    """
    if output.suffix != suffix:
        raise UsageError(
            f"{output} has the suffix {output.suffix or '(none)'}, but {what} needs {suffix}.",
            fix=f"Use -o {output.with_suffix(suffix)}.",
        )


def one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    """Check that the value of an option is a known one.

    Raises:
        UsageError: it is not.
    """
    if value not in known:
        raise UsageError(f"{flag} {value!r} is unknown.", fix=f"Known: {', '.join(known)}.")
