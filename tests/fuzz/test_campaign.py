"""A campaign finds faults: undocumented exceptions, slow inputs, and inputs that take much memory."""

import random
from collections.abc import Callable

import pytest

from tests.fuzz.campaign import Campaign
from tests.fuzz.mutations import mutate_bytes, mutate_json


def campaign(use: Callable[[int], object]) -> Campaign:
    return Campaign("test", lambda random_: random_.randrange(10), use, (ValueError,), seconds=0.3)


def test_documented_outcomes_are_no_faults() -> None:
    def use(number: int) -> None:
        if number % 2:
            raise ValueError("one sentence")

    campaign(use).run(20)


@pytest.mark.parametrize("text", ["", "two\nlines"])
def test_an_error_that_is_not_one_sentence_is_a_fault(text: str) -> None:
    def use(number: int) -> None:
        raise ValueError(text)

    with pytest.raises(AssertionError, match=r"3 of 3 inputs are faults:\ntest 0: ValueError is not one sentence"):
        campaign(use).run(3)


def test_another_exception_is_a_fault() -> None:
    def use(number: int) -> None:
        assert number != 3

    first = next(number for number in range(100) if campaign(use).input(number) == 3)
    with pytest.raises(AssertionError, match=rf"test {first}: AssertionError: .*test_campaign.py, line"):
        campaign(use).run(first + 1)


def test_an_endless_input_is_a_fault() -> None:
    def use(number: int) -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:  # which must not catch the end
                raise AssertionError from None

    with pytest.raises(AssertionError, match="TookTooLongError"):
        campaign(use).run(1)


def test_an_input_that_takes_much_memory_is_a_fault() -> None:
    def use(number: int) -> None:
        bytearray(2**31)

    with pytest.raises(AssertionError, match="MemoryError"):
        campaign(use).run(1)


def test_mutations_depend_on_the_seed_alone() -> None:
    seeds = [bytes(range(200)), b'{"a": [1, {"b": "c"}], "d": null}']
    for mutate in (mutate_bytes, mutate_json):
        made = [[mutate(random.Random(n), seeds[1:]) for n in range(100)] for _ in range(2)]
        assert made[0] == made[1]
        assert len(set(made[0])) > 80
