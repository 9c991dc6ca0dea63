"""What travels between the server process and its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eomt_deploy.errors import EomtDeployError

JSON = "application/json"
FORMATS = {
    "rle": JSON,
    "polygons": JSON,
    "coco": JSON,
    "panoptic": JSON,
    "png": "image/png",
    "overlay": "image/jpeg",
}
"""Media type of each format of a result."""
STAGES = ("queue", "read", "network", "postprocess", "encode")
"""The stages of a request, each with a time in the metrics."""


@dataclass(frozen=True)
class Pixels:
    """An image uint8 [H, W, 3], RGB, as bytes: cheaper to send to a worker than an array."""

    height: int
    width: int
    data: bytes


@dataclass(frozen=True)
class Options:
    """How a result is computed and written.

    Attributes:
        format: one of :data:`FORMATS`.
        thresholds: those that the client gave: ``score``, ``mask``, ``overlap``.
        classes: names or ids of the classes to keep; empty keeps all.
        tolerance: maximum error of polygons in pixels.
    """

    format: str = "rle"
    thresholds: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    tolerance: float = 0


@dataclass(frozen=True)
class Work:
    """One image to segment.

    Attributes:
        image: encoded image, or its pixels; None to use the kept outputs again.
        options: how.
        key: keep the outputs of the network under this name, or use those that were kept.
    """

    image: bytes | Pixels | None
    options: Options = Options()
    key: str | None = None


@dataclass(frozen=True)
class Answer:
    """The result of one :class:`Work`.

    Attributes:
        body: the result in the requested format.
        media_type: its media type.
        seconds: time of each stage; those of a batch count for each of its images.
        batch: number of images that the network processed together.
    """

    body: bytes
    media_type: str
    seconds: Mapping[str, float]
    batch: int = 1


@dataclass(frozen=True)
class ServedModel:
    """What clients may know about a model; a worker reports it when it has opened the file."""

    task: str
    classes: tuple[Mapping[str, Any], ...]
    thresholds: Mapping[str, float]
    image_size: tuple[int, int]
    precision: str
    where: str
    remarks: tuple[str, ...] = ()


class RequestError(Exception):
    """A request that gets an error instead of a result.

    Args:
        status: HTTP status code.
        what: what happened.
        why: the cause, if it is not obvious.
        fix: what the client can do.
        retry_after: seconds after which a retry makes sense.
    """

    def __init__(
        self,
        status: int,
        what: str,
        *,
        why: str = "",
        fix: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, what, why, fix, retry_after)
        self.status, self.what, self.why, self.fix = status, what, why, fix
        self.retry_after = retry_after

    def __reduce__(self) -> Any:
        return _request_error, self.args

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.fix) if part)

    @classmethod
    def from_error(cls, error: EomtDeployError) -> RequestError:
        """The answer to an error of the library: the client's fault (400) or ours (500)."""
        status = 400 if error.exit_code == 2 else 500
        return cls(status, error.what, why=error.why, fix=error.fix)


def _request_error(
    status: int, what: str, why: str, fix: str, retry_after: float | None
) -> RequestError:
    return RequestError(status, what, why=why, fix=fix, retry_after=retry_after)
