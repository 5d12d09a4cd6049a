"""How a cluster's cores and GPUs are divided between trainings."""

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cluster
from pipeline.cluster.resources import count_sharing, share_of_gpu, workers_per_gpu
from pipeline.settings import UserError
from pipeline.settings.command_line import parse


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([{"CPU": 2}], [], (1, 2, {"CPU": 1})),
        ([{"CPU": 1}], [], (1, 1, {"CPU": 1})),
        ([{"CPU": 8}], [], (4, 2, {"CPU": 1})),
        ([{"CPU": 32}], [], (4, 2, {"CPU": 4})),
        ([{"CPU": 32}], ["tune.concurrent=2"], (2, 2, {"CPU": 8})),
        ([{"CPU": 64}, {"CPU": 8, "GPU": 4}], [], (4, 1, {"CPU": 2, "GPU": 1})),
        ([{"CPU": 1}] * 2, [], (1, 2, {"CPU": 1})),
        ([{"CPU": 32}], ["cluster.workers=1", "cluster.cpus_per_worker=16"], (2, 1, {"CPU": 16})),
        ([{"CPU": 8, "GPU": 1}], [], (1, 1, {"CPU": 8, "GPU": 1})),
        ([{"CPU": 32, "GPU": 8}] * 2, [], (4, 4, {"CPU": 4, "GPU": 1})),
        ([{"CPU": 32, "GPU": 8}, {"CPU": 4}], ["cluster.workers=3"], (2, 3, {"CPU": 5, "GPU": 1})),
        ([{"CPU": 8, "GPU": 1}], ["tune.trials_per_gpu=8"], (4, 1, {"CPU": 2, "GPU": 0.25})),
        ([{"CPU": 8, "GPU": 1}], ["tune.trials_per_gpu=3"], (3, 1, {"CPU": 2, "GPU": 0.3333})),
        ([{"CPU": 2, "GPU": 1}], ["tune.trials_per_gpu=4"], (2, 1, {"CPU": 1, "GPU": 0.25})),
        ([{"CPU": 8, "GPU": 2}], ["tune.trials_per_gpu=4"], (4, 1, {"CPU": 2, "GPU": 0.5})),
        ([{"CPU": 8, "GPU": 4}], ["tune.trials_per_gpu=4"], (4, 1, {"CPU": 2, "GPU": 1})),
        ([{"CPU": 8, "GPU": 2}], ["tune.trials_per_gpu=4", "tune.concurrent=2"], (2, 1, {"CPU": 4, "GPU": 1})),
        ([{"CPU": 8, "GPU": 4}], ["tune.trials_per_gpu=4", "cluster.workers=2"], (2, 2, {"CPU": 2, "GPU": 1})),
        ([{"CPU": 8}], ["tune.trials_per_gpu=4"], (4, 2, {"CPU": 1})),
    ],
)
def test_as_many_trials_at_once_as_fit(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, int]],
    options: list[str],
    expected: tuple[int, int, dict[str, float]],
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    assert cluster.trial_resources(parse(options, "tune", ""), 4) == expected


def test_a_trial_that_fits_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4}}])
    with pytest.raises(UserError, match=r"cluster\.workers is 3, with 2 CPU each, but the cluster has room for 2"):
        cluster.trial_resources(parse(["cluster.workers=3", "cluster.cpus_per_worker=2"], "tune", ""), 4)
    with pytest.raises(UserError, match=r"cluster\.workers is 9, with 1 CPU each, but the cluster has room for 4"):
        cluster.trial_resources(parse(["cluster.workers=9"], "tune", ""), 4)


@given(st.integers(1, 100))
def test_all_workers_that_share_a_gpu_fit_on_it_and_no_other_does(workers: int) -> None:
    counted = round(10_000 * share_of_gpu(workers))  # as Ray counts
    assert workers * counted <= 10_000 < (workers + 1) * counted
    assert count_sharing({"CPU": 1, "GPU": share_of_gpu(workers)}) == workers


@given(wanted=st.integers(1, 200), gpus=st.integers(0, 64), most=st.integers(1, 100))
def test_no_more_workers_share_a_gpu_than_are_needed(wanted: int, gpus: int, most: int) -> None:
    shared = workers_per_gpu(wanted, gpus, most)
    assert 1 <= shared <= most
    assert shared == most or shared * max(gpus, 1) >= wanted
    assert shared == 1 or (shared - 1) * gpus < wanted
