"""The ranks of a training: this process's place among them, and what they decide together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.settings import UserError

T = TypeVar("T")


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

    def call_on_all(self, action: Callable[[], T], problem: str = "") -> T:
        """Call `action` on every rank.

        Args:
            action: what this rank does.
            problem: start of the message if it fails.

        Returns:
            This rank's result.

        Raises:
            UserError: on all ranks alike, if the action raised an OSError or a UserError on any of them.
        """
        result, message = None, None
        try:
            result = action()
        except (OSError, UserError) as error:
            message = f"{problem}: {error}" if problem else str(error)
        message = next(filter(None, self.gather(message)), None)
        if message:
            raise UserError(message)
        return result  # type: ignore[return-value]
