"""The paper's protocol over a folder: heat maps beside hand-drawn masks, mean IoU.

DAAM's COCO-Gen and Unreal-Gen sets (arXiv 2210.04885) keep, for each generated image, a mask
`{word}.gt.png` a word, whose alpha channel is the object. Here each image is a folder with such
masks and `heat_maps.safetensors` as `HeatMaps.save` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
BASELINES = ("whole_image", "random_half")


@dataclass(frozen=True)
class WordScore:
    """One word of one image: its IoU by threshold, such as `"0.4"`, and by name of baseline."""

    image: str
    word: str
    iou: Mapping[str, float]


@dataclass(frozen=True)
class FolderScores:
    """Scores of a folder.

    Attributes:
        words: a score for every mask that could be judged, at least one.
        problems: what is wrong with each file that could not be.
    """

    words: tuple[WordScore, ...]
    problems: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """How many images had masks that could be judged."""
        return len({score.image for score in self.words})

    @property
    def miou(self) -> dict[str, float]:
        """Mean IoU over all masks, by threshold, and of the baselines, by name."""
        names = self.words[0].iou
        return {name: float(np.mean([score.iou[name] for score in self.words])) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Means and single scores, for a JSON file."""
        means = self.miou
        return {
            "images": self.images,
            "masks": len(self.words),
            "baselines": {name: means.pop(name) for name in BASELINES},
            "miou": means,
            "words": [{"image": x.image, "word": x.word, **x.iou} for x in self.words],
            "problems": list(self.problems),
        }


def evaluate(folder: Path, thresholds: Sequence[float]) -> FolderScores:
    """Mean IoU of the maps below a folder with the masks beside them.

    A file that is not what its name says, masks without maps, and a mask that is empty, of another
    aspect than its image or of a word that is not in its prompt are left out and named in
    `problems`.

    Args:
        folder: searched in depth for `heat_maps.safetensors`.
        thresholds: on min-max maps, in [0, 1].

    Raises:
        ValueError: no maps, no masks beside them, or none that can be judged.
    """
    files = sorted(folder.rglob(MAPS))
    if not files:
        raise ValueError(f"no {MAPS} below {folder}")
    rng = np.random.default_rng(0)
    scores: list[WordScore] = []
    alone = {file.parent for file in folder.rglob(f"*{MASK}")} - {file.parent for file in files}
    problems = [f"{parent} has masks and no {MAPS}" for parent in sorted(alone)]
    for path in tqdm(files, desc="evaluate", unit="image", leave=False):
        maps = None
        for file in sorted(path.parent.glob(f"*{MASK}")):
            try:
                maps = HeatMaps.load(path) if maps is None else maps
                scores.append(_score(maps, file, folder, thresholds, rng))
            except (OSError, ValueError) as error:
                problems.append(str(error))
            except KeyError as error:
                problems.append(f"{file}: {error.args[0]}")
            if maps is None:
                break  # the other masks would only say it again
    if not scores and problems:
        others = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise ValueError(f"no mask can be judged: {problems[0]}{others}")
    if not scores:
        raise ValueError(f"no masks WORD{MASK} beside the {len(files)} {MAPS} below {folder}")
    return FolderScores(tuple(scores), tuple(problems))


def _score(
    maps: HeatMaps, file: Path, folder: Path, thresholds: Sequence[float], rng: np.random.Generator
) -> WordScore:
    word = file.name.removesuffix(MASK)
    heat = maps[word]
    if maps.frames is not None:
        raise ValueError(f"{file}: the maps beside it are of a video, and a mask is of an image")
    true = read_mask(file)
    shape = rows, columns = (true.shape[0], true.shape[1])
    if not true.any():
        raise ValueError(f"{file} is empty: neither its alpha nor its light marks an object")
    height, width = maps.image_size
    if abs(columns * height - rows * width) > (height + width) / 2:  # sides may be rounded
        raise ValueError(
            f"{file} has {rows}×{columns} pixels, which is another aspect than the image's, "
            f"{height}×{width}"
        )
    scores = {f"{threshold:g}": iou(heat.mask(threshold, shape), true) for threshold in thresholds}
    scores["whole_image"] = iou(whole_image(shape), true)
    scores["random_half"] = iou(random_half(shape, rng), true)
    return WordScore(str(file.parent.relative_to(folder)), word, scores)


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """A mask from a picture: its alpha channel if it has one, else its light, where at least 128.

    Returns:
        bool, (H, W), as `HeatMap.iou` takes it.

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
