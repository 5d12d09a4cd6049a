"""Enlarge images of one size together, although each comes from a request of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from pipeline.networks.upscalers import Part, Progress, Upscaler

MOST_PIXELS = 2**18
"""Most pixels of the images that the model enlarges in one call, before enlargement; one image may have more."""


@dataclass(eq=False)
class _Waiting:
    lr: Tensor
    sr: Future[Tensor] = field(default_factory=Future)

    def is_like(self, other: _Waiting) -> bool:
        return self.lr.shape == other.lr.shape and self.lr.dtype == other.lr.dtype


class BatchedUpscaler(Upscaler):
    """Enlarges what several threads ask for, one call of the model at a time.

    A call takes all images of one size that wait at its start. So no image waits for others to come. `serve.batch`
    would form its batches before the model is free, and thus of what arrives within a few milliseconds.

    Args:
        upscaler: the model.
    """

    def __init__(self, upscaler: Upscaler) -> None:
        self.scale = upscaler.scale
        self._upscaler = upscaler
        self._waiting: list[_Waiting] = []
        self._changing = threading.Lock()
        self._computing = threading.Lock()

    @property
    def waiting(self) -> int:
        """Number of images that wait for the model."""
        return len(self._waiting)

    def parts(self, lr: Tensor) -> Iterator[Part]:
        """Enlarge an image by itself; see `Upscaler.parts`."""
        with self._computing:
            yield from self._upscaler.parts(lr)

    def enlarge(self, lr: Tensor, progress: Progress | None = None) -> Tensor:
        """Enlarge an image; see `Upscaler.enlarge`. Progress is not told."""
        mine = _Waiting(lr)
        with self._changing:
            self._waiting.append(mine)
        with self._computing:
            if not mine.sr.done():
                self._enlarge(self._take(mine))
        return mine.sr.result()

    def _take(self, mine: _Waiting) -> list[_Waiting]:
        """Take an image out of those that wait, and with it those of its size."""
        most = max(MOST_PIXELS // (mine.lr.shape[1] * mine.lr.shape[2]), 1)
        with self._changing:
            others = [one for one in self._waiting if one is not mine and one.is_like(mine)]
            taken = [mine, *others[: most - 1]]
            self._waiting = [one for one in self._waiting if one not in taken]
        return taken

    def _enlarge(self, images: list[_Waiting]) -> None:
        try:
            results = self._upscaler.enlarge_several([one.lr for one in images])
        except Exception as error:
            for one in images:
                one.sr.set_exception(error)
        else:
            for one, sr in zip(images, results, strict=True):
                one.sr.set_result(sr)
