"""Problems of GPUs, each in one sentence, from made-up facts about several cards; and the facts of this machine."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.settings.command_line import parse
from pipeline.training.preflight import Card, Facts, collect, find_problems, has_code, matches_interface
from tests.conftest import ROOT

CUDA_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
"""Architectures of torch's builds for CUDA 13.0."""
CUDA_12 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")

T4 = Card("Tesla T4", (7, 5), 15_000, 14_800)
P100 = Card("Tesla P100", (6, 0), 16_000, 15_800)
V100 = Card("Tesla V100", (7, 0), 16_000, 15_800)
H100 = Card("NVIDIA H100", (9, 0), 80_000, 79_000)
B200 = Card("NVIDIA B200", (10, 3), 180_000, 179_000)

GOOD = Facts(
    node="10.0.0.7",
    torch="2.13.0+cu130",
    build="CUDA 13.0",
    architectures=CUDA_13,
    error="",
    driver="580.65.06",
    card=T4,
    triton=True,
    c_compiler=True,
    interfaces=("ens5", "lo"),
    nccl_interface="",
)


def problems(facts: Facts, *options: str, workers: int = 1) -> list[str]:
    found = find_problems(facts, parse(options, "train", ""), workers)
    for sentence in found:
        assert "10.0.0.7" in sentence
        assert ": expected" in sentence or ", expected" in sentence or "end the other processes" in sentence
        assert "\n" not in sentence
    return found


@pytest.mark.parametrize("card", [T4, H100, B200])
def test_a_good_card_has_no_problem(card: Card) -> None:
    assert problems(replace(GOOD, card=card), "train.compile=on", workers=8) == []


def test_a_driver_that_torch_cannot_use() -> None:
    error = "The NVIDIA driver on your system is too old (found version 12040)."
    (sentence,) = problems(replace(GOOD, card=None, architectures=(), error=error, driver="550.54.15"))
    assert "torch 2.13.0+cu130, built for CUDA 13.0, cannot use the GPU of node 10.0.0.7" in sentence
    assert "the driver 550.54.15 (The NVIDIA driver on your system is too old" in sentence


def test_a_build_without_cuda() -> None:
    (sentence,) = problems(replace(GOOD, torch="2.13.0+cpu", build="", card=None, driver=""))
    assert sentence.startswith("torch 2.13.0+cpu on node 10.0.0.7 is a build without CUDA")


def test_a_card_that_torch_has_no_code_for() -> None:
    (sentence,) = problems(replace(GOOD, card=P100))
    assert "has no code for the Tesla P100 of node 10.0.0.7, whose compute capability is 6.0" in sentence
    assert problems(replace(GOOD, card=P100, architectures=CUDA_12)) == []


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((7, 5), CUDA_13, True),
        ((7, 0), CUDA_13, False),
        ((6, 1), CUDA_12, True),
        ((8, 9), CUDA_13, True),
        ((8, 0), ("sm_86",), False),
        ((12, 1), CUDA_12, False),
        ((12, 1), CUDA_13, True),
        ((13, 0), CUDA_13, True),
        ((10, 3), ("sm_100",), True),
        ((9, 0), ("sm_90a",), True),
        ((10, 3), ("sm_100a",), False),
        ((10, 3), ("sm_100f",), True),
        ((8, 6), ("compute_80",), True),
        ((9, 4), ("gfx90a", "gfx942"), True),
        ((7, 5), (), False),
    ],
)
def test_code_runs_on_its_own_family_and_intermediate_code_on_later_cards(
    capability: tuple[int, int], architectures: tuple[str, ...], expected: bool
) -> None:
    assert has_code(capability, architectures) is expected


def test_a_card_that_others_fill() -> None:
    (sentence,) = problems(replace(GOOD, card=replace(T4, free_mb=300)))
    assert sentence.startswith("the Tesla T4 of node 10.0.0.7 has 300 of 15000 MB free, expected at least 1000")


