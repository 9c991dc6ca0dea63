"""All errors for users: what happened, why, and how to fix it.

Each class has an id that stays the same in all versions, e.g. E201. The command line prints it,
and `docs/errors.md` explains it. The first digit is the exit code (E1xx: 1), the others count the
classes. A new class gets the next free number; a number is never reused.
"""

from __future__ import annotations

MAX_TEXT = 1200
"""Maximum number of characters of each part of a message."""
FILE_SYSTEM_ID = "E207"
"""Id of errors that the file system reports itself (``OSError``)."""


class EomtDeployError(Exception):
    """Base class of all errors that eomt-deploy raises on purpose.

    Args:
        what: what happened, in one sentence with the found and the expected value.
        why: the cause or the reason, if it is not obvious.
        fix: what the user can do, as an imperative.

    Attributes:
        id: stable id of the class, explained in `docs/errors.md`.
        exit_code: exit code of the command line.
    """

    id = "E101"
    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        what, why, fix = (_shortened(text) for text in (what, why, fix))
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"Why: {self.why}")
        if self.fix:
            lines.append(f"Fix: {self.fix}")
        return "\n".join(lines)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _shortened(text: str) -> str:
    """Limit the length of a text: a hostile file can put megabytes into the names in a message."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[: MAX_TEXT // 2]} … {text[-MAX_TEXT // 2 :]}"


class UsageError(EomtDeployError):
    """An argument or option is wrong, alone or together with the others."""

    id = "E201"
    exit_code = 2


class CheckpointError(EomtDeployError):
    """A checkpoint cannot be read, or does not contain the expected EoMT."""

    id = "E202"
    exit_code = 2


class ImageError(EomtDeployError):
    """An input is not an image that can be segmented."""

    id = "E203"
    exit_code = 2


class DatasetError(EomtDeployError):
    """A labelled data set is incomplete, inconsistent or does not match the model."""

    id = "E204"
    exit_code = 2


class ModelFileError(EomtDeployError):
    """A model file is damaged, or was not written by eomt-deploy."""

    id = "E205"
    exit_code = 2


class OutputError(EomtDeployError):
    """A result cannot be written to the requested place."""

    id = "E206"
    exit_code = 2


class MissingDependencyError(EomtDeployError):
    """A package that this command or backend needs is not installed."""

    id = "E301"
    exit_code = 3


class DeviceError(EomtDeployError):
    """The requested device cannot be used on this machine."""

    id = "E302"
    exit_code = 3


class VerificationError(EomtDeployError):
    """A model does not compute what it should: its outputs or its precision are wrong."""

    id = "E401"
    exit_code = 4


class BuildError(EomtDeployError):
    """An engine cannot be built on this machine; the message contains the library's errors."""

    id = "E303"
    exit_code = 3
