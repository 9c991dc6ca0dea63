"""The Open Inference Protocol over HTTP: JSON, with tensors in JSON or as binary data."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from eomt_deploy.serving.inference import (
    INPUT,
    MAX_TENSORS,
    OUTPUT,
    InferRequest,
    Tensor,
    bad,
    join_bytes,
    split_bytes,
    uint8_of,
)
from eomt_deploy.serving.work import RequestError

JSON_LENGTH_HEADER = "inference-header-content-length"
"""Length of the JSON part of a body with binary data behind it."""
MAX_DIGITS = 12
MAX_JSON = 8 << 20
"""Maximum size of the JSON part in bytes: the server does nothing else while it is parsed."""


def parse_infer(body: bytes, json_length: str | None) -> tuple[InferRequest, bool]:
    """Read the body of an infer request.

    Args:
        body: JSON, and the binary data of its tensors.
        json_length: the header :data:`JSON_LENGTH_HEADER`; None if all is JSON.

    Returns:
        the request, and whether the output shall be binary.

    Raises:
        RequestError: it does not follow the protocol.
    """
    length = len(body)
    if json_length is not None:
        short = json_length.isdecimal() and len(json_length) <= MAX_DIGITS
        if not short or int(json_length) > len(body):
            raise bad(f"{JSON_LENGTH_HEADER} does not fit a body of {len(body)} bytes.")
        length = int(json_length)
    if length > MAX_JSON:
        raise RequestError(
            413,
            f"The JSON part of the request has more than {MAX_JSON >> 20} MiB.",
            fix="Send the images as binary data, as tritonclient does by default.",
        )
    try:
        content = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise bad(f"The request is not JSON: {error}.") from None
    if not isinstance(content, Mapping):
        raise bad("The request must be a JSON object.")
    rest = memoryview(body)[length:]
    inputs = []
    for entry in _objects(content, "inputs"):
        tensor, used = _tensor(entry, rest)
        inputs.append(tensor)
        rest = rest[used:]
    if len(rest):
        raise bad(f"The body has {len(rest)} bytes more than its tensors.")
    outputs = _objects(content, "outputs")
    parameters = _object(content, "parameters")
    binary = any(_object(entry, "parameters").get("binary_data") for entry in outputs)
    if not outputs:
        binary = bool(parameters.get("binary_data_output"))
    request = InferRequest(
        inputs,
        parameters,
        [str(entry.get("name")) for entry in outputs],
        _text(content.get("id", "")),
    )
    return request, binary


def _text(value: Any) -> str:
    """An id, which is sent back."""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad("The id is not valid Unicode.") from None
    return text


def _objects(content: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = content.get(name, [])
    fits = isinstance(found, list) and all(isinstance(entry, Mapping) for entry in found)
    if not fits or len(found) > MAX_TENSORS:
        raise bad(f"{name!r} must be a list of at most {MAX_TENSORS} objects.")
    return list(found)


def _object(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = content.get(name) or {}
    if not isinstance(found, Mapping):
        raise bad(f"{name!r} must be an object.")
    return found


def _tensor(entry: Mapping[str, Any], rest: memoryview) -> tuple[Tensor, int]:
    """One input, and the number of its bytes in the binary data."""
    name, datatype = str(entry.get("name", "")), str(entry.get("datatype", ""))
    shape = entry.get("shape")
    sides: list[Any] = shape if isinstance(shape, list) else [None]
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise bad(f"The shape of {name!r} must be a list of integers, got {shape!r}.")
    parameters = _object(entry, "parameters")
    size = parameters.get("binary_data_size")
    data: Sequence[bytes] | bytes
    if size is not None:
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise bad(f"binary_data_size of {name!r} is {size!r}, but {len(rest)} bytes are left.")
        raw = bytes(rest[:size])
        data = split_bytes(raw) if datatype == "BYTES" else raw
        return Tensor(name, datatype, tuple(sides), data), size
    values = entry.get("data")
    if not isinstance(values, list):
        raise bad(f"Input {name!r} has neither data nor binary_data_size.")
    if datatype == "BYTES":
        data = [_from_base64(value) for value in _flat(values)]
    else:
        data = uint8_of(values)
    return Tensor(name, datatype, tuple(sides), data), 0


def _flat(values: list[Any]) -> list[Any]:
    """JSON tensors may be nested or flat."""
    return [v for row in values for v in (row if isinstance(row, list) else [row])]


def _from_base64(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise bad(
            f"In JSON, the elements of {INPUT!r} must be images in base64.",
            "Encode the bytes of each image file with base64, or send binary data.",
        ) from None


def infer_response(
    model: str, request_id: str, results: Sequence[bytes], *, binary: bool
) -> tuple[bytes, dict[str, str]]:
    """The body of the response and its additional headers."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "BYTES", "shape": [len(results)]}
    tail = b""
    if binary:
        tail = join_bytes(results)
        output["parameters"] = {"binary_data_size": len(tail)}
    else:
        output["data"] = [result.decode() for result in results]
    content = {"model_name": model, "model_version": "1", "outputs": [output]}
    if request_id:
        content["id"] = request_id
    head = json.dumps(content, ensure_ascii=False).encode()
    if not binary:
        return head, {"content-type": "application/json"}
    return head + tail, {
        "content-type": "application/octet-stream",
        JSON_LENGTH_HEADER: str(len(head)),
    }
