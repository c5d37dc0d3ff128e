"""What NVIDIA's driver says about the machine, asked without TensorFlow.

    answer = ask()
    answer.cuda_version    # (12, 8): the newest CUDA that it runs
    answer.cards           # (Card("NVIDIA H100 80GB HBM3", (9, 0), 85045346304),)

The library of the driver is called by `ctypes`; see "CUDA Driver API", initialization,
version and device management. Cards have the order and the selection of
CUDA_VISIBLE_DEVICES, as in TensorFlow.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable

LIBRARY = "libcuda.so.1"

# CUdevice_attribute in cuda.h.
_MAJOR, _MINOR = 75, 76
_NAME_BYTES = 256


@dataclasses.dataclass(frozen=True)
class Card:
    """A card that the driver offers.

    Attributes:
      model: NVIDIA's name for the product.
      compute_capability: (major, minor).
      memory_bytes: of the whole card.
    """

    model: str
    compute_capability: tuple[int, int]
    memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the driver says.

    Attributes:
      opened: whether its library can be opened.
      error: why it cannot be opened, or what it answers to the first call, if not OK.
      cuda_version: the newest CUDA that it runs, (major, minor).
      cards: in the order of TensorFlow's GPUs.
    """

    opened: bool
    error: str | None = None
    cuda_version: tuple[int, int] | None = None
    cards: tuple[Card, ...] = ()


class _Refused(Exception):
    """A function of the driver did not return 0."""


def ask(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> Answer:
    """Asks the driver; never raises.

    Args:
      load: opens a shared library by name, or raises OSError.
    """
    try:
        library = load(LIBRARY)
    except OSError as error:
        return Answer(False, str(error))
    version = None
    try:
        number = ctypes.c_int()
        _call(library, "cuDriverGetVersion", ctypes.byref(number))
        version = (number.value // 1000, number.value % 1000 // 10)
        _call(library, "cuInit", 0)
        count = ctypes.c_int()
        _call(library, "cuDeviceGetCount", ctypes.byref(count))
        cards = tuple(_card(library, index) for index in range(count.value))
    except _Refused as error:
        return Answer(True, str(error), version)
    return Answer(True, None, version, cards)


def _card(library: ctypes.CDLL, index: int) -> Card:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(library, "cuDeviceGet", ctypes.byref(device), index)
    _call(library, "cuDeviceGetName", name, _NAME_BYTES, device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        arguments = ctypes.byref(value), attribute, device
        _call(library, "cuDeviceGetAttribute", *arguments)
        capability.append(value.value)
    major, minor = capability
    return Card(name.value.decode(errors="replace"), (major, minor), memory.value)


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Calls a function of the driver.

    Raises:
      _Refused: it returned an error.
    """
    status = getattr(library, function)(*arguments)
    if status:
        name = ctypes.c_char_p()
        known = library.cuGetErrorName(status, ctypes.byref(name)) == 0 and name.value
        said = name.value.decode() if known else f"error {status}"
        raise _Refused(f"{function} returns {said}")
