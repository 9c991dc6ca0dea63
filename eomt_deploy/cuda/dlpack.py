"""DLPack capsules (https://dmlc.github.io/dlpack), implemented with ctypes.

They contain the unversioned ``DLManagedTensor``, which every consumer accepts.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

CPU, CUDA = 1, 2  # DLDeviceType
KINDS = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
"""DLDataTypeCode by numpy dtype kind."""
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
"""Objects that must stay alive for a consumer, by the address of its ManagedTensor."""


def _forget(address: int) -> None:
    _lent.pop(address, None)


_give_back = Deleter(_forget)
# Separate prototypes: those of ctypes.pythonapi are global to the process, and the destructor must
# not convert the capsule, which is being deleted, to a Python object again.
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
    """Release the memory of a capsule that was not consumed (a consumed one has another name)."""
    if _is_valid(capsule, NAME):
        _forget(_pointer(capsule, NAME))


_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_drop)
# A consumer may release memory at interpreter exit, when this module is already deleted.
for _needed in (_give_back, _destructor, _lent, _forget):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_needed))


def data_type(dtype: np.dtype[Any]) -> DataType:
    """DLPack's data type for a numpy dtype.

    Raises:
        BufferError: DLPack has no such type (its protocol requires this exception).
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
    """Create a ``dltensor`` capsule for C-contiguous memory.

    Args:
        pointer: address of the first element.
        owner: object that stays alive until the consumer releases the memory, or the unused
            capsule is deleted.
        device: (:data:`CUDA` or :data:`CPU`, device number).
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
