"""Seeded mutations of bytes and of JSON values. The same random generator gives the same mutations."""

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
           2**40, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
"""Values at which fields of headers overflow or change their sign."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    -float("inf"), "", "x", "0", "nan", "\0", "../../etc/passwd", "a\nb", "\ud800", "é" * 300, "x" * 5000, [], {},
    [None], [[]], {"": None}, {"x": {"y": [1]}},
)  # fmt: skip
"""Values of every type of JSON, and some that only Python's JSON writes."""


def mutate_bytes(random_: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds after one to four changes."""
    content = bytearray(random_.choice(seeds))
    for _ in range(random_.choice((1, 1, 1, 2, 3, 4))):
        random_.choice(_CHANGES)(random_, content, seeds)
    return bytes(content)


def _place(random_: random.Random, content: bytearray) -> int:
    """Return a position; half of them are in the first or last 100 bytes, where headers are."""
    if not content:
        return 0
    near = min(len(content), 100)
    return random_.choice(
        (
            random_.randrange(len(content)),
            random_.randrange(len(content)),
            random_.randrange(near),
            len(content) - 1 - random_.randrange(near),
        )
    )


def _flip(random_: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    for _ in range(random_.choice((1, 1, 2, 8))):
        if content:
            content[_place(random_, content)] ^= 1 << random_.randrange(8)


def _set(random_: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    if content:
        content[_place(random_, content)] = random_.choice((0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256)))


def _number(random_: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    size, start = random_.choice((2, 4, 8)), _place(random_, content)
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    order = random_.choice(orders)
    old = int.from_bytes(content[start : start + size], order)
    new = random_.choice((random_.choice(NUMBERS), old + 1, old - 1, old * 2, random_.getrandbits(8 * size)))
    if start + size <= len(content):
        content[start : start + size] = (new % 2 ** (8 * size)).to_bytes(size, order)


def _truncate(random_: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    del content[_place(random_, content) :]


def _remove(random_: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    start = _place(random_, content)
    del content[start : start + random_.choice((1, 4, 30, 1000))]


def _repeat(random_: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    start = _place(random_, content)
    part = content[start : start + random_.choice((1, 4, 12, 100, 2000))]
    content[start:start] = part * random_.choice((1, 1, 2, 50))


def _splice(random_: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    other = bytearray(random_.choice(seeds))
    start = _place(random_, content)
    content[start:] = other[_place(random_, other) if random_.random() < 0.5 else start :]


def _insert(random_: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    start = _place(random_, content)
    content[start:start] = random_.randbytes(random_.choice((1, 2, 16, 300)))


def _blank(random_: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    start, size = _place(random_, content), random_.choice((4, 64, 4096))
    end = min(start + size, len(content))
    content[start:end] = bytes([random_.choice((0, 0xFF))]) * (end - start)


_CHANGES: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip, _flip, _set, _number, _number, _truncate, _remove, _repeat, _splice, _insert, _blank,
)  # fmt: skip


def mutate_value(random_: random.Random, value: Any) -> Any:
    """Return a copy of a JSON value after one to four changes of its parts."""
    changed = value
    for _ in range(random_.choice((1, 1, 2, 4))):
        changed = _change_part(random_, copy.deepcopy(changed))
    return changed


def _change_part(random_: random.Random, value: Any) -> Any:
    """Walk down to a random part and replace, remove, rename or repeat it."""
    parts = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    if not parts or random_.random() < 0.15:
        return _replacement(random_, value)
    key = random_.choice(list(parts))
    how = random_.random()
    if how < 0.7:
        value[key] = _change_part(random_, value[key])
    elif how < 0.8:
        del value[key]
    elif isinstance(value, list):
        value.extend([value[key]] * random_.choice((1, 3, 200)))
    elif how < 0.9:
        value[random_.choice(("", "x", f"{key}_", str(key).upper(), "../x"))] = value.pop(key)
    else:
        value[key] = copy.deepcopy(value[random_.choice(list(value))])
    return value


def _replacement(random_: random.Random, value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53 and random_.random() < 0.4:
        return random_.choice((value + 1, value - 1, -value, value * 1000, value + 0.5, str(value)))
    if isinstance(value, str) and random_.random() < 0.4:
        return random_.choice((value + "x", value[:-1], value.upper(), f"/{value}", f"../{value}", value * 50))
    if random_.random() < 0.1:
        deep: Any = value
        for _ in range(random_.choice((5, 30, 60))):
            deep = [deep] if random_.random() < 0.5 else {"x": deep}
        return deep
    return copy.deepcopy(random_.choice(VALUES))


def mutate_json(random_: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return a JSON file after changes of its values, or of its bytes."""
    if random_.random() < 0.3:
        return mutate_bytes(random_, seeds)
    value = mutate_value(random_, json.loads(random_.choice(seeds)))
    text = json.dumps(value, ensure_ascii=random_.random() < 0.5)
    if random_.random() < 0.02:
        text = "[" * 100_000 + text
    return text.encode(errors="surrogatepass")
