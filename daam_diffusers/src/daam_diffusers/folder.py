"""The paper's protocol over a folder: heat maps beside hand-drawn masks, mean IoU.

DAAM's COCO-Gen and Unreal-Gen sets (arXiv 2210.04885) keep, for each generated image, a mask
`{word}.gt.png` a word, whose alpha channel is the object. Here each image is a folder with such
masks and `heat_maps.safetensors` as `HeatMaps.save` writes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from daam_diffusers.coco import class_of
from daam_diffusers.evaluation import (
    MODES,
    Mask,
    Pair,
    Predictor,
    iou,
    labeled,
    random_half,
    whole_image,
)
from daam_diffusers.heat_map import Threshold
from daam_diffusers.linguistics import Mean
from daam_diffusers.maps import HeatMaps
from daam_diffusers.samples import IMAGE, MANIFEST, MAPS, VIDEO, find, read_picture

MASK = ".gt.png"
MASKS = "*.[gG][tT].[pP][nN][gG]"
KEPT = (MAPS, IMAGE, VIDEO, MASKS, MANIFEST)  # the files of a set
BASELINES = ("whole_image", "random_half")


@dataclass(frozen=True)
class Score:
    """Mean IoU of one method over one group of masks, and its 95% interval over images."""

    group: str  # "open": all; "coco80": those whose word is a COCO class; "word"; "class"
    name: str  # the word or class
    method: str  # a threshold of the maps, a predictor or a baseline
    mode: str  # of evaluation.MODES: which predicted mask a true one is held against
    images: int
    masks: int
    miou: float
    margin: float | None  # half of the interval; None: of a single image


@dataclass(frozen=True)
class FolderScores:
    """Scores of a folder.

    Attributes:
        images: how many images had masks that could be judged.
        masks: how many masks could be judged, at least one.
        baselines: mean IoU over all masks of `"whole_image"` and `"random_half"`.
        miou: mean IoU of the maps, by threshold, such as `"0.4"`, and of the predictors.
        words: of each mask its `image`, its `word` and the IoU by threshold and of the baselines.
        problems: what is wrong with each file that could not be judged.
        scores: all means with their intervals.
    """

    images: int
    masks: int
    baselines: dict[str, float]
    miou: dict[str, float]
    words: list[dict[str, Any]]
    problems: list[str]
    scores: list[Score]


def evaluate(
    folder: Path,
    thresholds: Sequence[Threshold],
    *,
    refined: bool = False,
    predictors: Mapping[str, Predictor] = MappingProxyType({}),
) -> FolderScores:
    """Mean IoU of the maps below a folder with the masks beside them.

    A mask is held against the maps of all words of its prompt, see `evaluation.MODES`. A file that
    is not what its name says, masks without maps, and a mask that is empty, of another aspect than
    its image, of a word that is not in its prompt or of one that has a mask already are left out
    and named in `problems`.

    Args:
        folder: searched in depth for `heat_maps.safetensors`, links to folders as well; hidden
            folders are left out.
        thresholds: on min-max maps, in [0, 1] or `"otsu"`.
        refined: judge `HeatMaps.refined()`.
        predictors: by name, judged on the `image.png` beside the maps.

    Raises:
        ValueError: no folder, no maps, no masks beside them, none that can be judged, or a
            predictor's name is that of a threshold, a baseline or an entry of `words`.
        ImportError: scipy is missing, of `daam-diffusers[evaluate]`.
    """
    names = {*map(str, thresholds), *BASELINES, "image", "word"}
    if taken := sorted(names & predictors.keys()):
        raise ValueError(f"predictors need other names than {', '.join(taken)}")
    files = find(folder)
    rng = np.random.default_rng(0)
    images = 0
    judged: list[dict[str, Any]] = []
    pairs: defaultdict[str, list[Pair]] = defaultdict(list)  # by method
    beside: defaultdict[Path, list[Path]] = defaultdict(list)
    for file in find(folder, MASKS):
        beside[file.parent].append(file)
    alone = beside.keys() - {file.parent for file in files}
    problems = [f"{parent} has masks and no {MAPS}" for parent in sorted(alone)]
    for path in tqdm(files, desc="evaluate", unit="image", leave=False):
        if path.parent not in beside:
            continue
        try:
            maps = _load(path, refined)
            picture = read_picture(path.parent / IMAGE).convert("RGB") if predictors else None
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        truths = _truths(maps, beside[path.parent], problems)
        if not truths:
            continue
        own = {word.casefold() for word in truths}
        others = [x for x in maps if x.casefold() not in own and any(map(str.isalnum, x))]
        words = [*truths, *others]
        for word, true in truths.items():
            size = (true.shape[0], true.shape[1])
            heats = [maps[x].mean().upscale(size).normalized() for x in words]
            guesses: dict[str, Sequence[Mask]] = {}
            guesses |= {str(t): [heat.mask(t, size) for heat in heats] for t in thresholds}
            if picture is not None:
                seen = picture.resize(size[::-1])
                guesses |= {name: predict(seen, words) for name, predict in predictors.items()}
            guesses["whole_image"] = [whole_image(size)] * len(words)
            guesses["random_half"] = [random_half(size, rng)] * len(words)
            judged.append({"image": str(path.parent.relative_to(folder)), "word": word})
            for method, of in guesses.items():
                if len(of) != len(words):
                    raise ValueError(f"{method}: {len(words)} words have {len(of)} mask(s)")
                ious = {other: iou(mask, true) for other, mask in zip(words, of, strict=True)}
                judged[-1][method] = ious[word]
                pairs[method] += [Pair(images, word, other, score) for other, score in ious.items()]
        images += 1
    if not images and problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise ValueError(f"no mask can be judged: {problems[0]}{more}")
    if not images:
        raise ValueError(f"no masks WORD{MASK} beside the {len(files)} {MAPS} below {folder}")
    scores = [score for method, of in pairs.items() for score in _scores(method, of)]
    means = {x.method: x.miou for x in scores if (x.group, x.mode) == ("open", "labeled")}
    baselines = {name: means.pop(name) for name in BASELINES}
    return FolderScores(images, len(judged), baselines, means, judged, problems, scores)


def _load(path: Path, refined: bool) -> HeatMaps:
    maps = HeatMaps.load(path)
    if maps.frames is not None:
        raise ValueError(f"{path} is of a video, and masks are of images")
    try:
        return maps.refined() if refined else maps
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _truths(
    maps: HeatMaps, files: Sequence[Path], problems: list[str]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Read an image's masks, by word; those that cannot be judged are added to `problems`."""
    truths: dict[str, npt.NDArray[np.bool_]] = {}
    places = set()
    for file in files:
        word = file.name[: -len(MASK)]
        try:
            place = maps.prompt.find(word)
            if place.columns in places:
                raise ValueError(f"{file}: another mask beside it is of the same word")
            truths[word] = _truth(maps.image_size, file)
            places.add(place.columns)
        except (OSError, ValueError) as error:
            problems.append(str(error))
        except KeyError as error:
            problems.append(f"{file}: {error.args[0]}")
    return truths


