"""Decisions that are made before the first step of a training.

The number of steps holds for every resumption, because it shapes the learning rate. The other decisions depend on the
device, and are made anew when a training resumes on another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field

from pipeline.data.patchset import PatchSet
from pipeline.data.sampler import SampleOrder, imbalance
from pipeline.settings import Config, Train, UserError
from pipeline.training import memory
from pipeline.training.precision import Precision, choose_precision, common_precision
from pipeline.training.probe import MemoryUse, Probe
from pipeline.training.ranks import Ranks

COMPILED_FROM = 2000
"""Steps from which torch.compile pays: on a CPU it takes about half a minute and saves about a tenth of a step."""

_STEPS_COMPARED = 8
"""Steps whose shares are compared: where the global batch is no multiple of the lanes, shares differ between steps."""

_BALANCED = 1.15
"""Samples of the busiest worker over the average up to which `describe_imbalance` says nothing."""


@dataclass(frozen=True)
class Plan:
    """The decisions, and the measurements behind them."""

    steps: Annotated[int, Field(ge=1)]
    micro_batch: Annotated[int, Field(ge=1)]
    precision: Precision
    compiled: bool
    step_s: float | None = None
    """Measured seconds of a step without validation; None if nothing depended on them."""
    memory_mb: float | None = None
    """Measured MB of a worker at its peak; None if nothing depended on them."""
    device: str = ""
    """The kinds of devices that the decisions were made for, from `describe_devices`."""
    note: str = ""
    """A sentence about a decision that the user may not expect."""


class Measurements(Protocol):
    """Measures steps; `pipeline.training.probe.Probe` is the real one."""

    def memory_use(self, share: int) -> MemoryUse:
        """Memory of a worker whose share of a step is at most `share` samples."""
        ...

    def peak_mb(self, micro_batch: int) -> float:
        """MB of a worker at its peak with a micro-batch of so many samples, which has to fit."""
        ...

    def step_seconds(self, micro_batch: int, count: int, compiled: bool = False) -> float:
        """Seconds of a step of `count` micro-batches."""
        ...

    def why_not_compiled(self, micro_batch: int, count: int) -> str:
        """Reason in one line why compiled steps of `count` micro-batches do not work; "" if they do."""
        ...


def decide(
    settings: Train,
    *,
    share: int,
    epoch_length: int,
    device: torch.device,
    devices: str,
    precision: Precision,
    measurements: Measurements,
    validation_s: float = 0.0,
    measure: bool = False,
    steps: int | None = None,
) -> Plan:
    """Decide on length, micro-batch and compilation; the result is the same on all ranks.

    Args:
        settings: settings of the training.
        share: the most samples of a step that a worker gets.
        epoch_length: samples of an epoch.
        device: device of this rank.
        devices: the kinds of devices of all ranks, from `describe_devices`.
        precision: precision of the forward and backward pass.
        measurements: measures steps where a decision depends on it.
        validation_s: seconds of a validation, which a length in minutes includes.
        measure: whether to measure time and memory even if no decision depends on them.
        steps: the length, if it was decided earlier.

    Raises:
        UserError: if a single sample or, on a GPU, a given micro-batch does not fit in the memory, or if
            `train.compile` is "on" and does not work.
    """
    amount, unit = settings.length.split()
    micro, peak = settings.micro_batch, None
    if micro == "auto" and share == 1:
        micro = 1
    if micro != "auto" and device.type == "cuda":  # its memory is a hard limit
        peak = measurements.peak_mb(min(micro, share))
    elif micro == "auto" or measure:
        use = measurements.memory_use(share)
        micro = use.largest_batch if micro == "auto" else micro
        peak = use.at(min(micro, share))
    largest, count = min(micro, share), -(-share // micro)
    timed = measure or (unit == "minutes" and steps is None)

    def length(step_s: float | None) -> int:
        return steps or _steps(float(amount), unit, settings, epoch_length, step_s, validation_s)

    step_s = measurements.step_seconds(largest, count) if timed else None
    compiled, note = settings.compile == "on", ""
    if settings.compile == "auto":
        compiled = length(step_s) >= COMPILED_FROM
    if compiled and (problem := measurements.why_not_compiled(largest, count)):
        if settings.compile == "on":
            raise UserError(f"train.compile is on, but torch.compile does not work on this machine: {problem}")
        compiled, note = False, f"the training is not compiled, because torch.compile does not work here: {problem}"
    if compiled and timed:
        step_s = measurements.step_seconds(largest, count, compiled=True)
    return Plan(length(step_s), micro, precision, compiled, step_s, peak, devices, note)


def plan_training(
    config: Config,
    order: SampleOrder,
    ranks: Ranks,
    *,
    validation_s: float = 0.0,
    measure: bool = False,
    workers: int | None = None,
    steps: int | None = None,
) -> Plan:
    """Decide for a configuration, and measure steps of it where a decision depends on them.

    Args:
        config: the pipeline's configuration.
        order: the order of samples, which says how many samples of a step a worker gets.
        ranks: this process among the ranks, which all call this function.
        validation_s: seconds of a validation.
        measure: whether to measure time and memory even if no decision depends on them.
        workers: number of workers that this single process stands for.
        steps: the length, if it was decided earlier.
    """
    settings, world_size = config.train, workers or ranks.world_size
    precision = common_precision(ranks.gather(choose_precision(settings.precision, ranks.device)))
    shares = (order.shares(step, settings.global_batch, world_size) for step in range(_STEPS_COMPARED))
    return decide(
        settings,
        share=max(map(max, shares)),
        epoch_length=order.epoch_length,
        device=ranks.device,
        devices=describe_devices(ranks),
        precision=precision,
        measurements=Probe(config, ranks, precision),
        validation_s=validation_s,
        measure=measure,
        steps=steps,
    )


def describe_devices(ranks: Ranks) -> str:
    """Name the kinds of devices of all ranks, which all call this function; their number and order do not matter."""
    return ", ".join(sorted(set(ranks.gather(memory.describe(ranks.device)))))


def sample_order(config: Config, patch_set: PatchSet) -> SampleOrder:
    """The order of samples that the configuration defines on a patch set.

    Raises:
        UserError: if the patch set has too few row groups for the lanes.
    """
    data = config.data
    crops = data.crops_per_tile or max(round((patch_set.tile / data.crop) ** 2), 1)
    try:
        return SampleOrder(patch_set.row_groups, config.train.seed, data.lanes, data.window, crops, data.order)
    except ValueError as error:
        raise UserError(
            f"data.lanes is {data.lanes}, but the patch set has {patch_set.row_groups.count} row groups: "
            "expected fewer lanes, a smaller preprocess.row_group or more images"
        ) from error


def describe_imbalance(lanes: int, fewest: int, most: int) -> str | None:
    """Return a sentence if some number of workers gets such unequal numbers of lanes that most of them wait.

    Args:
        lanes: number of lanes.
        fewest: smallest number of workers that the training can have.
        most: the largest.
    """
    workers = max(range(fewest, most + 1), key=lambda workers: imbalance(lanes, workers))
    ratio = imbalance(lanes, workers)
    if ratio <= _BALANCED:
        return None
    return (
        f"data.lanes is {lanes}: if there are {workers} workers, one of them trains on {ratio:.2f} times as many "
        f"samples as the average, and the others wait for it; data.lanes {8 * most} keeps that at or below 1.13"
    )


def _steps(
    amount: float, unit: str, settings: Train, epoch_length: int, step_s: float | None, validation_s: float
) -> int:
    if unit == "steps":
        return max(int(amount), 1)
    if unit == "epochs":
        return max(round(amount * epoch_length / settings.global_batch), 1)
    assert step_s is not None
    # The first and the last validation come in any case.
    return max(int((60 * amount - 2 * validation_s) / (step_s + validation_s / settings.validate_every)), 1)
