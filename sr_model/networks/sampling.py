"""How a network draws an image. This module imports no torch, so that a command can check its options at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Solver = Literal["euler", "heun"]

SOLVERS: tuple[Solver, ...] = get_args(Solver)

MOST_STEPS = 100
"""Most steps in which an image is drawn. Memory grows with their number."""


@dataclass(frozen=True)
class Sampling:
    """The choices of a person for a network that draws an image in steps."""

    steps: int | None = None
    """Number of steps, from 1 to `MOST_STEPS`; None for the number that the network was made for."""
    seed: int = 0
    """Names the noise, which is a function of the seed and of the place of a pixel; any integer of 64 bits."""
    solver: Solver = "euler"
    """Euler's method; or Heun's, which computes the network twice in each step but the last."""
