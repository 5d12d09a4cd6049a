"""The ranks of a training: this process's place among them, and what they decide together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.settings import UserError

T = TypeVar("T")

_SIGN_OF_LIFE_S = 1.0
"""Seconds between two signs of life of a rank that is busy; much less than the time-out of a collective operation."""


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks. With a world size above 1, a process group must exist."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    per_node: int = 1
    """Ranks on the same node."""

    def gather(self, value: T) -> list[T]:
        """Every rank's value, which may be any picklable object, in order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def gather_numbers(self, values: Sequence[Tensor | float]) -> list[list[float]]:
        """Scalars of every rank, in order of ranks; one collective operation on the device."""
        own = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        ranks = [own]
        if self.world_size > 1:
            ranks = [torch.empty_like(own) for _ in range(self.world_size)]
            dist.all_gather(ranks, own)
        return [rank.tolist() for rank in ranks]

    def largest(self, values: list[float]) -> list[float]:
        """Elementwise maximum over all ranks."""
        return [max(column) for column in zip(*self.gather_numbers(values), strict=True)]

    def call_on_all(self, action: Callable[[], T], problem: str = "", slow: bool = False) -> T:
        """Call `action` on every rank.

        Args:
            action: what this rank does.
            problem: start of the message if it fails.
            slow: whether the action may take longer than the time-out of a collective operation. It then runs in a
                thread, while the ranks tell each other that they are alive.

        Returns:
            This rank's result.

        Raises:
            UserError: on all ranks alike, if the action raised an OSError or a UserError on any of them.
        """
        result, message = None, None
        try:
            result = self._call_slowly(action) if slow and self.world_size > 1 else action()
        except (OSError, UserError) as error:
            message = f"{problem}: {error}" if problem else str(error)
        message = next(filter(None, self.gather(message)), None)
        if message:
            raise UserError(message)
        return result  # type: ignore[return-value]

    def _call_slowly(self, action: Callable[[], T]) -> T:
        """Call `action`, and return when it has ended on all ranks.

        The ranks gather again and again which of them have ended, so that none waits long for the others.
        """
        outcome: futures.Future[T] = futures.Future()

        def call() -> None:
            try:
                if self.device.type == "cuda":
                    torch.cuda.set_device(self.device)  # a new thread begins with the first GPU
                outcome.set_result(action())
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=call, name="slow-action", daemon=True).start()
        while True:
            futures.wait([outcome], _SIGN_OF_LIFE_S)
            if all(self.gather(outcome.done())):
                return outcome.result()
