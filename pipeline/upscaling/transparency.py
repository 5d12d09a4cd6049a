"""Colours of transparent pixels, which nobody sees until an enlargement mixes them into visible ones."""

from __future__ import annotations

from scipy import ndimage

from pipeline.data.formats.raster import Alpha
from sr_model.pixels import Pixels


def cover_hidden_colours(image: Pixels, alpha: Alpha) -> Pixels:
    """Give each pixel of opacity 0 the colour of the nearest pixel that is visible.

    Editors leave anything in transparent pixels, such as black or the erased background.

    Args:
        image: (H, W, C) uint8.
        alpha: (H, W) uint8.

    Returns:
        (H, W, C), which does not depend on the colours of pixels of opacity 0; all black if none is visible.
    """
    hidden = alpha == 0
    if not hidden.any():
        return image
    if hidden.all():
        return image * 0
    rows, columns = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    nearest: Pixels = image[rows, columns]
    return nearest
