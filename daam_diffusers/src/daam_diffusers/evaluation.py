"""Agreement of masks: intersection over union, its mean, and the plain baselines.

DAAM is judged by segmentation (arXiv 2210.04885): a word's map, thresholded, against
the object's true mask. A score means little without what it costs nothing to reach, so the
baselines stand beside it: the whole image, and half of the pixels at random.

Which predicted mask a true one is held against is a question of its own, and the paper's code has
three answers: that of the same word, the best of the image, or that of the word that the true
mask's word is assigned to, one to one over all images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from daam_diffusers.upsample import resize

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


class Pair(NamedTuple):
    """A true mask beside a predicted one of the same image: its number, their words, their IoU."""

    image: int
    true: str
    predicted: str
    iou: float


def labeled(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs of one word: a word's prediction is held against the word's own mask."""
    return [pair for pair in pairs if pair.true == pair.predicted]


def best(pairs: Sequence[Pair]) -> list[Pair]:
    """The pair with the highest IoU for each true mask, whatever was predicted there."""
    ordered = sorted(pairs, key=lambda pair: pair.iou)
    return list({(pair.image, pair.true): pair for pair in ordered}.values())


def hungarian(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose words are assigned to each other, so that the sum of their IoU is largest.

    Each true word has at most one predicted word in all images, and the reverse: the score of a
    method whose labels have no meaning. Needs `daam-diffusers[evaluate]`.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        message = 'assignment needs scipy: pip install "daam-diffusers[evaluate]"'
        raise ImportError(message) from error
    rows = {word: i for i, word in enumerate(dict.fromkeys(pair.true for pair in pairs))}
    columns = {word: i for i, word in enumerate(dict.fromkeys(pair.predicted for pair in pairs))}
    sums = np.zeros((len(rows), len(columns)))
    for pair in pairs:
        sums[rows[pair.true], columns[pair.predicted]] += pair.iou
    chosen = set(zip(*linear_sum_assignment(sums, maximize=True), strict=True))
    return [pair for pair in pairs if (rows[pair.true], columns[pair.predicted]) in chosen]


MODES = {"labeled": labeled, "best": best, "hungarian": hungarian}


def whole_image(shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The baseline that marks every pixel: bool, (H, W)."""
    return np.ones(shape, dtype=bool)


def random_half(shape: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """The baseline that marks each pixel with probability ½: bool, (H, W)."""
    return rng.random(shape) < 0.5


class Predictor(Protocol):
    """Segments an image by words."""

    def __call__(self, image: Image.Image, words: Sequence[str]) -> Sequence[Mask]:
        """A mask a word, in their order: bool, (H, W) as the image; empty of what is not there."""
        ...


class ClipSeg:
    """CLIPSeg (Lüddecke and Ecker, arXiv 2112.10003) as a predictor.

    Args:
        model: a `CLIPSegForImageSegmentation` of transformers.
        processor: its `CLIPSegProcessor`.
        threshold: on a pixel's probability.
    """

    def __init__(self, model: Any, processor: Any, threshold: float = 0.5) -> None:
        self.model, self.processor, self.threshold = model.eval(), processor, threshold

    @torch.inference_mode()
    def __call__(self, image: Image.Image, words: Sequence[str]) -> Sequence[Mask]:
        """See `Predictor`."""
        pictures = [image.convert("RGB")] * len(words)
        texts = {"padding": True, "truncation": True, "return_tensors": "pt"}
        inputs = self.processor(text=list(words), images=pictures, **texts).to(self.model.device)
        logits = self.model(**inputs).logits
        logits = logits.reshape(len(words), *logits.shape[-2:])  # of one word, it may be (h, w)
        values = resize(logits.float(), (image.height, image.width)).sigmoid()
        return list((values >= self.threshold).cpu())


def _boolean(mask: Mask) -> npt.NDArray[np.bool_]:
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(
            f"masks must be boolean, got {array.dtype}; compare with a threshold, or with 0, first"
        )
    return array
