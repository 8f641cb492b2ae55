"""The paper's protocol over a folder: heat maps beside hand-drawn masks, mean IoU.

DAAM's COCO-Gen and Unreal-Gen sets (arXiv 2210.04885) keep, for each generated image, a mask
`{word}.gt.png` a word, whose alpha channel is the object. Here each image is a folder with such
masks and `heat_maps.safetensors` as `HeatMaps.save` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm.auto import tqdm

from daam_diffusers.evaluation import iou, random_half, whole_image
from daam_diffusers.maps import HeatMaps

MAPS = "heat_maps.safetensors"
MASK = ".gt.png"


@dataclass(frozen=True)
class WordScore:
    """One word of one image: its IoU at each threshold, and that of the baselines."""

    image: str
    word: str
    daam: tuple[float, ...]
    whole_image: float
    random_half: float


@dataclass(frozen=True)
class FolderScores:
    """Scores of a folder.

    Attributes:
        thresholds: on the min-max normalised maps.
        words: a score for every mask that could be judged.
        problems: what is wrong with each file that could not be.
    """

    thresholds: tuple[float, ...]
    words: tuple[WordScore, ...]
    problems: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """How many images had masks."""
        return len({score.image for score in self.words})

    @property
    def masks(self) -> int:
        """How many masks there were."""
        return len(self.words)

    @property
    def daam(self) -> tuple[tuple[float, float], ...]:
        """Threshold and mean IoU over all masks."""
        means = np.mean([score.daam for score in self.words], axis=0)
        return tuple(zip(self.thresholds, means.tolist(), strict=True))

    @property
    def whole_image(self) -> float:
        """Mean IoU of marking every pixel."""
        return float(np.mean([score.whole_image for score in self.words]))

    @property
    def random_half(self) -> float:
        """Mean IoU of marking half of the pixels at random."""
        return float(np.mean([score.random_half for score in self.words]))

    def to_json(self) -> dict[str, Any]:
        """Means and single scores, for a JSON file."""
        return {
            "images": self.images,
            "masks": self.masks,
            "miou": {f"{threshold:g}": mean for threshold, mean in self.daam},
            "baselines": {"whole_image": self.whole_image, "random_half": self.random_half},
            "words": [vars(score) for score in self.words],
            "problems": list(self.problems),
        }


def evaluate(folder: Path, thresholds: Sequence[float], *, seed: int = 0) -> FolderScores:
    """Mean IoU of the maps below a folder with the masks beside them.

    Args:
        folder: searched in depth for `heat_maps.safetensors`.
        thresholds: on min-max maps, in [0, 1].
        seed: of the random baseline.

    A file that is not what its name says, or a mask of a word that is not in its prompt, is left
    out and named in `problems`.

    Raises:
        ValueError: no maps, no masks beside them, or none that can be judged.
    """
    files = sorted(folder.rglob(MAPS))
    if not files:
        raise ValueError(f"no {MAPS} below {folder}")
    rng = np.random.default_rng(seed)
    scores: list[WordScore] = []
    problems: list[str] = []
    for path in tqdm(files, desc="evaluate", unit="image", leave=False):
        masks = sorted(path.parent.glob(f"*{MASK}"))
        try:
            maps = HeatMaps.load(path) if masks else None
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        for file in masks:
            assert maps is not None  # there are masks
            try:
                scores.append(_score(maps, file, folder, thresholds, rng))
            except (OSError, ValueError) as error:
                problems.append(str(error))
            except KeyError as error:
                problems.append(f"{file}: {error.args[0]}")
    if not scores and problems:
        others = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise ValueError(f"no mask can be judged: {problems[0]}{others}")
    if not scores:
        raise ValueError(f"no masks WORD{MASK} beside the {len(files)} {MAPS} below {folder}")
    return FolderScores(tuple(thresholds), tuple(scores), tuple(problems))


def _score(
    maps: HeatMaps, file: Path, folder: Path, thresholds: Sequence[float], rng: np.random.Generator
) -> WordScore:
    word = file.name.removesuffix(MASK)
    heat = maps[word]
    if maps.frames is not None:
        raise ValueError(f"{file}: the maps beside it are of a video, and a mask is of an image")
    true = read_mask(file)
    shape = (true.shape[0], true.shape[1])
    return WordScore(
        image=str(file.parent.relative_to(folder)),
        word=word,
        daam=tuple(iou(heat.mask(threshold, shape), true) for threshold in thresholds),
        whole_image=iou(whole_image(shape), true),
        random_half=iou(random_half(shape, rng), true),
    )


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """A mask from a picture: its alpha channel if it has one, else its light half; bool (H, W).

    Raises:
        ValueError: the file is no picture.
    """
    try:
        with Image.open(path) as image:
            has_alpha = "A" in image.getbands()
            channel = image.getchannel("A") if has_alpha else image.convert("L")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture: {error}") from error
    return np.asarray(channel) >= 128
