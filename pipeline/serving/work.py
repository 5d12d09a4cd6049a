"""Upscale the images of jobs with a model."""

from __future__ import annotations

import os

import torch

from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.networks.engine import Precision
from pipeline.networks.loading import load_upscaler
from pipeline.networks.upscalers import BicubicUpscaler
from pipeline.serving.batching import BatchedUpscaler
from pipeline.serving.jobs import Job, Method, Refusal, Upscaled
from pipeline.serving.models import ServedModel
from pipeline.settings import UserError
from pipeline.upscaling.encoding import encode_image
from pipeline.upscaling.images import decode_image, enlarge_image

_STATUS = {RejectionKind.NO_IMAGE: 415, RejectionKind.UNSUPPORTED: 415, RejectionKind.TOO_LARGE: 413}
"""Status codes of HTTP for images that cannot be used; 400 for all others."""


class Work:
    """A loaded model, which several threads may use.

    Args:
        model: the model.
        device: "cpu" or "cuda".
        precision: a precision of `load_upscaler`.
        threads: most threads of a computation on the CPU; a node with fewer cores uses fewer.
        most_pixels: largest upscaled image in pixels.

    Raises:
        UserError: if the model cannot be loaded, or is not the one that the server started with.
    """

    def __init__(self, model: ServedModel, device: str, precision: Precision, threads: int, most_pixels: int) -> None:
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
        self._most_pixels = most_pixels
        source = model.find_here()
        self._upscaler = BatchedUpscaler(load_upscaler(source, device=device, precision=precision))
        model.check(source)  # afterwards, so that what has been loaded is known
        self.scale = self._upscaler.scale
        """Factor by which height and width grow."""

    def do(self, job: Job) -> Upscaled | Refusal:
        """Upscale an image."""
        try:
            image = decode_image(job.content, self._most_pixels // self.scale**2)
            upscaler = self._upscaler if job.method is Method.MODEL else BicubicUpscaler(self.scale)
            enlarged = enlarge_image(upscaler, image)
            content = encode_image(enlarged, f".{job.format.value}", job.quality)
        except RejectedImageError as error:
            return self._refuse(error)
        except UserError as error:
            return Refusal(422, str(error))
        width, height = enlarged.size
        return Upscaled(content, width, height)

    def _refuse(self, error: RejectedImageError) -> Refusal:
        kind, expected = error.rejection.kind, ""
        if kind is RejectionKind.TOO_LARGE:
            most = f"{self._most_pixels / 1e6:g} megapixels"
            expected = f", expected at most {most} after it is enlarged (--max-megapixels)"
        return Refusal(_STATUS.get(kind, 400), f"the image {error}{expected}")
