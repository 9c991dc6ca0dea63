"""The `infer` call of the Open Inference Protocol, without HTTP or gRPC.

A model has one input, ``image``: encoded images (BYTES [N] or [N, 1]), or pixels (UINT8 [H, W, 3]
or [N, H, W, 3], RGB). Its output ``result`` has one JSON text for each image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from eomt_deploy.serving.work import FORMATS, JSON, Options, Pixels, RequestError, Work

INPUT, OUTPUT = "image", "result"
MAX_IMAGES = 64
"""Maximum number of images in one request."""
MAX_TENSORS = 16
MAX_NUMBER = 1000
"""Maximum value of a parameter, e.g. the tolerance in pixels."""
PLATFORM = "eomt-deploy"
THRESHOLDS = {f"{name}_threshold": name for name in ("score", "mask", "overlap")}
NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
"""Allowed names of models: they are part of addresses and of metrics."""


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: its name.
        datatype: ``BYTES`` or ``UINT8``.
        shape: its shape.
        data: byte strings (BYTES), or one byte string with all values (UINT8).
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[bytes] | bytes


@dataclass(frozen=True)
class InferRequest:
    """A request for one or several images."""

    inputs: Sequence[Tensor]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    id: str = ""


def bad(
    what: str, fix: str = "Compare the request with the metadata of the model."
) -> RequestError:
    """The error for a request that does not follow the protocol."""
    return RequestError(400, what, fix=fix)


def metadata(name: str) -> dict[str, Any]:
    """The metadata of a model; all EoMT models have the same input and output."""
    return {
        "name": name,
        "versions": ["1"],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": OUTPUT, "datatype": "BYTES", "shape": [-1]}],
    }


def works_of(request: InferRequest) -> list[Work]:
    """The images of a request.

    Raises:
        RequestError: the request does not fit the model.
    """
    unknown = set(request.outputs) - {OUTPUT}
    if unknown:
        raise bad(f"There is no output {sorted(unknown)[0]!r}.", f"Request {OUTPUT!r}.")
    if [tensor.name for tensor in request.inputs] != [INPUT]:
        names = ", ".join(repr(tensor.name) for tensor in request.inputs) or "none"
        raise bad(f"The request needs one input, {INPUT!r}, got {names}.")
    options = options_of(request.parameters)
    if FORMATS[options.format] != JSON:
        raise bad(
            f"Format {options.format!r} is not text.",
            "Use rle, polygons, coco or panoptic, or POST /segment for images.",
        )
    return [Work(image, options) for image in _images_of(request.inputs[0])]


def _images_of(tensor: Tensor) -> list[bytes | Pixels]:
    shape = tensor.shape
    if any(side < 1 for side in shape):
        raise bad(f"The shape of {INPUT!r} is {list(shape)}, but all sides must be positive.")
    if tensor.datatype == "BYTES" and not isinstance(tensor.data, bytes):
        if len(shape) not in (1, 2) or (shape[-1] != 1 and len(shape) == 2):
            raise bad(f"BYTES {INPUT!r} must have the shape [N] or [N, 1], got {list(shape)}.")
        if len(tensor.data) != shape[0]:
            raise bad(f"The shape is {list(shape)}, but there are {len(tensor.data)} elements.")
        images: list[bytes | Pixels] = list(tensor.data)
    elif tensor.datatype == "UINT8" and isinstance(tensor.data, bytes):
        if len(shape) not in (3, 4) or shape[-1] != 3:
            raise bad(
                f"UINT8 {INPUT!r} must have the shape [H, W, 3] or [N, H, W, 3], got {list(shape)}."
            )
        if len(tensor.data) != math.prod(shape):
            raise bad(
                f"The shape {list(shape)} needs {math.prod(shape)} bytes, got {len(tensor.data)}."
            )
        size = math.prod(shape[-3:])
        images = [
            Pixels(shape[-3], shape[-2], tensor.data[i : i + size])
            for i in range(0, len(tensor.data), size)
        ]
    else:
        raise bad(f"The datatype of {INPUT!r} must be BYTES or UINT8, got {tensor.datatype!r}.")
    if len(images) > MAX_IMAGES:
        raise bad(
            f"The request has {len(images)} images, more than {MAX_IMAGES}.", "Split the request."
        )
    return images


def options_of(parameters: Mapping[str, Any]) -> Options:
    """The options in the parameters of a request; unknown parameters are ignored, as the protocol
    demands.

    Raises:
        RequestError: a value is not valid.
    """
    form = parameters.get("format", "rle")
    if not isinstance(form, str) or form not in FORMATS:
        raise bad(f"There is no format {form!r}.", f"Use one of {', '.join(FORMATS)}.")
    thresholds = {
        short: _number(name, parameters[name])
        for name, short in THRESHOLDS.items()
        if parameters.get(name) is not None
    }
    classes = parameters.get("classes", ())
    if isinstance(classes, str):
        classes = [part.strip() for part in classes.split(",") if part.strip()]
    if not isinstance(classes, list | tuple) or not all(isinstance(c, str | int) for c in classes):
        raise bad(f"classes must be a list of names or ids, got {classes!r}.", "Pass e.g. 'car'.")
    return Options(
        format=form,
        thresholds=thresholds,
        classes=tuple(map(str, classes)),
        tolerance=_number("tolerance", parameters.get("tolerance", 0)),
    )


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
        if isinstance(value, bool):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise bad(f"{name} must be a number, got {value!r}.", f"Pass e.g. {name}=0.5.") from None
    if not 0 <= number <= MAX_NUMBER:
        raise bad(f"{name} must be from 0 to {MAX_NUMBER}, got {value!r}.", f"Pass {name}=0.5.")
    return number


def split_bytes(content: bytes) -> list[bytes]:
    """The elements of a BYTES tensor in binary form: 4 bytes with the length, then the element.

    Raises:
        RequestError: a length is wrong.
    """
    found = []
    position = 0
    while position < len(content):
        start = position + 4
        position = start + int.from_bytes(content[position:start], "little")
        if position > len(content):
            raise bad("The elements of a BYTES tensor are longer than its data.")
        found.append(content[start:position])
    return found


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """The inverse of :func:`split_bytes`."""
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def uint8_of(values: Any) -> bytes:
    """The values of a UINT8 tensor in JSON or in gRPC's typed contents.

    Raises:
        RequestError: a value is not an integer from 0 to 255.
    """
    try:
        array: npt.NDArray[Any] = np.asarray(values)
    except ValueError:
        raise bad("The rows of a tensor have different lengths.") from None
    if array.dtype.kind not in "iu" or array.size == 0 or array.min() < 0 or array.max() > 255:
        raise bad("UINT8 values must be integers from 0 to 255.")
    return array.astype(np.uint8).tobytes()
