"""Videos: frames as pictures, the latent frame that each was decoded from, files that play.

No torch is imported: the report page, which knows arrays only, uses this module too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from daam_diffusers.atomic import written_beside

if TYPE_CHECKING:
    import torch

    Frames = Sequence[Image.Image] | Sequence[npt.NDArray[Any]] | npt.NDArray[Any] | torch.Tensor


def latent_frames(frames: int, latent: int) -> list[int]:
    """The latent frame that each frame of a video was decoded from, see `HeatMap.upscale`.

    Where both rules fit (16 frames of 4), the even ratio counts: VAEs compress by 4, 6 or 8.

    >>> latent_frames(9, 3)
    [0, 1, 1, 1, 1, 2, 2, 2, 2]
    >>> latent_frames(8, 4)
    [0, 0, 1, 1, 2, 2, 3, 3]
    """
    ratio, rest = divmod(frames - 1, latent - 1) if latent > 1 else (0, 0)
    if ratio and not rest and (ratio % 2 == 0 or frames % latent):
        return [-(-frame // ratio) for frame in range(frames)]
    return [frame * latent // frames for frame in range(frames)]


def pictures(given: Image.Image | Frames, frames: int | None) -> list[Image.Image]:
    """Turn what a pipeline returned into pictures: one for an image, RGB of one size for a video.

    Args:
        given: for an image a PIL image; for a video PIL images, or an array or a tensor of
            (F, H, W, 3) or (F, 3, H, W), uint8 or floats in [0, 1].
        frames: how many frames the map has, None for the map of an image.

    Raises:
        ValueError: an image for a video or the reverse, a batch of videos, frames of several
            sizes or none, another number of frames, floats that are not in [0, 1].
    """
    if frames is None:
        if isinstance(given, Image.Image):
            return [given]
        raise ValueError(f"the map is of an image, got {type(given).__name__}: give one PIL image")
    wanted = f"the map is of a video of {frames} frames"
    if isinstance(given, Image.Image):
        raise ValueError(f"{wanted}, got one image: give the frames, e.g. pipe(…).frames[0]")
    if isinstance(given, Sequence) and all(isinstance(frame, Image.Image) for frame in given):
        found = [frame.convert("RGB") for frame in given if isinstance(frame, Image.Image)]
    else:
        found = [Image.fromarray(frame) for frame in _bytes(given)]
    if len(found) != frames:
        raise ValueError(f"{wanted}, got {len(found)}: give all that the pipeline returned")
    if len(sizes := {frame.size for frame in found}) > 1:
        raise ValueError(f"frames must be of one size (width, height), got {sorted(sizes)}")
    return found


def _bytes(frames: Any) -> npt.NDArray[np.uint8]:
    """(F, H, W, 3) uint8 of arrays or tensors, as pipelines make pictures of their own floats."""
    if hasattr(frames, "detach"):  # a tensor; bfloat16 is unknown to NumPy
        frames = frames.detach().cpu()
        frames = frames.float() if frames.is_floating_point() else frames
    array = np.asarray(frames)
    if array.ndim == 4 and array.shape[1] == 3 != array.shape[-1]:
        array = np.moveaxis(array, 1, -1)
    if array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise ValueError(
            "a video's frames must be PIL images or (F, H, W, 3) or (F, 3, H, W), got "
            f"shape {array.shape}; of a batch, give one video: pipe(…).frames[0]"
        )
    if array.dtype == np.uint8:
        return array
    if not (array.min() >= 0 and array.max() <= 1):  # so that NaN is refused too
        raise ValueError(
            f"frames of {array.dtype} must be in [0, 1], got {array.min():g} to {array.max():g}"
        )
    return np.asarray(np.rint(array * 255), dtype=np.uint8)


def check_fps(fps: Any) -> None:
    """Refuse frames a second that are not a finite number above 0.

    Raises:
        ValueError: what was given.
    """
    if isinstance(fps, bool) or not isinstance(fps, Real) or not 0 < float(fps) < math.inf:
        raise ValueError(f"fps must be a number above 0, got {fps!r}")


def save(
    path: str | os.PathLike[str], drawn: Image.Image | Sequence[Image.Image], fps: float
) -> Path:
    """Write a picture; or a video as animated WebP or GIF or as MP4, by the suffix.

    Raises:
        ValueError: another suffix, or fps that is no number above 0.
        ImportError: MP4 without imageio and imageio-ffmpeg; the message is the pip line.
    """
    suffix = Path(path).suffix.lower()
    if isinstance(drawn, Image.Image):
        if Image.registered_extensions().get(suffix) not in Image.SAVE:
            raise ValueError(f"an image is saved as .png or the like, got {path}")
        with written_beside(path) as beside:
            drawn.save(beside)
        return Path(path)
    check_fps(fps)
    if suffix not in (".webp", ".gif", ".mp4"):
        raise ValueError(f"a video is saved as .webp, .gif or .mp4, got {path}")
    if suffix == ".mp4" and not (find_spec("imageio") and find_spec("imageio_ffmpeg")):
        raise ImportError(
            'MP4 needs imageio and imageio-ffmpeg: pip install "daam-diffusers[video]"; '
            ".webp and .gif need neither"
        )
    with written_beside(path) as beside:
        if suffix == ".mp4":
            from diffusers.utils import export_to_video

            export_to_video(list(drawn), str(beside), fps=fps)
        else:
            first, *rest = drawn
            duration = round(1000 / fps)  # milliseconds
            first.save(beside, save_all=True, append_images=rest, duration=duration, loop=0)
    return Path(path)
