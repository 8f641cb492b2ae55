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
class FolderScores:
    """Scores of a folder.

    Attributes:
        images: how many images had masks that could be judged.
        masks: how many masks could be judged, at least one.
        baselines: mean IoU over all masks of `"whole_image"` and `"random_half"`.
        miou: mean IoU of the maps, by threshold, such as `"0.4"`.
        words: of each mask its `image`, its `word` and the IoU by threshold and of the baselines.
        problems: what is wrong with each file that could not be judged.
    """

    images: int
    masks: int
    baselines: dict[str, float]
    miou: dict[str, float]
    words: list[dict[str, Any]]
    problems: list[str]


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
    scores: list[dict[str, Any]] = []
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
    names = [name for name in scores[0] if name not in ("image", "word")]
    means = {name: float(np.mean([score[name] for score in scores])) for name in names}
    baselines = {name: means.pop(name) for name in ("whole_image", "random_half")}
    images = len({score["image"] for score in scores})
    return FolderScores(images, len(scores), baselines, means, scores, problems)


def _score(
    maps: HeatMaps, file: Path, folder: Path, thresholds: Sequence[float], rng: np.random.Generator
) -> dict[str, Any]:
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
    return {"image": str(file.parent.relative_to(folder)), "word": word, **scores}


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
