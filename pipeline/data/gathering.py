"""Copy many squares out of images that lie anywhere in this process's memory, with one operation.

Tiles of different row groups are different arrays, and an operation of NumPy for each crop would take about as long as
copying the crop. Here, NumPy indexes a view of the whole memory instead.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.random_numbers import Ints
from sr_model.pixels import Pixels

_FIRST_ADDRESS = 4096
"""No array begins below; the view does not begin at 0, which NumPy takes for no address."""
_ADDRESSES = 2**48
"""Length of the view; systems place no memory beyond 2^47 unless a program asks for it."""


def copy_squares(first: Ints, side: int, row_bytes: int) -> Pixels:
    """Copy squares of RGB pixels.

    The caller guarantees that all rows lie within arrays that exist, because nothing here can check it.

    Args:
        first: (n,) addresses of the squares' first bytes.
        side: side of each square in pixels.
        row_bytes: bytes from one row to the next.

    Returns:
        (n, side, side, 3) uint8.
    """
    rows = (first - _FIRST_ADDRESS)[:, None] + np.arange(0, side * row_bytes, row_bytes)
    copied: Pixels = _memory(3 * side)[rows].view(np.uint8).reshape(len(first), side, side, 3)
    return copied


def address(array: npt.NDArray[Any]) -> int:
    """Return the address of an array's first byte."""
    first: int = array.__array_interface__["data"][0]
    return first


@lru_cache(maxsize=8)
def _memory(size: int) -> npt.NDArray[np.void]:
    """Return a read-only view of the memory as items of `size` bytes, one beginning at each byte."""

    class Memory:
        def __init__(self) -> None:
            self.__array_interface__ = {
                "version": 3,
                "typestr": f"|V{size}",
                "shape": (_ADDRESSES,),
                "strides": (1,),
                "data": (_FIRST_ADDRESS, True),
            }

    return np.asarray(Memory())
