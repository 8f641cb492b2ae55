"""`HeatMap`: the attribution of one word, as numbers, mask and picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from daam_diffusers.colours import blend
from daam_diffusers.evaluation import iou

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Where a word was drawn.

    Attributes:
        text: the word, as written in the prompt.
        values: mean attention probabilities in [0, 1], float32 on the CPU, (*axes, H, W); H and W
            are those of the latents unless the map was upscaled.
        axes: names of the leading axes that were kept: `"step"`, `"layer"`, `"head"`.
        image_size: rows and columns of the generated image in pixels, (H, W).
    """

    text: str
    values: torch.Tensor
    axes: tuple[str, ...]
    image_size: tuple[int, int]

    def mean(self) -> HeatMap:
        """The map averaged over the axes that were kept: values of (H, W)."""
        if not self.axes:
            return self
        return replace(self, values=self.values.flatten(0, -3).mean(dim=0), axes=())

    def upscale(self, size: tuple[int, int] | None = None) -> HeatMap:
        """The map resized bicubically, and clamped to [0, 1], which bicubic overshoots.

        Args:
            size: rows and columns, (H, W); by default the image's. Mind that `Image.size` is
                (W, H).
        """
        height, width = size or self.image_size
        if height < 1 or width < 1:
            raise ValueError(f"size must be (rows, columns) of at least 1, got {size!r}")
        if self.values.shape[-2:] == (height, width):
            return self
        leading = self.values.shape[:-2]
        flat = self.values.reshape(1, -1, *self.values.shape[-2:])  # (1, axes, h, w)
        scaled = F.interpolate(flat, (height, width), mode="bicubic", align_corners=False)
        return replace(self, values=scaled.clamp(0, 1).reshape(*leading, height, width))

    def normalized(self) -> HeatMap:
        """The map stretched to [0, 1] by its own minimum and maximum; a flat map becomes 0."""
        low = self.values.amin(dim=(-2, -1), keepdim=True)
        span = self.values.amax(dim=(-2, -1), keepdim=True) - low
        flat = span <= 0
        return replace(
            self, values=((self.values - low) / span.masked_fill(flat, 1)).masked_fill(flat, 0)
        )

    def mask(self, threshold: float = 0.4, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Pixels whose upscaled, min-max normalised value is at least `threshold`.

        Kept axes are averaged first. DAAM's evaluations (arXiv 2210.04885) use 0.3 to 0.5.

        Returns:
            bool, (H, W), by default of the image's size.

        Raises:
            ValueError: the threshold is not in [0, 1].
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold!r}")
        return self.mean().upscale(size).normalized().values >= threshold

    def iou(
        self, mask: torch.Tensor | np.ndarray[Any, Any] | Image.Image, threshold: float = 0.4
    ) -> float:
        """Intersection over union of `mask(threshold)` with a true mask.

        Args:
            mask: (H, W), bool or non-zero where the object is; its size sets the resolution.
            threshold: see `mask`.

        Raises:
            ValueError: the mask is not two-dimensional.
        """
        true = mask if isinstance(mask, torch.Tensor) else torch.from_numpy(np.array(mask))
        if true.ndim != 2:
            raise ValueError(f"mask must be (H, W), got shape {tuple(true.shape)}")
        return iou(self.mask(threshold, (true.shape[0], true.shape[1])), true != 0)

    def overlay(self, image: Image.Image, *, opacity: float = 0.75) -> Image.Image:
        """The image under the normalised map: hot pixels coloured, cold ones left as they are.

        Args:
            image: of any size and mode; the map is scaled to it.
            opacity: of the hottest pixel, in [0, 1].

        Returns:
            An RGB image of the same size.

        Raises:
            ValueError: the opacity is not in [0, 1].
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity must be in [0, 1], got {opacity!r}")
        size = (image.height, image.width)
        heat = self.mean().upscale(size).normalized().values.numpy()
        return Image.fromarray(blend(np.asarray(image.convert("RGB")), heat, opacity))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the map with a colour bar of its probabilities; needs `daam-diffusers[plot]`.

        Args:
            ax: matplotlib axes; by default new ones.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                'plotting needs matplotlib: pip install "daam-diffusers[plot]"'
            ) from error
        if ax is None:
            _, ax = plt.subplots()
        drawn = ax.imshow(self.mean().values.numpy(), cmap="inferno", interpolation="nearest")
        ax.set_title(self.text)
        ax.set_axis_off()
        ax.figure.colorbar(drawn, ax=ax, label="mean attention probability")
        return ax
