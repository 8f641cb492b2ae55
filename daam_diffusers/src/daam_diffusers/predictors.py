"""What finds words in images without heat maps, to be judged beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from daam_diffusers.evaluation import Mask
from daam_diffusers.upsample import resize


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
