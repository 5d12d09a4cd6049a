"""Objects that were used last, which several threads may look up."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps the objects that were used last.

    Args:
        most: the sum of their sizes is at most this.
        size: returns the size of an object.
    """

    def __init__(self, most: int, size: Callable[[T], int]) -> None:
        self._most, self._size, self._lock = most, size, threading.Lock()
        self._objects: OrderedDict[str, T] = OrderedDict()
        self.size = 0
        """Sum of the sizes."""

    def find(self, key: str, make: Callable[[], T]) -> T:
        """Return an object.

        Args:
            key: names the object.
            make: makes the object if it is not kept.
        """
        with self._lock:
            if key in self._objects:
                self._objects.move_to_end(key)
                return self._objects[key]
        made = make()
        with self._lock:
            if key in self._objects:  # another thread was faster
                return self._objects[key]
            self._objects[key] = made
            self.size += self._size(made)
            while self.size > self._most:
                self.size -= self._size(self._objects.popitem(last=False)[1])
        return made

    def get(self, key: str) -> T | None:
        """Return an object if it is kept."""
        with self._lock:
            if key in self._objects:
                self._objects.move_to_end(key)
            return self._objects.get(key)
