"""What the builds of all backends have in common: configuration, options and report.

A backend that builds files has a frozen configuration, derived from :class:`BuildConfig`. A field
declared with :func:`option` is also an option of `eomt-deploy build`, so that a new backend needs
no new code in the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from eomt_deploy.errors import UsageError
from eomt_deploy.model_file import EXTERNAL_SUFFIX

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
    return field(default=default, metadata={"option": Option(flag, help, type, parse)})


def no_progress(_text: str, _fraction: float | None = None) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class BuildConfig:
    """Configuration of one build.

    Attributes:
        onnx: model file that `eomt-deploy export` wrote; the result has its precision.
        output: file to write.
        overwrite: replace existing files that eomt-deploy did not write.
    """

    onnx: Path
    output: Path
    overwrite: bool = field(default=False, kw_only=True)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files and folders that are read and must not be replaced."""
        return (self.onnx, self.onnx.with_name(self.onnx.name + EXTERNAL_SUFFIX))

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
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user."""

    def lines(self) -> Iterator[str]:
        """The report as a few lines of text."""

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON."""


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
