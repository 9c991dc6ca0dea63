"""What `build` of every backend has in common: its configuration, its options and its report.

A backend that builds has a frozen configuration, derived from :class:`BuildConfig`. A field made by
:func:`option` is also an option of `eomt-deploy build`, so that a new backend needs no new code in
the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from eomt_deploy.artifact import EXTERNAL_SUFFIX
from eomt_deploy.errors import UsageError

Progress = Callable[[str, float | None], None]
"""Called with each phase in words, and the share of the work that is done, if it is known."""


@dataclass(frozen=True)
class Option:
    """An option of `eomt-deploy build`.

    Attributes:
        flag: ``--name``.
        help: one sentence, with unit and default.
        type: what the command line reads: str, int, bool, Path or list[str].
        parse: makes the value of the field from it; raises UsageError.
    """

    flag: str
    help: str
    type: Any
    parse: Callable[[Any], Any]


def option(
    default: Any, help: str, type: Any = str, *, flag: str = "", parse: Any = lambda value: value
) -> Any:
    """A field of a configuration that is an option, too; the flag comes from the field's name."""
    return field(default=default, metadata={"option": Option(flag, help, type, parse)})


def no_progress(_text: str, _fraction: float | None = None) -> None:
    """For callers that do not watch."""


@dataclass(frozen=True)
class BuildConfig:
    """One build.

    Attributes:
        onnx: model that `eomt-deploy export` wrote; its precision becomes that of the result.
        output: the file to write.
        overwrite: replace existing files that eomt-deploy did not write.
    """

    onnx: Path
    output: Path
    overwrite: bool = field(default=False, kw_only=True)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files and folders that are read, and never replaced."""
        return (self.onnx, self.onnx.with_name(self.onnx.name + EXTERNAL_SUFFIX))

    @property
    def outputs(self) -> Mapping[str, Path]:
        """Files that are written, by what they are called in messages."""
        return {"-o": self.output}

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Fields that are options, by name."""
        found = {}
        for entry in dataclasses.fields(cls):
            if "option" in entry.metadata:
                given: Option = entry.metadata["option"]
                flag = given.flag or f"--{entry.name.replace('_', '-')}"
                found[entry.name] = dataclasses.replace(given, flag=flag)
        return found


def config_fields(kind: type[BuildConfig]) -> tuple[str, ...]:
    """Names of the fields of a configuration, beside model and output."""
    names = (entry.name for entry in dataclasses.fields(kind))
    return tuple(name for name in names if name not in ("onnx", "output"))


class BuildReport(Protocol):
    """What a build tells its user."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were written."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines that the user should see."""

    def lines(self) -> Iterator[str]:
        """The report in a few lines."""

    def to_dict(self) -> dict[str, Any]:
        """The report, ready for JSON."""


def check_suffix(output: Path, suffix: str, what: str) -> None:
    """The output must have the suffix of its format.

    Raises:
        UsageError: it has another.
    """
    if output.suffix != suffix:
        raise UsageError(
            f"{output} has the suffix {output.suffix or '(none)'}; {what} has the suffix {suffix}.",
            fix=f"Use -o {output.with_suffix(suffix)}.",
        )


def one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    """The value of an option must be a known one.

    Raises:
        UsageError: it is not.
    """
    if value not in known:
        raise UsageError(f"{flag} {value!r} is unknown.", fix=f"Known: {', '.join(known)}.")
