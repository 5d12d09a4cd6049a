"""All tiles of a patch set in two tensors, on a GPU or in the process's memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pipeline.data.patchset import PatchSet
from pipeline.data.random_numbers import Ints
from sr_model.pixels import Pixels


class HeldTiles:
    """Tiles of which crops are gathered with one operation for several micro-batches, on the device that holds them.

    Args:
        hr: (tiles, tile, tile, 3) uint8, contiguous.
        lr: (tiles, tile/scale, tile/scale, 3) uint8, contiguous and on the same device.
    """

    def __init__(self, hr: Tensor, lr: Tensor) -> None:
        self.hr, self.lr = hr, lr
        self.device = hr.device

    def first_pixels(self, tile: Ints, y: Ints, x: Ints) -> Ints:
        """Return where crops begin, as `gather` needs it.

        Args:
            tile: (n,) numbers of the tiles.
            y: (n,) origins of the crops within the tiles, in LR pixels.
            x: (n,) likewise.

        Returns:
            (2, n): numbers of the crops' first pixels, counted over all HR tiles and over all LR tiles.
        """
        side, small = self.hr.shape[1], self.lr.shape[1]
        scale = side // small
        return np.stack([(tile * side + y * scale) * side + x * scale, (tile * small + y) * small + x])

    def gather(self, first: Tensor, crop: int, pin: bool = False) -> tuple[Tensor, Tensor]:
        """Copy crops out of their tiles.

        Args:
            first: (2, n) int64 on this device, from `first_pixels`.
            crop: side of an HR crop; a multiple of the scale.
            pin: put the crops in page-locked memory, if the tiles are in the CPU's memory.

        Returns:
            HR (n, crop, crop, 3) and LR (n, crop/scale, crop/scale, 3) uint8 on this device.
        """
        small = crop * self.lr.shape[1] // self.hr.shape[1]
        return _gather(self.hr, first[0], crop, pin), _gather(self.lr, first[1], small, pin)


def _gather(tiles: Tensor, first: Tensor, side: int, pin: bool) -> Tensor:
    # A row of a crop is a run of bytes that may begin at any pixel, so the view has a row for each pixel.
    rows = tiles.as_strided((tiles.numel() // 3 - side + 1, 3 * side), (3, 1))
    down = torch.arange(0, side * tiles.shape[2], tiles.shape[2], device=tiles.device)
    index = (first[:, None] + down).flatten()
    crops = torch.empty((len(index), 3 * side), dtype=torch.uint8, device=tiles.device, pin_memory=pin)
    return torch.index_select(rows, 0, index, out=crops).view(-1, side, side, 3)


def held_bytes(patch_set: PatchSet) -> int:
    """Return the size of all tiles."""
    return patch_set.tiles * 3 * (patch_set.tile**2 + (patch_set.tile // patch_set.scale) ** 2)


def load_tiles(patch_set: PatchSet, parts: Iterable[tuple[Pixels, Pixels]], device: torch.device) -> HeldTiles:
    """Copy all tiles to a device, one part after another.

    Args:
        patch_set: the tiles' patch set.
        parts: HR and LR tiles, which together are all tiles in order.
        device: where to hold them.

    Raises:
        RuntimeError: if the device has too little memory.
    """
    hr, lr = (torch.empty(shape, dtype=torch.uint8, device=device) for shape in _shapes(patch_set).values())
    first = 0
    for part in parts:
        last = first + len(part[0])
        for held, pixels in zip((hr, lr), part, strict=True):
            held[first:last].copy_(torch.tensor(pixels))
        first = last
    return HeldTiles(hr, lr)


def _shapes(patch_set: PatchSet) -> dict[str, tuple[int, int, int, int]]:
    count, sides = patch_set.tiles, {"hr": patch_set.tile, "lr": patch_set.tile // patch_set.scale}
    return {name: (count, side, side, 3) for name, side in sides.items()}
