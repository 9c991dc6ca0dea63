"""Functions of the Python models in Triton that need nothing of Triton."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, MutableMapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eomt_deploy.errors import DeviceError, EomtDeployError, UsageError
from eomt_deploy.processing import Processor

Logits = npt.NDArray[Any]
NUMPY_2 = (24, 12)
"""First release of Triton whose Python backend was built for numpy 2."""


class Thresholds(NamedTuple):
    """The thresholds of one request; None takes the model's default."""

    score_threshold: float | None = None
    mask_threshold: float | None = None
    overlap_threshold: float | None = None


class Call(NamedTuple):
    """The encoded images and the thresholds of one request."""

    images: list[bytes]
    thresholds: Thresholds


def read_call(image: npt.NDArray[Any], parameters: str, processor: Processor) -> Call:
    """Read a request.

    Args:
        image: the input tensor, an array of bytes.
        parameters: the parameters of the request as JSON.
        processor: processor of the model, which checks the thresholds.

    Raises:
        UsageError: there is no image, or a threshold is not valid.
    """
    # Only bytes: a text would be the path of a file on the server.
    images = [bytes(item) for item in image.ravel()]
    if not images:
        raise UsageError(
            "The input `image` is empty.", fix="Send at least one encoded image (JPEG, PNG, …)."
        )
    return Call(images, read_thresholds(parameters, processor))


def read_thresholds(parameters: str, processor: Processor) -> Thresholds:
    """The thresholds among the parameters of a request; unrelated parameters are ignored.

    Raises:
        UsageError: a threshold is not a number from 0 to 1, the task does not have it, or its name
            is misspelled.
    """
    given: Mapping[str, Any] = json.loads(parameters or "{}")
    found: dict[str, float] = {}
    for name, value in given.items():
        if name not in Thresholds._fields:
            if close := get_close_matches(name, Thresholds._fields, 1, cutoff=0.7):
                raise UsageError(
                    f"There is no parameter {name!r}.",
                    fix=f"Pass {close[0]}; all thresholds are {', '.join(Thresholds._fields)}.",
                )
            continue  # forwarded headers, sequence ids, …
        try:
            if isinstance(value, bool):
                raise ValueError
            found[name] = float(value)  # old clients send every parameter as text
        except (TypeError, ValueError):
            raise UsageError(
                f"The parameter {name} must be a number, got {value!r}.", fix="Pass e.g. 0.5."
            ) from None
    thresholds = Thresholds(**found)
    processor.thresholds(*thresholds)
    return thresholds


def group_equal(calls: Mapping[int, Call]) -> Iterator[dict[int, Call]]:
    """Groups of calls with equal thresholds, by the index of the request."""
    groups: dict[Thresholds, dict[int, Call]] = {}
    for index, call in calls.items():
        groups.setdefault(call.thresholds, {})[index] = call
    yield from groups.values()


def batches(
    images: npt.NDArray[np.uint8], minimum: int, maximum: int
) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """Parts of ``images`` that the network takes, and the number of images in each.

    A part with fewer than ``minimum`` images is filled with black ones.
    """
    for start in range(0, len(images), maximum):
        part = images[start : start + maximum]
        missing = max(0, minimum - len(part))
        filled = np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else part
        yield filled, len(part)


def too_many(count: int, limit: int) -> UsageError:
    """The error for a request that an ensemble cannot pass to the network in one call."""
    return UsageError(
        f"The images of this request have {count} network inputs, the maximum is {limit}.",
        why="An ensemble passes all inputs of a request to the network in one call; a semantic "
        "model cuts each image into windows.",
        fix="Send fewer images in one request, or write the repository with a larger --max-batch, "
        "or with --form bls or python.",
    )


def as_text(error: EomtDeployError) -> str:
    """An error in one line, with its id."""
    parts = [f"{error.id}: {error.what}"]
    if error.why:
        parts.append(f"Why: {error.why}")
    if error.fix:
        parts.append(f"Fix: {error.fix}")
    return " ".join(" ".join(parts).split())


def check_numpy(version: str, triton: str | None) -> str:
    """Refuse numpy 2 in a Triton whose Python backend cannot read texts with it.

    Such a server ends its Python process at the first request.

    Args:
        version: version of numpy.
        triton: release of NVIDIA's container, e.g. ``24.10``; None outside of it.

    Returns:
        a warning, if it is not known whether this combination works; otherwise an empty text.

    Raises:
        DeviceError: this combination does not work.
    """
    if int(version.partition(".")[0]) < 2:
        return ""
    first = ".".join(map(str, NUMPY_2))
    fix = f"pip install 'numpy<2' 'opencv-python-headless<4.12', or use Triton {first} or later."
    numbers = (triton or "").split(".")[:2]
    if len(numbers) < 2 or not all(part.isdigit() for part in numbers):
        return f"numpy {version} needs Triton {first} or later. If requests fail: {fix}"
    if tuple(map(int, numbers)) < NUMPY_2:
        raise DeviceError(
            f"Triton {triton} cannot exchange texts with numpy {version}.",
            why=f"Its Python backend was built for numpy 1; {first} is the first for numpy 2.",
            fix=fix,
        )
    return ""


def select_gpu(index: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make the GPU of an instance the only visible one, before a library initialises CUDA.

    Args:
        index: number of the GPU among those that the server sees.
        environment: environment of this process.
    """
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    environment["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) else str(index)
