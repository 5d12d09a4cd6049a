"""Checks that the learner computes the right thing on this device."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from benchmarks.gpu.job import Job
from pipeline.networks import bundled
from pipeline.networks.devices import tf32
from pipeline.networks.weights import build_network, load_network
from pipeline.training.checkpoints import LossScale, SkipCounts
from pipeline.training.learner import Learner
from pipeline.training.precision import LossScaler, Precision, autocast
from sr_model.degrade import downscale
from sr_model.networks.super_resolver import SuperResolver
from sr_model.pixels import to_unit

EXPECTED: dict[str, dict[str, float]] = {
    "fp32": {"untrained": 1e-6, "trained": 1e-4},
    "tf32": {"untrained": 0.001, "trained": 0.067},
    "bf16": {"untrained": 0.12, "trained": 1.35},
    "fp16": {"untrained": 0.001, "trained": 0.067},
}
"""Errors of the gradient in bf16 and in fp16 that a CPU made with patches of 48 pixels; TF32 has the mantissa of fp16,
and fp32 has 13 bits more."""
_LIMITS = {"fp32": 1e-4, "tf32": 0.02, "bf16": 0.3, "fp16": 0.02}
"""Errors of the untrained network's gradient above which something is wrong."""
_PATCH = 48
WITHOUT_WAITING = "steps that do not wait for the device"


def gradient(network: str, precision: str) -> str:
    """Name of a gradient's measurement."""
    return f"gradient of the {network} network, {precision}"


def measure(job: Job, compiles: bool = True) -> None:
    """Make all checks; `compiles` says whether to check the compiled learner, too."""
    with job.recorder.attempt("gradients"):
        check_gradients(job)
    with job.recorder.attempt(WITHOUT_WAITING):
        check_waiting(job)
    with job.recorder.attempt("a step that is not finite"):
        check_skipping(job)
    with job.recorder.attempt("checkpoint"):
        check_checkpoint(job)
    with job.recorder.attempt("loss scale"):
        check_loss_scale(job)
    if compiles:
        with job.recorder.attempt("compiled"):
            check_compiled(job)


def check_gradients(job: Job) -> None:
    """Compare gradients in all precisions with those that the CPU computes in float64."""
    config = job.config()
    networks = {
        "untrained": build_network(config.scale, config.model, 0),
        "trained": load_network(bundled.weights(bundled.DEFAULT)).requires_grad_(True),
    }
    hr = data.astronaut()[: _PATCH * 8, :_PATCH].reshape(-1, _PATCH, _PATCH, 3)[: job.size.patches]
    lr = np.ascontiguousarray(downscale(torch.from_numpy(hr).permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1).numpy())
    for name, net in networks.items():
        exact = _gradient(copy.deepcopy(net).double(), lr, hr, torch.device("cpu"))
        for precision in job.precisions:
            given = _gradient(copy.deepcopy(net), lr, hr, job.device, precision)
            error = float((given - exact).norm() / exact.norm())
            target = _LIMITS[precision] if name == "untrained" else None
            job.recorder.add(gradient(name, precision), error, "norm of the error / of the gradient", target)


def _gradient(
    net: SuperResolver, lr: np.ndarray, hr: np.ndarray, device: torch.device, precision: Precision | None = None
) -> Tensor:
    """Return the gradient of the mean squared error in one vector, float64 on the CPU.

    Args:
        net: the network, which is moved to the device.
        lr: (n, h, w, 3) uint8.
        hr: (n, 4h, 4w, 3) uint8.
        device: where to compute.
        precision: precision of the passes; None for that of the network's weights.
    """
    dtype = next(net.parameters()).dtype
    net.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = (to_unit(images, device).to(dtype) for images in (lr, hr))
    scale = LossScaler(device, len(lr)).value if precision == "fp16" else torch.ones((), device=device)
    with tf32(precision == "tf32"):
        with autocast(precision or "fp32", device):
            sr = net(x)
        F.mse_loss(sr.to(dtype), y).backward(scale.to(dtype))
    parts = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
    return torch.cat(parts).double().cpu() / float(scale)


def check_waiting(job: Job) -> None:
    """Check that the process prepares training steps without waiting for a GPU, which PyTorch makes an error here."""
    learner, batch = _norm_learner(job), job.batch(4)
    on_gpu, warm_up, steps = job.device.type == "cuda", 3, 5
    try:
        for step in range(warm_up + steps):
            if on_gpu and step == warm_up:
                torch.cuda.set_sync_debug_mode("error")
            learner.step(step, [batch])
            learner.take_skipped()
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    note = "" if on_gpu else "not checked, because there is no GPU to wait for"
    job.recorder.add(WITHOUT_WAITING, steps, f"of {steps}", steps, "higher", note)


