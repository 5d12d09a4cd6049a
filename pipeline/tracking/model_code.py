"""The code of a logged model: MLflow copies this file into the model, beside `sr_model` and the weights.

It runs where the pipeline is not installed, so it imports nothing of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors.torch
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from sr_model.networks import from_weights
from sr_model.noise import beside_noise
from sr_model.pixels import to_eight_bit, to_input, to_pixels, to_tensor
from sr_model.tiling import tiles


class SuperResolutionModel(PythonModel):  # type: ignore[misc]
    """A network that enlarges batches of images, on the GPU if there is one."""

    def load_context(self, context: Any) -> None:
        """Load the weights of the model's folder."""
        net = from_weights(safetensors.torch.load_file(context.artifacts["weights"]))
        self._net = net.to("cuda" if torch.cuda.is_available() else "cpu")

    # MLflow warns about any other annotation of the input; the model's signature says more.
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> np.ndarray:
        """Enlarge images.

        Args:
            context: the context of `load_context`, which is not used.
            model_input: (n, h, w, 3) uint8, sRGB with values in 0..255.
            params: not used.

        Returns:
            (n, s*h, s*w, 3) uint8 for a network of scale s.
        """
        return np.stack([self._enlarge(image) for image in model_input])

    def _enlarge(self, image: Any) -> Any:
        lr = to_tensor(image)
        _, height, width = lr.shape
        net, scale = self._net, self._net.scale
        device, seed = next(net.parameters()).device, net.sampling.seed if net.sampling else 0
        sr = torch.empty(3, scale * height, scale * width, dtype=torch.uint8)

        def read(rows: slice, columns: slice) -> torch.Tensor:
            return beside_noise(to_input(lr[:, rows, columns].to(device)), seed, net.noise_channels, rows, columns)

        for top, left, part in tiles(net, height, width, read):
            pixels = to_eight_bit(part[0])
            sr[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
        return to_pixels(sr)


set_model(SuperResolutionModel())
