"""Check that torch can train on the GPUs of a cluster, before anything starts on them.

A task on each node with GPUs collects facts, and a pure function judges them. Otherwise a driver that is too old or a
card that torch has no code for would look like a worker that is lost again and again.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import cluster, terminal
from pipeline.settings import Config, UserError
from pipeline.settings.places import ray_address
from pipeline.storage import one_line
from pipeline.training.compilers import COMPILED_FROM, has_c_compiler, has_triton

_PART_OF_A_GPU = 0.001
"""A check reserves so little that it also runs beside trainings that share a GPU."""
_TIMEOUT_S = 180
"""Seconds after which a check counts as hung. Importing torch from a slow disk takes a minute."""
_BUSY_AFTER_S = 15
"""Seconds after which a check that waits for a GPU is left out, because other work has reserved the GPUs."""
_COMMAND_TIMEOUT_S = 10
_LEAST_FREE_MB = 1000
"""MB of a GPU that the smallest training and its validations need."""

_DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/kfd"), Path("/dev/dxg"))
"""Files of the drivers of NVIDIA, of AMD, and of Windows below Linux."""

Capability = tuple[int, int]
"""Compute capability of a card, such as (7, 5)."""


@dataclass(frozen=True)
class Card:
    """A GPU."""

    name: str
    capability: Capability
    memory_mb: float
    free_mb: float


@dataclass(frozen=True)
class Facts:
    """The facts that a process on a node with GPUs finds."""

    node: str
    """Address of the node."""
    torch: str
    """Version of torch."""
    build: str
    """The platform that torch was built for, such as "CUDA 13.0"; "" for a build without GPUs."""
    architectures: tuple[str, ...]
    """Architectures that torch has code for, such as "sm_75" or "compute_90"."""
    error: str
    """Why torch cannot use the GPU, in one line; "" if it can."""
    driver: str
    """Version of NVIDIA's driver; "" if it is not known."""
    card: Card | None
    """A GPU of the node; None if torch cannot use it."""
    triton: bool
    """True if the package Triton is installed."""
    c_compiler: bool
    """True if Triton finds a C compiler."""
    interfaces: tuple[str, ...]
    """Names of the network interfaces."""
    nccl_interface: str
    """Value of NCCL_SOCKET_IFNAME; "" if it is not set."""


def check_ahead(config: Config, workers: int | None = None) -> None:
    """Check the GPUs that are already there, before images are downloaded for hours.

    Nodes that an autoscaler adds later are checked when the training starts. On a machine without GPUs, Ray does not
    start.

    Args:
        config: settings of the training.
        workers: number of training workers; by default the configured number, or one for each GPU.

    Raises:
        UserError: if torch cannot train on one of the GPUs, or the cluster does not answer.
    """
    if config.cluster.gpu is False or not (ray_address(config) or _has_gpu()):
        return
    cluster.connect(config)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus:
        check_gpus(config, workers or config.cluster.workers or gpus)


def _has_gpu() -> bool:
    """Tell whether this machine seems to have a GPU, also if torch cannot use it; it takes no memory of the GPU."""
    return torch.cuda.device_count() > 0 or any(path.exists() for path in _DRIVERS)


def check_gpus(config: Config, workers: int) -> list[Facts]:
    """Check the GPUs of the connected cluster, with one task on each node that has some.

    A node whose GPUs are all reserved by other work is left out, because a check would wait for them.

    Args:
        config: settings of the training.
        workers: number of training workers.

    Returns:
        The facts of the nodes.

    Raises:
        UserError: if torch cannot train on one of the GPUs.
    """
    collected = []
    with terminal.stage("", "checking the GPUs"):
        for node, found in _collect_on_nodes():
            if isinstance(found, str):
                raise UserError(f"the GPU of node {node} cannot be checked: {found}; expected a GPU that torch can use")
            collected.append(found)
    for facts in collected:
        if problems := find_problems(facts, config, workers):
            raise UserError(problems[0])
    return collected


def find_problems(facts: Facts, config: Config, workers: int) -> list[str]:
    """Return a sentence for each reason why a training cannot run on a node's GPU, the most basic one first.

    Args:
        facts: what a process on the node finds.
        config: settings of the training.
        workers: number of training workers.
    """
    where, installed = f"node {facts.node}", f"torch {facts.torch}"
    if not facts.build:
        return [
            f"{installed} on {where} is a build without CUDA, although the node has a GPU: expected a build for CUDA "
            "(pytorch.org/get-started), or cluster.gpu=false to train on CPUs"
        ]
    if facts.card is None:
        driver = f"the driver {facts.driver}" if facts.driver else "its driver"
        return [
            f"{installed}, built for {facts.build}, cannot use the GPU of {where} with {driver} ({facts.error}): "
            "expected a newer driver, or a build of torch for an older CUDA (pytorch.org/get-started)"
        ]
    card, problems = facts.card, []
    capability = "{}.{}".format(*card.capability)
    if not has_code(card.capability, facts.architectures):
        return [
            f"{installed}, built for {facts.build}, has no code for the {card.name} of {where}, whose compute "
            f"capability is {capability}: expected one of {', '.join(facts.architectures)}, or another build of torch"
        ]
    if card.free_mb < _LEAST_FREE_MB:
        problems.append(
            f"the {card.name} of {where} has {card.free_mb:.0f} of {card.memory_mb:.0f} MB free, expected at least "
            f"{_LEAST_FREE_MB}: end the other processes on it, which nvidia-smi lists"
        )
    if config.train.compile == "on" and (lack := _why_not_compiled(facts, card.capability)):
        problems.append(
            f"train.compile is on, but {where} {lack}: expected train.compile=auto, which compiles only where it works"
        )
    if workers > 1 and not matches_interface(facts.nccl_interface, facts.interfaces):
        problems.append(
            f"NCCL_SOCKET_IFNAME is {facts.nccl_interface!r} on {where}, which none of its network interfaces matches "
            f"({', '.join(facts.interfaces)}): expected one of them, or no value"
        )
    return problems


