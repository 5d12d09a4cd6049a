from dataclasses import dataclass

import pytest

from pipeline import cluster


@dataclass(frozen=True)
class Task:
    number: int
    name: str | None = None


@dataclass(frozen=True)
class Outcome:
    task: Task
    square: int


def square(task: Task) -> Outcome:
    return Outcome(task, task.number**2)


def refuse(task: Task) -> Outcome:
    raise ValueError(f"{task.number} is refused")


@pytest.mark.usefixtures("ray_session")
def test_tasks_and_results_keep_their_types() -> None:
    tasks = [Task(number, None if number % 2 else f"even {number}") for number in range(5)]
    outcomes = sorted(cluster.map_tasks(square, tasks), key=lambda outcome: outcome.task.number)
    assert outcomes == [square(task) for task in tasks]


def test_no_tasks_give_no_results() -> None:
    assert list(cluster.map_tasks(square, [])) == []


@pytest.mark.usefixtures("ray_session")
def test_an_error_in_a_task_reaches_the_caller() -> None:
    with pytest.raises(Exception, match="7 is refused"):
        list(cluster.map_tasks(refuse, [Task(7)]))
