"""Predictions for a card from the arithmetic of the network, before anything is measured.

A patch of 96x96 takes 7.67 GFLOP forward and backward, and its operands are 50 MB in 16 bits and 98 MB in fp32, 25 %
more with BatchNorm. A step takes the time of the device, arithmetic plus traffic, or that of the process that launches
its kernels, whichever is longer. Rates are shares of a card's peak that convolutions of 64 channels were assumed to
reach. Nothing here was fitted to a measurement of a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.gpu import ceilings, correctness, feeding, memory, steps, training
from benchmarks.gpu.job import FULL, HALVES, Size
from pipeline.training.precision import Precision

_GFLOP, _MB_HALF, _MB_FULL, _NORM = 7.67, 50.0, 98.0, 1.25
_PLAIN_MB, _OWN_MB = 25.0, 300.0
"""MB of activations per patch in a plain loop in fp32 with BatchNorm, measured on a CPU, and MB of all the rest."""
_FEW_ROWS = 72 / 132
"""Share of an H100's multiprocessors that a batch of 16 occupies: it has 72 tiles of output for 132 of them."""


@dataclass(frozen=True)
class Card:
    """The assumed rates of a card."""

    name: str
    copy_tb: float
    """TB/s that a copy reads and writes."""
    products: Mapping[str, float]
    """TFLOP/s of large matrix products by precision."""
    rates: Mapping[str, float]
    """TFLOP/s of the network's convolutions by precision."""
    host_ms: float
    """Milliseconds in which the process launches an eager step of the learner."""
    plain_host_ms: float
    """Likewise for a plain loop, which casts no weights and keeps no average."""
    graph_host_ms: float
    """Likewise for the parts of a compiled step that are no CUDA graph: samples, clipping, optimizer and average."""
    graph_ms: float
    """Milliseconds of a compiled step on the device beyond those of its arithmetic and traffic."""


H100 = Card(
    "H100", 3.0, {"fp32": 50, "tf32": 400, "bf16": 790, "fp16": 790},
    {"fp32": 37, "tf32": 150, "bf16": 300, "fp16": 300}, 9, 5, 2, 0.3,
)  # fmt: skip
T4 = Card("T4", 0.27, {"fp32": 6, "fp16": 40}, {"fp32": 4.5, "fp16": 18}, 18, 10, 4, 0.5)
CPU = Card(
    "CPU of two cores", 0.01, {"fp32": 0.1, "tf32": 0.1, "bf16": 0.1, "fp16": 0.1},
    {"fp32": 0.05, "tf32": 0.05, "bf16": 0.01, "fp16": 0.01}, 10, 4, 5, 5,
)  # fmt: skip
"""A rough guess, so that a small run shows the same table."""


def find_card(name: str | None) -> Card:
    """Return the assumptions for a card; those for an H100 if there are none for it.

    Args:
        name: name of the GPU; None if there is none.
    """
    return CPU if name is None else T4 if "T4" in name else H100


def predict(part: int, size: Size, card: Card) -> dict[str, float]:
    """Return the predicted values of a part by name of the measurement."""
    if part == 2:
        return {training.THROUGHPUT: _fed_patches(size, card)}
    predicted = {ceilings.COPY: card.copy_tb}
    predicted |= {ceilings.product(precision): rate for precision, rate in card.products.items()}
    for precision, errors in correctness.EXPECTED.items():
        if precision in card.rates:
            predicted |= {correctness.gradient(net, precision): error for net, error in errors.items()}
    halves: list[Precision] = [p for p in HALVES if p in card.rates]
    for batch_norm in (False, True):
        for batch in size.batches:
            for variant in steps.variants(halves, batch == size.main_batch, batch_norm):
                predicted[steps.step(batch, batch_norm, variant)] = _step_ms(size, card, batch, batch_norm, variant)
    for hold in feeding.HOLDS:
        predicted[feeding.reading(hold)] = feeding.EXPECTED[hold]
        predicted[feeding.fed(hold)] = min(_fed_patches(size, card), feeding.EXPECTED[hold])
    gflop_a_pixel = _GFLOP / 3 * _share(size) / size.crop**2  # a forward pass is a third of a step
    predicted[feeding.VALIDATION] = 1000 * gflop_a_pixel / card.rates["fp32"]  # the network alone
    predicted[memory.FLAT] = 1.0
    for batch in size.plain_batches:
        predicted[memory.plain(batch)] = _OWN_MB + _PLAIN_MB * batch * _share(size)
    return predicted


def _fed_patches(size: Size, card: Card) -> float:
    """Patches per second of compiled steps of the main batch in 16 bits."""
    variant = steps.Variant("bf16" if "bf16" in card.rates else "fp16", compiled=True)
    return 1000 * size.main_batch / _step_ms(size, card, size.main_batch, False, variant)


def _share(size: Size) -> float:
    """Work of a patch of this size as a share of that of the full size: blocks and stages, channels, pixels."""
    layers = (2 * size.blocks + 40) / (2 * FULL.blocks + 40)  # the stages and the ends take as long as 40 layers
    return layers * (size.channels / FULL.channels) ** 2 * (size.crop / FULL.crop) ** 2


def _step_ms(size: Size, card: Card, batch: int, batch_norm: bool, variant: steps.Variant) -> float:
    patches = batch * _share(size)
    per_patch = _MB_HALF if variant.precision in ("bf16", "fp16") else _MB_FULL
    compute = _GFLOP * patches / card.rates.get(variant.precision, card.rates["fp32"])
    if card is H100 and patches <= 16:
        compute /= _FEW_ROWS
    traffic = per_patch * patches * (_NORM if batch_norm else 1) / card.copy_tb / 1000
    device = compute + traffic
    if variant.compiled and not variant.without_graphs:
        return max(device + card.graph_ms, card.graph_host_ms)
    return max(device, card.plain_host_ms if variant.plain else card.host_ms)