def check_skipping(job: Job) -> None:
    """Check that a sample that makes the loss NaN changes nothing, and that training goes on."""
    learner, batch = _norm_learner(job), job.batch(4)
    for step in range(2):
        learner.step(step, [batch])
    before = state(learner)
    hook = learner.net.register_forward_hook(lambda _module, _inputs, output: output * float("nan"))
    learner.step(2, [batch])
    hook.remove()
    job.recorder.add("NaN in the loss: change of weights, moments, EMA and statistics", change(before, learner), "", 0)
    learner.step(3, [batch])
    skipped = [skip.step for skip in learner.take_skipped(wait=True)]
    job.recorder.add("NaN in the loss: steps skipped in place of that one", len([s for s in skipped if s != 3]), "", 0)
    job.recorder.add("NaN in the loss: it is reported", float(3 in skipped), "1 for yes", 1, "higher")
    moved = change(before, learner)
    job.recorder.add("NaN in the loss: the next step moves weights", float(moved > 0), "1 for yes", 1, "higher")


def check_checkpoint(job: Job) -> None:
    """Check that two steps, a checkpoint and two steps equal four steps."""
    batches = [job.batch(4, seed) for seed in range(4)]
    deterministic, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        straight, first, second = (_norm_learner(job) for _ in range(3))
        for step, batch in enumerate(batches):
            straight.step(step, [batch])
            if step < 2:
                first.step(step, [batch])
        first.take_skipped(wait=True)
        second.load(first.save(), first.skips, first.loss_scale)
        for step in (2, 3):
            second.step(step, [batches[step]])
        difference = change(state(straight), second)
    finally:
        torch.backends.cudnn.deterministic = deterministic
    job.recorder.add("checkpoint: difference of 2 + 2 steps from 4 steps", difference, "largest of all tensors", 0)


def check_loss_scale(job: Job) -> None:
    """Check that a loss scale that is too large falls until steps are finite, and that this counts as no fault."""
    learner, batch = job.learner("fp16", 4), job.batch(4)
    learner.load(learner.save(), SkipCounts(), LossScale(2.0**100, 0, True))
    results = [learner.step(step, [batch]) for step in range(20)]
    skipped = learner.take_skipped(wait=True)
    later = [float(result.finite) for result in results[len(skipped) :]]
    faults = max((skip.skips.in_a_row for skip in skipped), default=0)
    job.recorder.add("fp16: steps until the loss scale fits", len(skipped), "", 10)
    job.recorder.add("fp16: those of them that count as faults", faults, "", 0)
    job.recorder.add("fp16: finite steps after them", sum(later) / len(later), "share", 1, "higher")


def check_compiled(job: Job) -> None:
    """Compare the compiled learner with the eager one in fp32."""
    learners = [job.learner("fp32", 4, compiled=compiled) for compiled in (False, True)]
    start = [parameter.detach().clone() for parameter in learners[0].net.parameters()]
    firsts = []
    for learner in learners:
        results = [learner.step(step, [job.batch(4, seed=step)]) for step in range(3)]
        firsts.append([float(results[0].sums["objective"]), float(results[0].norms["gradient_norm"])])
    for name, eager, compiled in zip(("objective", "gradient norm"), *firsts, strict=True):
        job.recorder.add(f"compiled: {name} of the first step", abs(compiled / eager - 1), "relative difference", 1e-4)
    eager_net, compiled_net = (list(learner.net.parameters()) for learner in learners)
    moved = _norm([a - b for a, b in zip(eager_net, start, strict=True)])
    apart = _norm([a - b for a, b in zip(eager_net, compiled_net, strict=True)])
    job.recorder.add("compiled: weights after three steps", apart / moved, "distance / way from the start", 0.1)


def state(learner: Learner) -> list[Tensor]:
    """Copies of all that a step changes: weights, statistics, moving average and moments."""
    nets = [*learner.net.state_dict().values(), *learner.ema.state_dict().values()]
    moments = [v for o in learner.optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
    return [tensor.detach().clone() for tensor in (*nets, *moments)]


def change(before: list[Tensor], learner: Learner) -> float:
    """Largest difference of a learner's state from an earlier one."""
    pairs = zip(before, state(learner), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def _norm_learner(job: Job) -> Learner:
    return job.learner(job.half, 4, "model.batch_norm=true")


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())
