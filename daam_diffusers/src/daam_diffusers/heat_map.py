"""`HeatMap`: the attribution of one word, as numbers, mask and picture."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from PIL import Image

from daam_diffusers import video
from daam_diffusers.colors import blend
from daam_diffusers.evaluation import iou
from daam_diffusers.upsample import follow_edges, resize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from daam_diffusers.video import Frames

AXES = ("step", "layer", "head", "frame")
Threshold = float | Literal["otsu"]
ROUNDED = 1e-6  # share of its maximum below which a map's span is rounding


@dataclass(frozen=True, eq=False, repr=False)
class HeatMap:
    """The map of a word: where it was drawn, in an image or in the frames of a video.

    Attributes:
        text: the word, as written in the prompt.
        values: mean attention probabilities in [0, 1], float32 on the CPU, (*axes, H, W); H and W
            are those of the latents unless the map was upscaled, and so is the length of "frame".
        axes: names of the leading axes that were kept: `"step"`, `"layer"`, `"head"`; the last
            one of a video is `"frame"`.
        image_size: rows and columns of the generated image or video in pixels, (H, W).
        frames: how many frames the generated video has; None for an image.
    """

    text: str
    values: torch.Tensor
    axes: tuple[str, ...]
    image_size: tuple[int, int]
    frames: int | None = None

    def __repr__(self) -> str:
        height, width = self.values.shape[-2:]
        axes = zip(self.axes, self.values.shape, strict=False)
        kept = "".join(f"{axis}={length}, " for axis, length in axes)
        return f"HeatMap({self.text!r}, {kept}{height}×{width})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """`values`, for NumPy and what takes its arrays: `np.asarray(maps["dog"])`."""
        values: np.ndarray[Any, Any] = self.values.numpy()
        # NumPy's comparisons take None for float64.
        if copy is False and dtype is not None and np.dtype(dtype) != values.dtype:
            raise ValueError(f"values are float32, so {dtype} is a copy, which copy=False forbids")
        return values.astype(dtype or values.dtype, copy=bool(copy))

    def mean(self, keep: Collection[str] = ()) -> HeatMap:
        """The map averaged over the axes that were kept: values of (H, W), of a video (f, H, W).

        Args:
            keep: axes to leave as they are where the map has them, e.g. `("step",)`.

        Raises:
            ValueError: there is no such axis.
        """
        keep = (keep,) if isinstance(keep, str) else keep
        if unknown := set(keep) - set(AXES):
            raise ValueError(f"keep must be of {AXES}, got {sorted(map(str, unknown))}")
        left = tuple(axis for axis in self.axes if axis == "frame" or axis in keep)
        over = [i for i, axis in enumerate(self.axes) if axis not in left]
        return replace(self, values=self.values.mean(dim=over), axes=left) if over else self

    def upscale(
        self, size: tuple[int, int] | None = None, *, guide: Image.Image | None = None
    ) -> HeatMap:
        """The map resized bicubically, and clamped to [0, 1], which bicubic overshoots.

        A video's frames take the map of the latent frame that they were decoded from, unchanged:
        causal VAEs decode latent frame 0 to frame 0 and latent frame k ≥ 1 to the r frames
        1 + (k - 1)r to kr, where frames == 1 + r(f - 1) of f latent frames (Wan's 81 of 21: r is
        4). Other numbers of frames are shared evenly among the latent frames.

        Args:
            size: rows and columns, (H, W); by default the image's. Mind that `Image.size` is
                (W, H).
            guide: the generated image, whose edges the map then follows, by a guided filter over
                three cells each way (He et al., "Guided Image Filtering", 2013). Not for videos.

        Raises:
            ValueError: the size is not two whole numbers of at least 1; a guide of a video.
        """
        rows_columns = _rows_columns(self.image_size if size is None else size)
        values = resize(self.values, rows_columns)
        if guide is not None:
            if self.frames is not None:
                raise ValueError("a guide is for images, and this map is of a video: leave it out")
            (picture,) = video.pictures(guide, self.frames)
            pixels = picture.convert("RGB").resize(rows_columns[::-1], Image.Resampling.BICUBIC)
            colors = torch.from_numpy(np.array(pixels)).movedim(-1, 0) / 255
            cell = max(rows_columns[0] / self.values.shape[-2], 1)
            values = follow_edges(values, colors, radius=round(3 * cell))
        values = values.clamp(0, 1)
        if self.frames is None:
            return replace(self, values=values)
        order = video.latent_frames(self.frames, values.shape[-3])
        return replace(self, values=values[..., order, :, :])

    def normalized(self) -> HeatMap:
        """The map stretched to [0, 1] by its own minimum and maximum; a flat map becomes 0.

        All frames of a video are stretched alike: where the word is nowhere, a frame stays cold.
        """
        dim = (-2, -1) if self.frames is None else (-3, -2, -1)
        low = self.values.amin(dim=dim, keepdim=True)
        high = self.values.amax(dim=dim, keepdim=True)
        span = high - low
        flat = span <= ROUNDED * high
        # In place after the first operation: a video's map has hundreds of megabytes.
        values = (self.values - low).div_(span.masked_fill(flat, 1)).masked_fill_(flat, 0)
        return replace(self, values=values)

    def mask(
        self,
        threshold: Threshold = 0.4,
        size: tuple[int, int] | None = None,
        *,
        guide: Image.Image | None = None,
    ) -> torch.Tensor:
        """Pixels whose upscaled, min-max normalized value is at least `threshold`.

        Kept axes are averaged first. DAAM's evaluations (arXiv 2210.04885) use 0.3 to 0.5.

        Args:
            threshold: in [0, 1], or `"otsu"` for the one that divides the map's values best into
                low and high ones: the largest variance between the two classes, of 256 bins
                (Otsu, "A Threshold Selection Method from Gray-Level Histograms", 1979).
            size, guide: see `upscale`.

        Returns:
            bool, (H, W), of a video (F, H, W); by default of the image's or the video's size.

        Raises:
            ValueError: the threshold is not in [0, 1]; see also `upscale`.
        """
        if threshold != "otsu":
            _check_share("threshold", threshold)
        values = self.mean().upscale(size, guide=guide).normalized().values
        return values >= (_otsu(values) if threshold == "otsu" else threshold)

    def iou(
        self,
        mask: torch.Tensor | np.ndarray[Any, Any] | Image.Image | Sequence[Image.Image],
        threshold: Threshold = 0.4,
    ) -> float:
        """Intersection over union of `mask(threshold)` with a true mask.

        Args:
            mask: (H, W), of a video (F, H, W) or a picture a frame: bool, or nonzero where the
                object is, of integers, or of floats in [0, 1]. Its rows and columns set the
                resolution. `folder.read_mask` makes one of a picture's alpha or light half.
            threshold: see `mask`.

        Raises:
            ValueError: the mask has another number of dimensions or frames, or floats that are
                not in [0, 1].
        """
        if not isinstance(mask, torch.Tensor):
            stacked = np.stack([*map(np.array, mask)]) if isinstance(mask, Sequence) else mask
            mask = torch.from_numpy(np.array(stacked))
        wanted = "(H, W)" if self.frames is None else "(F, H, W)"
        if mask.ndim != wanted.count(",") + 1:
            raise ValueError(f"mask must be {wanted}, got shape {tuple(mask.shape)}")
        if mask.is_floating_point() and not ((mask >= 0) & (mask <= 1)).all():  # NaN too
            raise ValueError("a mask of floats must be in [0, 1], got others, negative or NaN")
        height, width = mask.shape[-2:]
        return iou(self.mask(threshold, (height, width)), mask != 0)

    @overload
    def overlay(self, image: Image.Image, *, opacity: float = 0.75) -> Image.Image: ...
    @overload
    def overlay(self, image: Frames, *, opacity: float = 0.75) -> list[Image.Image]: ...
    def overlay(
        self, image: Image.Image | Frames, *, opacity: float = 0.75
    ) -> Image.Image | list[Image.Image]:
        """The image under the normalized map: hot pixels colored, cold ones left as they are.

        Args:
            image: of any size and mode; the map is scaled to it. Of a video its frames: PIL
                images, or what pipelines return with `output_type` "np" or "pt", (F, H, W, 3) or
                (F, 3, H, W) in [0, 1].
            opacity: of the hottest pixel, in [0, 1].

        Returns:
            An RGB image of the same size; of a video one for each frame, all on one scale.

        Raises:
            ValueError: the opacity is not in [0, 1]; an image for a video or the reverse;
                another number of frames.
        """
        _check_share("opacity", opacity)
        pictures = video.pictures(image, self.frames)
        size = (pictures[0].height, pictures[0].width)
        maps = self.mean().upscale(size).normalized().values.reshape(-1, *size).numpy()
        pairs = zip(pictures, maps, strict=True)
        drawn = [blend(picture, heat, opacity) for picture, heat in pairs]
        return drawn[0] if self.frames is None else drawn

    def save(
        self,
        path: str | os.PathLike[str],
        frames: Image.Image | Frames,
        *,
        fps: float = 8,
        opacity: float = 0.75,
        steps: bool = False,
    ) -> Path:
        """Write the overlay to a file that is there in whole or not at all.

        Args:
            path: `dog.png` or the like; of a video `dog.webp` (animated), `dog.gif` or `dog.mp4`,
                which needs `daam-diffusers[video]`.
            frames: the image or the video's frames, see `overlay`.
            fps: frames a second of a video, above 0.
            opacity: see `overlay`.
            steps: animate an image's map over the denoising steps that were kept, all on one scale.

        Returns:
            The path written.

        Raises:
            ValueError: a suffix that cannot be written, fps that is no number above 0; steps that
                were not kept, or of a video; see also `overlay`.
            ImportError: MP4 without what it needs; the message is the pip line.
            FileNotFoundError: the folder does not exist.
        """
        if steps:
            if "step" not in self.axes or not isinstance(frames, Image.Image):
                raise ValueError(
                    'steps=True takes an image, and its map from trace(pipe, keep=("step",)); got '
                    f"axes {self.axes} and {type(frames).__name__}"
                )
            if Path(path).suffix.lower() not in (".webp", ".gif", ".mp4"):
                raise ValueError(f"steps are saved as .webp, .gif or .mp4, got {path}")
            count = self.values.shape[self.axes.index("step")]
            moving = replace(self.mean(("step",)), axes=("frame",), frames=count)
            return moving.save(path, [frames] * count, fps=fps, opacity=opacity)
        return video.save(path, self.overlay(frames, opacity=opacity), fps)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the map with a color bar of its probabilities; needs `daam-diffusers[plot]`.

        Of a video the mean of its frames.

        Args:
            ax: matplotlib axes; by default new ones.
        """
        pyplot = import_pyplot()
        if ax is None:
            _, ax = pyplot.subplots()
        values = self.values.reshape(-1, *self.values.shape[-2:]).mean(dim=0)
        drawn = ax.imshow(values.numpy(), cmap="inferno", interpolation="nearest")
        ax.set_title(self.text)
        ax.set_axis_off()
        ax.figure.colorbar(drawn, ax=ax, label="mean attention probability")
        return ax


def import_pyplot() -> Any:
    """matplotlib.pyplot, or an ImportError whose message is the pip line."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'plotting needs matplotlib: pip install "daam-diffusers[plot]"'
        ) from error
    return plt


def _otsu(values: torch.Tensor, bins: int = 256) -> float:
    counts = torch.histc(values, bins, 0, 1).double()
    levels = torch.arange(bins, dtype=torch.float64)
    low, sums = counts.cumsum(0), (counts * levels).cumsum(0)  # of values up to each bin
    high = low[-1] - low
    between = (sums / low - (sums[-1] - sums) / high) ** 2 * low * high
    return float(between.nan_to_num(0).argmax() + 1) / bins  # the upper edge of the low class


def _rows_columns(size: Any) -> tuple[int, int]:
    numbers = list(size) if isinstance(size, Iterable) else []
    whole = [int(n) for n in numbers if not isinstance(n, bool) and isinstance(n, Integral)]
    if len(numbers) != 2 or len(whole) != 2 or min(whole) < 1:
        raise ValueError(f"size must be two whole numbers >= 1, (rows, columns), got {size!r}")
    return whole[0], whole[1]


def _check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")
