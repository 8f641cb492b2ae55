"""The colors of heat, on the page and in pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

# Anchors at equal distances on the min-max scale, from cold to hot. CIE lightness rises from each
# to the next, so that the order of values survives a gray print and color blindness.
RAMP: tuple[tuple[int, int, int], ...] = (
    (29, 14, 72),
    (92, 24, 128),
    (165, 36, 136),
    (222, 73, 104),
    (250, 136, 60),
    (253, 196, 66),
    (252, 250, 148),
)


def blend(picture: Image.Image, heat: npt.NDArray[np.float32], opacity: float) -> Image.Image:
    """A picture under a map: the hotter a pixel, the more of the ramp's color it takes.

    Args:
        picture: of any mode.
        heat: (H, W) of the picture, in [0, 1].
        opacity: of the hottest pixel, in [0, 1].

    Returns:
        An RGB picture of the same size.
    """
    at = np.linspace(0, 1, len(RAMP))
    colors = np.stack([np.interp(heat, at, band) for band in np.transpose(RAMP)], axis=-1)
    alpha = opacity * heat[..., None].astype(np.float64)  # (H, W, 1)
    drawn = np.asarray(picture.convert("RGB")) * (1 - alpha) + colors * alpha
    return Image.fromarray(np.rint(drawn).astype(np.uint8))
