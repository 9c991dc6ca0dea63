"""DLPack capsules (https://dmlc.github.io/dlpack), written with ctypes alone.

The unversioned ``DLManagedTensor``, which every consumer reads.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

CPU, CUDA = 1, 2  # DLDeviceType
KINDS = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
"""DLDataTypeCode by numpy's kind."""
BFLOAT = 4
NAME = b"dltensor"


class Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("index", ctypes.c_int32)]


class DataType(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    ]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements
        ("byte_offset", ctypes.c_uint64),
    ]


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class ManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", Deleter)]


_lent: dict[int, tuple[object, ...]] = {}
"""What a consumer holds, by the address of its ManagedTensor, with its owner."""


def _forget(address: int) -> None:
    _lent.pop(address, None)


_give_back = Deleter(_forget)
# Prototypes of our own: those of ctypes.pythonapi belong to the whole process, and a dying capsule
# must not become a Python object again.
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _drop(capsule: int) -> None:
    """A capsule that nobody took (a taken one has another name) gives its memory back."""
    if _is_valid(capsule, NAME):
        _forget(_pointer(capsule, NAME))


_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_drop)
# A consumer may give memory back while the interpreter ends, when this module is gone already.
for _needed in (_give_back, _destructor, _lent, _forget):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_needed))


def data_type(dtype: np.dtype[Any]) -> DataType:
    """DLPack's name of a dtype.

    Raises:
        BufferError: DLPack has none (the exception that its protocol asks for).
    """
    if dtype.name == "bfloat16":
        return DataType(BFLOAT, 16, 1)
    if dtype.kind not in KINDS or not dtype.isnative:
        raise BufferError(f"DLPack has no type for {dtype}.")
    return DataType(KINDS[dtype.kind], dtype.itemsize * 8, 1)


def capsule(
    pointer: int,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    owner: object,
    device: tuple[int, int],
) -> Any:
    """A ``dltensor`` capsule of C-contiguous memory.

    Args:
        owner: kept alive until the consumer is done, or the capsule is dropped.
        device: (:data:`CUDA` or :data:`CPU`, number).
    """
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    steps = (ctypes.c_int64 * len(shape))(*_strides(shape))
    managed = ManagedTensor(
        Tensor(pointer, Device(*device), len(shape), data_type(dtype), sizes, steps, 0),
        None,
        _give_back,
    )
    address = ctypes.addressof(managed)
    _lent[address] = (managed, sizes, steps, owner)
    return _new(address, NAME, ctypes.cast(_destructor, ctypes.c_void_p))


def _strides(shape: Sequence[int]) -> list[int]:
    products = itertools.accumulate(reversed(shape[1:]), int.__mul__, initial=1)
    return list(products)[::-1] if shape else []
