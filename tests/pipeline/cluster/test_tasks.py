import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from pipeline import ALLOCATOR, cluster
from pipeline.settings import UserError
from pipeline.settings.command_line import parse


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


def refuse_odd(task: Task) -> Outcome:
    if task.number == 1:
        raise ValueError("1 is\nrefused")
    if task.number == 3:
        raise UserError("3 is refused, expected an even number")
    if task.number == 5:
        raise MemoryError
    return square(task)


@pytest.mark.usefixtures("ray_session")
def test_tasks_and_results_keep_their_types() -> None:
    tasks = [Task(number, None if number % 2 else f"even {number}") for number in range(5)]
    outcomes = sorted(cluster.map_tasks(square, tasks), key=lambda outcome: outcome.task.number)
    assert outcomes == [square(task) for task in tasks]


@pytest.mark.usefixtures("ray_session")
def test_workers_have_the_settings_of_the_allocator() -> None:
    (found,) = cluster.map_tasks(lambda names: {name: os.environ.get(name) for name in names}, [list(ALLOCATOR)])
    assert found == ALLOCATOR


@pytest.mark.usefixtures("ray_session")
def test_an_exception_ends_its_own_task_alone() -> None:
    tasks = [Task(number) for number in range(6)]
    outcomes = sorted(cluster.map_tasks(refuse_odd, tasks), key=lambda outcome: outcome.task.number)
    assert [outcome for outcome in outcomes if isinstance(outcome, Outcome)] == [square(task) for task in tasks[::2]]
    errors = {outcome.task: outcome.reason for outcome in outcomes if isinstance(outcome, cluster.TaskError)}
    assert set(errors) == set(tasks[1::2])
    assert re.fullmatch(r"ValueError: 1 is refused \(test_tasks.py, line \d+\)", errors[tasks[1]])
    assert errors[tasks[3]] == "3 is refused, expected an even number"
    assert errors[tasks[5]].startswith("MemoryError (test_tasks.py")


@dataclass(frozen=True)
class Waiting:
    number: int
    signal: str


def wait_if_last(task: Waiting) -> tuple[int, bool]:
    """Return the task's number, and True if the signal came that the last task waits for."""
    end = time.monotonic() + 60
    while task.number == 39 and not Path(task.signal).exists():
        if time.monotonic() > end:
            return task.number, False
        time.sleep(0.02)
    return task.number, True


@pytest.mark.usefixtures("ray_session")
def test_results_come_while_other_tasks_still_run(tmp_path: Path) -> None:
    tasks = [Waiting(number, str(tmp_path / "signal")) for number in range(40)]
    results = cluster.map_tasks(wait_if_last, tasks, seconds=lambda _: 0.05)
    first = next(results)
    (tmp_path / "signal").touch()
    assert {first, *results} == {(number, True) for number in range(40)}


@pytest.mark.usefixtures("ray_session")
def test_a_task_that_needs_more_memory_than_there_is_runs_alone() -> None:
    tasks = [Task(number) for number in range(3)]
    outcomes = cluster.map_tasks(square, tasks, memory=lambda task: 2**60 if task.number == 1 else 2**20)
    assert [outcome.square for outcome in outcomes if isinstance(outcome, Outcome)][-1] == 1


def fail_at_first(task: Waiting) -> int:
    """Return the task's number, but only from the second call on, and never for the last task."""
    if task.number == 3:
        raise PermissionError(13, "Permission denied")
    if not Path(task.signal).exists():
        Path(task.signal).touch()
        raise OSError(f"the store is down for {task.number}")
    return task.number


@pytest.mark.usefixtures("ray_session")
def test_tasks_whose_storage_failed_run_again_after_the_others(tmp_path: Path) -> None:
    tasks = [Waiting(number, str(tmp_path / str(number))) for number in range(4)]
    outcomes = list(cluster.map_tasks(fail_at_first, tasks, pauses=[0.1]))
    assert outcomes[0] == cluster.TaskError(tasks[3], "[Errno 13] Permission denied")
    assert sorted(outcome for outcome in outcomes[1:] if isinstance(outcome, int)) == [0, 1, 2]
    again = [Waiting(number, str(tmp_path / f"again{number}")) for number in range(2)]
    errors = list(cluster.map_tasks(fail_at_first, again))
    assert {error for error in errors if isinstance(error, cluster.TaskError)} == {
        cluster.TaskError(task, f"the store is down for {task.number}", temporary=True) for task in again
    }


def die_at_first(task: Waiting) -> int:
    """Kill this process six times, which is more often than Ray repeats a task."""
    with Path(task.signal).open("a+") as file:
        file.write("x")
    if Path(task.signal).stat().st_size <= 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return task.number


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_tasks_whose_processes_died_run_again(tmp_path: Path) -> None:
    tasks = [Waiting(0, str(tmp_path / "signal"))]
    assert list(cluster.map_tasks(die_at_first, tasks, pauses=[0.1, 0.1])) == [0]


def test_no_tasks_give_no_results() -> None:
    assert list(cluster.map_tasks(square, [])) == []


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([{"CPU": 8}], [], None),
        ([{"CPU": 8}], ["cluster.gpu=true"], None),
        ([{"CPU": 8, "GPU": 1}], [], cluster.GpuPool(4, 0.25)),
        ([{"CPU": 2, "GPU": 1}], [], cluster.GpuPool(2, 0.25)),
        ([{"CPU": 8, "GPU": 1}], ["cluster.gpu=false"], None),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 8, "GPU": 4}, {"CPU": 64}], [], cluster.GpuPool(40, 0.25)),
    ],
)
def test_a_gpu_is_shared_by_as_many_processes_as_have_a_core(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, int]], options: list[str], expected: cluster.GpuPool | None
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    assert cluster.gpu_pool(parse(options, "evaluate", ""), 4) == expected