def _truth(size: tuple[int, int], file: Path) -> npt.NDArray[np.bool_]:
    true = read_mask(file)
    (height, width), (rows, columns) = size, true.shape
    if not true.any():
        raise ValueError(f"{file} is empty: neither its alpha nor its light marks an object")
    if abs(columns * height - rows * width) > (height + width) / 2:  # sides may be rounded
        raise ValueError(
            f"{file} has {rows}×{columns} pixels, which is another aspect than the image's, "
            f"{height}×{width}"
        )
    return true


def _scores(method: str, pairs: Sequence[Pair]) -> Iterator[Score]:
    of_coco = [x for x in pairs if class_of(x.true) and class_of(x.predicted)]
    modes = ["labeled"] if method in BASELINES else [*MODES]  # those look at no word
    groups = {
        (group, "", mode): MODES[mode](of)
        for group, of in (("open", pairs), ("coco80", of_coco))
        for mode in modes
    }
    for pair in labeled(pairs):
        for group, name in (("word", pair.true), ("class", class_of(pair.true))):
            if name:
                groups.setdefault((group, name, "labeled"), []).append(pair)
    for (group, name, mode), of in groups.items():
        images = groupby(sorted(of, key=attrgetter("image")), attrgetter("image"))
        mean = sum((Mean.of([pair.iou for pair in own]) for _, own in images), Mean())
        if of:
            margin = mean.margin if mean.images > 1 else None
            yield Score(group, name, method, mode, mean.images, mean.count, mean.value, margin)


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """A mask from a picture: where it is not wholly transparent, or else its brighter half.

    Transparency counts as in the paper's code: from an alpha of 1. A picture that has none is a
    mask by its light, from 128 of 255, or 32,768 of 65,535.

    Returns:
        bool, (H, W), as `HeatMap.iou` takes it.

    Raises:
        ValueError: the file is no picture, or has an alpha channel that is 0 nowhere.
    """
    picture = read_picture(path)
    if picture.has_transparency_data:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
        if alpha.all():
            raise ValueError(
                f"{path} has an alpha channel that marks every pixel: make transparent what is not "
                "the object, or save it without alpha to have its light taken"
            )
        return alpha > 0
    if picture.mode.startswith("I"):  # 16 bits, which "L" would clip
        return np.asarray(picture) >= 2**15
    return np.asarray(picture.convert("L")) >= 128
