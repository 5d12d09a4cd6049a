"""Options of commands for models that draw images in steps."""

from __future__ import annotations

import argparse

from pipeline.settings.errors import UserError
from sr_model.networks.sampling import MOST_STEPS, SOLVERS, Sampling, Solver


def step_count(text: str) -> int:
    """Read a number of steps, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_STEPS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST_STEPS}")
    return int(text)


def seed_number(text: str) -> int:
    """Read a seed, for argparse."""
    if not text.isdecimal() or not int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def chosen_sampling(steps: int | None, seed: int | None, solver: Solver | None) -> Sampling | None:
    """Return the sampling that options describe; None if none of them was given.

    Raises:
        UserError: if a value is not allowed.
    """
    if steps is not None and not (type(steps) is int and 1 <= steps <= MOST_STEPS):
        raise UserError(f"the number of steps is {steps!r}, expected a whole number from 1 to {MOST_STEPS}")
    if seed is not None and not (type(seed) is int and -(2**63) <= seed < 2**63):
        raise UserError(f"the seed is {seed!r}, expected an integer of 64 bits")
    if solver not in (None, *SOLVERS):
        raise UserError(f"the solver is {solver!r}, expected {' or '.join(SOLVERS)}")
    if steps is None and seed is None and solver is None:
        return None
    return Sampling(steps, seed or 0, solver or "euler")
