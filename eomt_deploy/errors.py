"""Every error that a user can meet: what happened, why, and how to mend it."""

from __future__ import annotations

MAX_TEXT = 1200
"""Characters of each part of a message."""


class EomtDeployError(Exception):
    """Base of all errors raised on purpose by eomt-deploy.

    Args:
        what: one sentence that says what went wrong, with the values found.
        why: the rule or cause behind it, when it is not obvious.
        fix: what the user can do about it.
    """

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


def _shortened(text: str) -> str:
    """A text of bounded length: a hostile file can put megabytes into the names that it shows."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[: MAX_TEXT // 2]} … {text[-MAX_TEXT // 2 :]}"


class UsageError(EomtDeployError):
    """An argument or option that cannot be right, alone or with the others."""

    exit_code = 2


class CheckpointError(EomtDeployError):
    """A checkpoint that cannot be read, or is not the EoMT it should be."""

    exit_code = 2


class ImageError(EomtDeployError):
    """An input that is not a picture we can segment."""

    exit_code = 2


class DatasetError(EomtDeployError):
    """Labelled data that are incomplete, contradict themselves or do not fit the model."""

    exit_code = 2


class ArtifactError(EomtDeployError):
    """An exported file that is broken, or was not written by eomt-deploy."""

    exit_code = 2


class OutputError(EomtDeployError):
    """A result that cannot be written where the user wants it."""

    exit_code = 2


class MissingDependencyError(EomtDeployError):
    """A package that this verb or backend needs is not installed."""

    exit_code = 3


class DeviceError(EomtDeployError):
    """The device or provider that was asked for cannot run here."""

    exit_code = 3


class VerificationError(EomtDeployError):
    """The exported model does not compute what the checkpoint computes."""

    exit_code = 4


class BuildError(EomtDeployError):
    """TensorRT cannot build this model here; its own reasons are in the message."""

    exit_code = 3