def has_code(capability: Capability, architectures: Sequence[str]) -> bool:
    """Tell whether a build of torch has code for a card.

    Binary code (sm_XY) runs on cards of the same major capability and the same or a later minor one. Code with the
    suffix "a" runs on exactly its capability. Intermediate code (compute_XY) is compiled for any later card. See
    NVIDIA's CUDA C++ Programming Guide, "Compute Capabilities".

    Args:
        capability: compute capability of the card.
        architectures: as `torch.cuda.get_arch_list()` names them. Names of other makers' cards count as code.
    """
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if not match:
            return True
        kind, major, minor, suffix = match[1], int(match[2]), int(match[3]), match[4]
        if suffix == "a":
            fits = capability == (major, minor)
        elif kind == "compute" and not suffix:
            fits = capability >= (major, minor)
        else:
            fits = capability[0] == major and capability[1] >= minor
        if fits:
            return True
    return False


def matches_interface(value: str, interfaces: Sequence[str]) -> bool:
    """Tell whether NCCL finds a network interface.

    Args:
        value: NCCL_SOCKET_IFNAME: prefixes of names, separated by commas; after "=" whole names, after "^" the
            interfaces to leave out, after "^=" those with these names. "" leaves the choice to NCCL.
        interfaces: names of the interfaces.
    """
    if not value:
        return True
    match = re.fullmatch(r"(\^?)(=?)(.*)", value)
    assert match
    names = [name for name in match[3].split(",") if name]
    listed = [
        name in names if match[2] else name.startswith(tuple(names)) for name in (i.split(":")[0] for i in interfaces)
    ]
    return not all(listed) if match[1] else any(listed)


def collect(node: str) -> Facts:
    """Collect facts in this process, which sees a GPU of the node.

    Args:
        node: address of the node.
    """
    build, error = "", ""
    card: Card | None = None
    architectures: tuple[str, ...] = ()
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda}"
    elif torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    try:
        torch.cuda.init()
        architectures = tuple(torch.cuda.get_arch_list())
        found = torch.cuda.get_device_properties(0)
        free, _ = torch.cuda.mem_get_info(0)
        card = Card(found.name, (found.major, found.minor), found.total_memory / 1e6, free / 1e6)
    except Exception as problem:  # torch raises AssertionError, RuntimeError or an error of its own
        error = one_line(problem, 300)
    return Facts(
        node=node,
        torch=torch.__version__,
        build=build,
        architectures=architectures,
        error=error,
        driver=_driver_version(),
        card=card,
        triton=has_triton(),
        c_compiler=has_c_compiler(),
        interfaces=tuple(sorted(psutil.net_if_addrs())),
        nccl_interface=os.environ.get("NCCL_SOCKET_IFNAME", ""),
    )


def _driver_version() -> str:
    """Return the version of NVIDIA's driver; "" if it is not known."""
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        if match := re.search(r"Kernel Module.*?(\d+\.[\d.]*\d)", text):
            return match[1]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=True,
        )
        return done.stdout.split("\n")[0].strip()
    return ""


def _why_not_compiled(facts: Facts, capability: Capability) -> str:
    """Return what torch.compile lacks, such as "has no C compiler"; "" if it lacks nothing."""
    if capability < COMPILED_FROM:
        return "has a GPU of a compute capability below {}.{}".format(*COMPILED_FROM)
    if not facts.triton:
        return "has no package triton"
    return "" if facts.c_compiler else "has no C compiler"


def _collect_on_nodes() -> list[tuple[str, Facts | str]]:
    """Return the address of each node with GPUs, and facts or the reason why there are none.

    It waits neither for a GPU that other work has reserved nor for a task that hangs.
    """
    task = ray.remote(num_cpus=0, num_gpus=_PART_OF_A_GPU, max_retries=0)(collect)
    nodes = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")}
    pending = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(address): node
        for node, address in nodes.items()
    }
    results: list[tuple[str, Facts | str]] = []
    start = time.monotonic()
    while pending:
        done, _ = ray.wait(list(pending), timeout=1)
        for reference in done:
            node = pending.pop(reference)
            try:
                results.append((nodes[node], ray.get(reference)))
            except ray.exceptions.RayError as error:
                results.append((nodes[node], one_line(error, 10**6)[-300:]))
        waited = time.monotonic() - start
        free = ray._private.state.available_resources_per_node() if pending and waited > _BUSY_AFTER_S else {}
        for reference, node in list(pending.items()):
            busy = waited > _BUSY_AFTER_S and not free.get(node, {}).get("GPU")
            if busy or waited > _TIMEOUT_S:
                ray.cancel(reference, force=True)
                del pending[reference]
                if not busy:
                    results.append((nodes[node], f"the check did not end within {_TIMEOUT_S} seconds"))
    return results
