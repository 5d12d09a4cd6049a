"""Load the upscaler that a model's source describes."""

from __future__ import annotations

from pipeline.networks.devices import best_device, cuda_fault
from pipeline.networks.engine import Precision
from pipeline.networks.sources import ModelKind, ModelSource
from pipeline.networks.upscalers import BicubicUpscaler, NetworkUpscaler, Upscaler
from pipeline.networks.weights import load_network
from pipeline.settings import UserError
from sr_model.networks.sampling import Sampling


def load_upscaler(
    source: ModelSource,
    scale: int = 4,
    device: str | None = None,
    precision: Precision = "auto",
    tile: int | None = None,
    sampling: Sampling | None = None,
) -> Upscaler:
    """Load a model.

    Args:
        source: the model, from `sources.find_model`.
        scale: the factor of bicubic interpolation; networks have their own.
        device: "cpu" or "cuda"; by default the GPU if there is one.
        precision: numbers that a network computes with. "auto" means fp16 on a GPU with tensor cores, bf16 on a CPU
            with instructions for it, and fp32 elsewhere or if a test image shows that the network needs it, so that
            the PSNR of photographs changes by less than 0.01 dB. Other models than networks of this project take
            "auto" and "fp32" alone.
        tile: LR pixels, widest part of an image that is computed at once; by default what there is memory for.
        sampling: how a network that draws images in steps does so; by default in its own number of steps, seed 0.

    Raises:
        UserError: if there is no such device, the model cannot be computed in the precision, the file cannot be read,
            no network has its weights, or a sampling is asked of a model that makes its image at once.
    """
    if device == "cuda" and (fault := cuda_fault()):
        raise UserError(f"the device cuda cannot be used ({fault}): expected the device cpu")
    if source.kind is not ModelKind.SAFETENSORS and precision not in ("auto", "fp32"):
        raise UserError(f"{source.text} cannot be computed in {precision}, expected auto or fp32 for such a model")
    if source.kind is not ModelKind.SAFETENSORS and sampling:
        raise _no_steps(source)
    if source.kind is ModelKind.BICUBIC:
        return BicubicUpscaler(scale)
    if source.kind is ModelKind.ONNX:
        from pipeline.networks.onnx_upscaler import load_onnx  # here, because its packages belong to an extra

        return load_onnx(source.weights, device, tile)
    device = device or best_device().type
    if precision == "fp16" and device == "cpu":
        raise UserError("the precision fp16 needs a GPU, expected auto, fp32 or bf16 on a CPU")
    net = load_network(source.weights)
    if sampling:
        if net.sampling is None:
            raise _no_steps(source)
        net.sampling = sampling
    return NetworkUpscaler(net.to(device), precision, tile)


def _no_steps(source: ModelSource) -> UserError:
    return UserError(
        f"{source.text} makes its image at once, so it has neither steps nor a seed: expected a model that was trained "
        "with train.method=flow, or none of --steps, --seed and --solver"
    )
