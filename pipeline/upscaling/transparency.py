"""Colours of transparent pixels, which nobody sees until an enlargement mixes them into visible ones."""

from __future__ import annotations

from pipeline.data.formats.raster import Samples


def cover_hidden_colours(image: Samples, alpha: Samples) -> Samples:
    """Give each pixel of opacity 0 the colour of the nearest pixel that is visible.

    Editors leave anything in transparent pixels, such as black or the erased background.

    Args:
        image: (H, W, C) uint8 or uint16.
        alpha: (H, W) of the same type.

    Returns:
        (H, W, C), which does not depend on the colours of pixels of opacity 0; all black if none is visible.
    """
    hidden = alpha == 0
    if not hidden.any():
        return image
    if hidden.all():
        return image * 0
    from scipy import ndimage  # takes time to import, and few images are transparent

    rows, columns = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    nearest: Samples = image[rows, columns]
    return nearest
