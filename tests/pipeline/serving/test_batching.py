"""Images of several threads are enlarged together if they have one size, and each thread gets its own."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from pipeline.networks.upscalers import BicubicUpscaler, Part, Upscaler
from pipeline.serving.batching import MOST_PIXELS, BatchedUpscaler


class Held(Upscaler):
    """Bicubic interpolation that notes its calls, and holds the first one until it may go on."""

    def __init__(self) -> None:
        self.scale = 2
        self.calls: list[int] = []
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self._bicubic = BicubicUpscaler(2)

    def parts(self, lr: Tensor) -> Iterator[Part]:
        """Enlarge an image."""
        return self._bicubic.parts(lr)

    def enlarge_several(self, lrs: Sequence[Tensor]) -> list[Tensor]:
        """Enlarge images, except black ones."""
        self.calls.append(len(lrs))
        self.begun.set()
        assert self.may_go_on.wait(30)
        if not all(lr.any() for lr in lrs):
            raise RuntimeError("no memory")
        return [self.enlarge(lr) for lr in lrs]


def enlarge_all(images: Sequence[Tensor]) -> tuple[list[int], list[Future[Tensor]]]:
    """Enlarge the first image, and all others while it is computed; return the sizes of the calls, and the results."""
    held = Held()
    shared = BatchedUpscaler(held)
    with ThreadPoolExecutor(len(images)) as threads:
        results = [threads.submit(shared.enlarge, images[0])]
        assert held.begun.wait(30)
        results += [threads.submit(shared.enlarge, image) for image in images[1:]]
        while shared.waiting < len(images) - 1:
            threading.Event().wait(0.001)
        held.may_go_on.set()
    return held.calls, results


def images(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.uint8) -> list[Tensor]:
    """Make random images."""
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randint(1, 256, shape, generator=generator).to(dtype) for _ in range(count)]


def test_images_that_wait_are_enlarged_with_those_of_their_size() -> None:
    alike, others = images((3, 4, 5), 4), images((3, 5, 4), 2)
    deep, grey = images((3, 4, 5), 1, torch.uint16), images((1, 4, 5), 1)
    mixed = [alike[0], *others, *alike[1:], *deep, *grey]
    calls, results = enlarge_all(mixed)
    assert calls[0] == 1
    assert sorted(calls[1:]) == [1, 1, 2, 3]
    for image, result in zip(mixed, results, strict=True):
        assert torch.equal(result.result(), BicubicUpscaler(2).enlarge(image))


def test_a_call_has_a_limit_of_pixels() -> None:
    side = int((MOST_PIXELS / 2) ** 0.5)
    calls, _ = enlarge_all(images((1, side, side), 6))
    assert sorted(calls) == [1, 1, 2, 2]


def test_a_fault_reaches_those_whom_it_concerns() -> None:
    black, sound = torch.zeros(3, 4, 4, dtype=torch.uint8), images((3, 5, 5), 3)
    _, results = enlarge_all([*sound, black])
    with pytest.raises(RuntimeError, match="no memory"):
        results.pop().result()
    assert [tuple(result.result().shape) for result in results] == [(3, 10, 10)] * 3