@pytest.mark.parametrize(
    ("facts", "lack"),
    [
        (replace(GOOD, triton=False), "has no package triton"),
        (replace(GOOD, c_compiler=False), "has no C compiler"),
        (replace(GOOD, card=V100, architectures=CUDA_12), "has a GPU of a compute capability below 7.5"),
    ],
)
def test_compile_lacks_something_only_where_it_is_asked_for(facts: Facts, lack: str) -> None:
    (sentence,) = problems(facts, "train.compile=on")
    assert f"train.compile is on, but node 10.0.0.7 {lack}" in sentence
    assert problems(facts) == problems(facts, "train.compile=off") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", True), ("ens5", True), ("ens", True), ("eth0", False), ("eth,ens", True), ("=ens5", True), ("=ens", False),
        ("^docker", True), ("^ens,lo", False), ("^=ens,lo", True), ("^=ens5,lo", False), ("eth0,", False), ("=", False),
    ],
)  # fmt: skip
def test_nccl_needs_an_interface(value: str, expected: bool) -> None:
    assert matches_interface(value, GOOD.interfaces) is expected
    facts = replace(GOOD, nccl_interface=value)
    assert bool(problems(facts, workers=2)) is not expected
    assert problems(facts, workers=1) == []


def test_the_name_of_an_address_is_that_of_its_interface() -> None:
    assert matches_interface("=eth0", ["eth0:1"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_this_machine_has_no_gpu() -> None:
    facts = collect("10.0.0.7")
    assert facts.card is None
    assert facts.error
    assert "lo" in facts.interfaces or facts.interfaces
    (sentence,) = problems(facts)
    assert facts.torch in sentence


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_torch_cannot_use_ends_a_command_with_one_sentence(small: Callable[..., list[str]]) -> None:
    pretended = {**os.environ, "RAY_OVERRIDE_RESOURCES": '{"GPU": 1}'}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.train", *small("cluster.gpu=true")],
        capture_output=True, text=True, cwd=ROOT, check=False, env=pretended,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"error: torch {torch.__version__}")
    assert "GPU" in sentence


PRETENDED = """
import time
import ray
from pipeline.settings import UserError
from pipeline.settings.command_line import parse
from pipeline.training import preflight

config = parse([], "train", "")
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)

@ray.remote(num_gpus=1)
class Busy:
    pass

busy = Busy.remote()
ray.get(busy.__ray_ready__.remote())
print(preflight.check_gpus(config, 1))
ray.kill(busy)

preflight._TIMEOUT_S = 3
preflight.collect = lambda node: time.sleep(600)
try:
    preflight.check_gpus(config, 1)
except UserError as error:
    print(error)
"""
"""Checks a pretended GPU, first while other work has reserved it, then with a check that hangs."""


@pytest.mark.long
def test_the_check_waits_neither_for_reserved_gpus_nor_for_ever() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRETENDED], capture_output=True, text=True, cwd=ROOT, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    *_, left_out, hung = [line for line in done.stdout.splitlines() if not line.startswith("checking")]
    assert left_out == "[]"
    assert re.fullmatch(r"the GPU of node [\d.]+ cannot be checked: the check did not end within 3 seconds; .+", hung)


AHEAD = """
import sys
import ray
from pipeline.settings import UserError
from pipeline.settings.command_line import parse
from pipeline.workflow import workflow

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
address = ray.get_runtime_context().gcs_address
try:
    workflow.run_workflow(parse([*sys.argv[1:], "--cluster.address", address], "run", ""))
except UserError as error:
    print(error)
"""
"""Runs a workflow on a cluster with a pretended GPU."""


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_gpus_are_checked_before_any_image_is_read(small: Callable[..., list[str]], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AHEAD, *small("--home", str(tmp_path / "new"))],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"torch {torch.__version__}")
    assert not (tmp_path / "new" / "patchsets").exists()
