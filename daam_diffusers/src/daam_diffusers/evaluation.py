"""How well masks agree: intersection over union, its mean, and the plain baselines.

DAAM is judged by segmentation (arXiv 2210.04885): a word's map, thresholded, against
the object's true mask. A score means little without what it costs nothing to reach, so the
baselines stand beside it: the whole image, and half of the pixels at random.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

Mask = torch.Tensor | npt.NDArray[np.bool_]


def iou(predicted: Mask, true: Mask) -> float:
    """Intersection over union of two masks of one shape; of two empty masks, 1.

    Args:
        predicted: bool, any shape.
        true: bool, the same shape.

    Raises:
        TypeError: a mask is not boolean (a map of values wants a threshold first).
        ValueError: the shapes differ.
    """
    a, b = _boolean(predicted), _boolean(true)
    if a.shape != b.shape:
        raise ValueError(f"masks must have one shape, got {a.shape} and {b.shape}")
    union = int(np.count_nonzero(a | b))
    return 1.0 if union == 0 else int(np.count_nonzero(a & b)) / union


def mean_iou(pairs: Iterable[tuple[Mask, Mask]]) -> float:
    """Mean of `iou` over pairs of a predicted and a true mask.

    Raises:
        ValueError: there are no pairs.
    """
    scores = [iou(predicted, true) for predicted, true in pairs]
    if not scores:
        raise ValueError("no pairs of masks: their mean IoU does not exist")
    return sum(scores) / len(scores)


def whole_image(shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The baseline that marks every pixel: bool, (H, W)."""
    return np.ones(shape, dtype=bool)


def random_half(shape: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """The baseline that marks each pixel with probability ½: bool, (H, W)."""
    return rng.random(shape) < 0.5


def _boolean(mask: Mask) -> npt.NDArray[np.bool_]:
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(
            f"masks must be boolean, got {array.dtype}; compare with a threshold, or with 0, first"
        )
    return array
