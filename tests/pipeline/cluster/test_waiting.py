"""A cluster that grows while a command waits. The nodes only pretend to have GPUs."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.cluster.waiting import Growth
from tests.conftest import ROOT
from tests.services import AutoscalingCluster, GrowingCluster

ASK = """
import json, sys
import ray
from ray.core.generated.autoscaler_pb2 import ClusterConfig
from ray.experimental.internal_kv import _internal_kv_put
from pipeline import cluster
from pipeline.settings import UserError
from pipeline.settings.command_line import parse

def report_limits():
    config = ClusterConfig()
    group = config.node_group_configs.add()
    group.name, group.max_count = "gpu", 2
    group.resources["CPU"], group.resources["GPU"] = 2, 1
    key, namespace = ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE
    _internal_kv_put(key.encode(), config.SerializeToString(), namespace=namespace.encode())

answers = []
for options in json.loads(sys.argv[2]):
    if options == ["report limits"]:
        report_limits()
        continue
    config = parse([f"cluster.address={sys.argv[1]}", *options], "tune", "")
    cluster.connect(config)
    try:
        cluster.wait_for_workers(config, 4)
        answers.append([cluster.training_resources(config), cluster.trial_resources(config, 4)])
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
"""Waits for the workers of each of some settings, and prints how the cluster is divided, or an error.

"report limits" reports, as some autoscalers do, that the cluster may have two nodes with a GPU each.
"""


def start(address: str, *settings: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", ASK, address, json.dumps(settings)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def answers(asked: "subprocess.Popen[str]") -> tuple[str, list[Any]]:
    """Return the lines of a process of ASK and its answers."""
    printed, _ = asked.communicate(timeout=120)
    assert asked.returncode == 0
    *lines, last = printed.splitlines()
    return "\n".join(lines), json.loads(last)


@pytest.fixture
def growing() -> Iterator[GrowingCluster]:
    cluster = GrowingCluster()
    yield cluster
    cluster.stop()


@pytest.mark.long
def test_gpus_that_join_meanwhile_are_used(growing: GrowingCluster) -> None:
    lines, (without, in_vain, at_once, reported, too_many) = answers(
        start(
            growing.address,
            [],
            ["cluster.gpu=true", "cluster.workers=2", "cluster.wait_s=1"],
            ["cluster.gpu=true", "cluster.wait_s=0"],
            ["report limits"],
            ["cluster.wait_s=1"],
            ["cluster.gpu=true", "cluster.workers=3"],
        )
    )
    assert lines.count("this trains on CPUs, because the cluster has no GPU; --cluster.gpu true waits for GPUs") == 1
    assert without[0] == [2, {"CPU": 1}]
    assert in_vain.startswith(
        "the cluster has room for 0 of 2 workers with a GPU of 1 CPU after 1 seconds (cluster.wait_s)"
    )
    assert "but the cluster has room for 0 (CPU 2, GPU 0, nodes 1)" in at_once
    assert reported.startswith("the cluster has room for 0 of 1 workers with a GPU")
    assert "but the cluster has room for 0 (CPU 2, GPU 0, nodes 1)" in too_many  # without waiting in vain

    waiting = start(
        growing.address,
        ["cluster.workers=2"],
        ["tune.trials_per_gpu=3"],
        ["cluster.workers=3", "cluster.min_workers=2", "cluster.resize_s=1"],
        ["cluster.min_workers=3"],
        ["cluster.gpu=true", "cluster.accelerator_type=T4"],
        ["cluster.gpu=true", "cluster.accelerator_type=H100", "cluster.wait_s=1"],
    )
    growing.add(gpus=2)
    started = time.monotonic()
    _, ((workers, _), (_, shared), (elastic, _), too_few, (typed, _), other_type) = answers(waiting)
    assert workers == [2, {"CPU": 1, "GPU": 1}]
    assert shared == [2, 1, {"CPU": 1, "GPU": 0.5}]
    assert elastic == [3, {"CPU": 1, "GPU": 1}]
    assert time.monotonic() - started < 90  # it does not wait long for the third
    assert too_few == "cluster.min_workers is 3, expected no more than the number of workers, 2"
    assert typed == [2, {"CPU": 1, "GPU": 1, "accelerator_type:T4": 0.001}]
    assert other_type.startswith("the cluster has room for 0 of 1 workers with a GPU of type H100 of 1 CPU after 1 s")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_autoscaler_is_asked_for_cores_and_gpus() -> None:
    cluster = AutoscalingCluster()
    try:
        cores, gpus = ["cluster.gpu=false", "cluster.workers=4"], ["cluster.gpu=true", "cluster.workers=2"]
        lines, ((on_cores, _), (on_gpus, _)) = answers(start(cluster.address, cores, gpus))
        assert "waiting for 4 workers: 2 are there" in lines
        assert on_cores == [4, {"CPU": 1}]
        assert re.search(r"waiting for 2 GPUs: [01] (is|are) there", lines)
        assert on_gpus == [2, {"CPU": 2, "GPU": 1}]
    finally:
        cluster.stop()


def test_a_cluster_may_grow_as_far_as_its_autoscaler_tells() -> None:
    assert not Growth(managed=False, most=None).allows({"CPU": 1})
    assert Growth(managed=True, most=None).allows({"CPU": 1000, "GPU": 8})
    assert not Growth(managed=True, most=None).has_gpus
    limited = Growth(managed=True, most={"CPU": 16, "GPU": 2})
    assert limited.has_gpus
    assert limited.allows({"CPU": 16, "GPU": 2})
    assert not limited.allows({"CPU": 17})
    assert not limited.allows({"CPU": 1, "TPU": 1})
    assert not Growth(managed=True, most={"CPU": 16, "GPU": 0}).has_gpus
