"""Random numbers and random orders as pure functions of integers, the same on every machine and version.

Both kinds of sample order are built on them; another generator would silently change every resumed training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
AnyInts = npt.NDArray[np.signedinteger[Any]]
U64 = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 4
"""Rounds of a Feistel network after which its permutation passes for a random one (Luby and Rackoff, 1988)."""


def permutation(count: int, *key: int) -> Ints:
    """Return a random order of range(count); time and memory are proportional to `count`."""
    bits = mix(_fold_key(count, *key) + np.arange(count, dtype=np.uint64) * _GAMMA)
    return np.argsort(bits, kind="stable")


def permute(values: Ints, count: int, *key: int) -> Ints:
    """Return the places of some numbers in a random order of range(count), without computing the rest of the order.

    A Feistel network permutes the smallest range of 4^n numbers that contains range(count), and a number that leaves
    range(count) is permuted again until it is back (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

    Args:
        values: numbers in range(count), of any shape.
        count: length of the range; at most 2^62.
        key: determines the order, together with `count`.

    Returns:
        As many different numbers in range(count) as `values` has, in the same shape.
    """
    half = np.uint64(max((count - 1).bit_length() + 1, 2) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [_fold_key(count, *key, number) for number in range(_ROUNDS)]
    result = values.reshape(-1).astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        left, right = result[outside] >> half, result[outside] & mask
        for part in keys:
            left, right = right, left ^ (mix(right ^ part) & mask)
        moved = left << half | right
        result[outside] = moved
        outside = outside[moved >= count]
    return result.astype(np.int64).reshape(values.shape)


def fold(*parts: Ints) -> U64:
    """Hash several arrays of integers to one of 64-bit numbers, elementwise."""
    state = np.zeros(parts[0].shape, dtype=np.uint64)
    for part in parts:
        state = mix(state ^ part.astype(np.uint64))
    return state


def _fold_key(*parts: int) -> U64:
    """Hash several integers to an array of one 64-bit number."""
    return fold(*(np.array([part]) for part in parts))


def mix(z: U64) -> U64:
    """Apply one step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = z + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = z ^ (z >> np.uint64(31))
    return mixed
