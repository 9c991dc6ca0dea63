"""The C library of ``eomt.h``, called with ctypes: the same compiled file that Python uses."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache

import numpy as np

from eomt_deploy.processing import compiled
from eomt_deploy.processing.tables import PILLOW
from eomt_deploy.result import Segmentation
from eomt_deploy.spec import ModelSpec

OK, NO_MEMORY, WRONG_ARGUMENT, WRONG_MODEL, WRONG_IMAGE, NOT_FINITE = 0, -1, -2, -3, -4, -5
RGB, BGR, RGBA, BGRA = range(4)
TASKS = ("semantic", "instance", "panoptic")
RESIZES = ("letterbox", "windows")
DEFAULT = -1.0
RELEASE = 0 if PILLOW >= (13, 0) else 1 if PILLOW >= (12, 2) else 2
"""The order of passes of the installed Pillow, see ``EOMT_PILLOW_13``."""

RETURNS = {
    c_char_p: ("error_message", "model_name", "model_precision", "model_class_name"),
    c_double: ("model_threshold", "result_score"),
    c_size_t: ("geometry_input_bytes",),
    c_uint32: ("result_area", "result_run_count"),
    c_void_p: ("alloc", "result_labels", "result_box", "result_runs"),
    None: ("free", "model_free", "geometry_free", "result_free"),
}
ARGUMENTS = {
    "alloc": [c_size_t],
    "free": [c_void_p],
    "model_read": [c_void_p, c_size_t, POINTER(c_void_p)],
    "geometry_plan": [c_void_p, c_int32, c_int32, POINTER(c_void_p)],
    "preprocess": [c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_void_p, c_size_t],
    "postprocess": [c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t,
                    c_double, c_double, c_double, POINTER(c_void_p)],
    "result_mask": [c_void_p, c_int32, c_void_p, c_size_t],
}  # fmt: skip
INDEXED = (
    "model_threshold", "model_class_name", "model_class_is_thing", "model_class_color",
    "geometry_window_start", "result_class", "result_score", "result_area", "result_box",
    "result_runs", "result_run_count",
)  # fmt: skip


@cache
def function(name: str):
    """``eomt_<name>`` with the types of its declaration."""
    found = getattr(compiled.library(), f"eomt_{name}")
    found.restype = next((kind for kind, names in RETURNS.items() if name in names), c_int)
    handle = [] if name in ("abi_version", "error_message") else [c_void_p]
    found.argtypes = ARGUMENTS.get(name) or handle + [c_int32] * (name in INDEXED)
    return found


def call(name: str, *arguments):
    return function(name)(*arguments)


def message() -> str:
    return call("error_message").decode()


class CallError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"{code}: {message()}")
        self.code = code


class Handle:
    """An object of the library, freed with the Python object."""

    def __init__(self, kind: str, pointer: c_void_p) -> None:
        self.kind, self.pointer = kind, pointer

    @classmethod
    def made_by(cls, name: str, *arguments):
        pointer = c_void_p(1234)
        code = call(name, *arguments, byref(pointer))
        kind = {"model_read": "model", "geometry_plan": "geometry"}.get(name, "result")
        if code:
            assert not pointer.value
            raise CallError(code)
        return cls(kind, pointer)

    def get(self, name: str, *arguments):
        return call(f"{self.kind}_{name}", self.pointer, *arguments)

    def __del__(self) -> None:
        call(f"{self.kind}_free", self.pointer)


def read_model(json: bytes | str | ModelSpec) -> Handle:
    if isinstance(json, ModelSpec):
        json = json.to_json()
    content = json.encode() if isinstance(json, str) else json
    exact = np.array(bytearray(content), np.uint8)  # without the 0 at the end of Python's bytes
    return Handle.made_by("model_read", exact.ctypes.data, exact.size)


def plan(model: Handle, height: int, width: int) -> Handle:
    return Handle.made_by("geometry_plan", model.pointer, height, width)


def preprocess(model: Handle, geometry: Handle, image, format=RGB, pillow=0):
    """Inputs uint8 [N, H, W, 3] of an image uint8 [h, w, channels], whose rows may have gaps."""
    inputs = np.full(geometry.get("input_bytes"), 99, np.uint8)
    code = call("preprocess", geometry.pointer, image.ctypes.data, image.strides[0], format,
                pillow, inputs.ctypes.data, inputs.size)  # fmt: skip
    if code:
        raise CallError(code)
    return inputs.reshape(-1, model.get("height"), model.get("width"), 3)


def postprocess(
    model: Handle, geometry: Handle, classes, masks, score=DEFAULT, mask=DEFAULT, overlap=DEFAULT
) -> Handle:
    classes, masks = (np.ascontiguousarray(a, np.float32) for a in (classes, masks))
    return Handle.made_by(
        "postprocess", model.pointer, geometry.pointer, classes.ctypes.data, classes.size,
        masks.ctypes.data, masks.size, score, mask, overlap,
    )  # fmt: skip


def array(address: int | None, kind: str, *shape: int):
    """A copy of an array of the library."""
    dtype = np.dtype(kind)
    size = int(np.prod(shape)) * dtype.itemsize
    content = ctypes.string_at(address, size) if address else b""
    assert len(content) == size
    return np.frombuffer(content, dtype).reshape(shape)


def labels(result: Handle):
    """Labels [H, W], or None."""
    kind = {0: None, 1: "u1", 2: "u2"}[result.get("label_bytes")]
    if kind is None:
        assert result.get("labels") is None
        return None
    return array(result.get("labels"), kind, result.get("height"), result.get("width"))


def mask(result: Handle, segment: int):
    pixels = np.full((result.get("height"), result.get("width")), 99, np.uint8)
    code = result.get("mask", segment, pixels.ctypes.data, pixels.size)
    if code:
        raise CallError(code)
    return pixels


def assert_equal(found: Handle, wanted: Segmentation) -> None:
    """Compare a result with Python's. Scores are compared with ==: every bit is equal."""
    assert TASKS[found.get("task")] == wanted.task
    assert (found.get("height"), found.get("width")) == wanted.size
    found_labels = labels(found)
    assert (found_labels is None) == (wanted.labels is None)
    if found_labels is not None:
        assert found_labels.dtype == wanted.labels.dtype
        np.testing.assert_array_equal(found_labels, wanted.labels)
    assert found.get("count") == len(wanted.segments)
    for index, segment in enumerate(wanted.segments):
        assert segment.id == index
        assert found.get("class", index) == segment.class_id
        assert found.get("score", index) == segment.score
        assert found.get("area", index) == segment.area
        box = array(found.get("box", index), "i4", 4)
        assert tuple(box.tolist()) == segment.box
        np.testing.assert_array_equal(mask(found, index), segment.mask)
        count = found.get("run_count", index)
        runs = array(found.get("runs", index), "u4", count, 2)
        if wanted.task == "instance":
            np.testing.assert_array_equal(runs, segment.pixels.__self__.runs)
        else:
            assert count == 0


def picture(height: int, width: int, seed: int = 0, channels: int = 3):
    """Noise, and hard edges, which show differences of rounding."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, channels), np.uint8)
    image[rng.random((height, width)) < 0.3] = 255
    image[rng.random((height, width)) < 0.3] = 0
    return image
