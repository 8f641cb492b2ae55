"""The statistics of `linguistics` over a folder of generated images, and their tables.

Each image is a folder with `heat_maps.safetensors`, as `HeatMaps.save` writes it, and `image.png`.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm.auto import tqdm

from daam_diffusers import linguistics, report
from daam_diffusers.atomic import written_beside
from daam_diffusers.linguistics import Key, Mask, Mean, Statistics
from daam_diffusers.maps import HeatMaps
from daam_diffusers.prompt import Word

MAPS = "heat_maps.safetensors"

TABLES = {
    "intensity": "Thresholded area by part of speech",
    "relations": "Overlap of head and dependent",
    "cohyponyms": "Overlap of two nouns of known category",
    "adjectives": "Change where an adjective is exchanged",
}
COLUMNS = ("table", "row", "column", "mean", "margin", "count", "images")


@dataclass(frozen=True)
class Study:
    """Statistics of a folder.

    Attributes:
        statistics: see `linguistics.measure`, and `study` for the table `adjectives`.
        spacy: name and version of the spaCy model.
        threshold: on min-max maps.
        problems: what is wrong with each image that could not be measured.
    """

    statistics: Statistics
    spacy: str
    threshold: float
    problems: list[str]

    def tables(self) -> Iterator[tuple[str, dict[str, dict[str, Mean]]]]:
        """Each table's name, and its means by row and column.

        Rows come from high to low in their first column, those of one image last.
        """

        def order(row: tuple[str, dict[str, Mean]]) -> tuple[bool, float]:
            first = next(iter(row[1].values()))
            return first.images < 2, -first.value

        for name in TABLES:
            rows: defaultdict[str, dict[str, Mean]] = defaultdict(dict)
            for (table, row, column), mean in self.statistics.means.items():
                if table == name:
                    rows[row][column] = mean
            if rows:
                yield name, dict(sorted(rows.items(), key=order))

    def save(self, folder: Path) -> list[Path]:
        """Write `study.json`, `study.csv` and `study.html`; the folder is made if it is missing.

        JSON and CSV have an entry a mean; the margin, half of its interval, is empty for one image.
        """
        means = [
            (table, row, column, m.value, m.margin if m.images > 1 else None, m.count, m.images)
            for table, rows in self.tables()
            for row, cells in rows.items()
            for column, m in cells.items()
        ]
        described = {
            "spacy": self.spacy,
            "threshold": self.threshold,
            "counts": dict(self.statistics.counts),
            "problems": self.problems,
            "rows": [dict(zip(COLUMNS, mean, strict=True)) for mean in means],
        }
        table = io.StringIO()
        csv.writer(table).writerows([COLUMNS, *means])
        texts = {
            "study.json": json.dumps(described, indent=1) + "\n",
            "study.csv": table.getvalue(),
            "study.html": self.to_html(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with written_beside(folder / name) as beside:
                beside.write_bytes(text.encode("utf-8"))
        return [folder / name for name in texts]

    def to_html(self) -> str:
        """One self-contained page of the tables with bars, beside the paper's figures."""
        return report.page("study.html.j2", study=self, tables=list(self.tables()), titles=TABLES)


def study(
    folder: Path,
    model: str,
    *,
    threshold: float = 0.4,
    categories: Mapping[str, str] | None = None,
    processes: int = 1,
) -> Study:
    """Measure the images below a folder; see `linguistics.measure`.

    The table `adjectives` compares images of one seed whose prompts differ in one adjective alone,
    and whose provenance differs in nothing: how far image and maps change inside and outside the
    masks that its noun has in both. A file that cannot be measured is left out and named in
    `problems`.

    Args:
        folder: searched in depth for `heat_maps.safetensors`.
        model: a spaCy model's name or folder; it must parse and tag.
        threshold: on min-max maps, in [0, 1].
        categories: name of a noun to its category, for `cohyponyms`.
        processes: how many share the work; each loads the model.

    Raises:
        ImportError: spaCy is missing.
        ValueError: no maps, none that can be measured, or a model that spaCy does not find or
            that does not parse and tag.
    """
    files = sorted(folder.rglob(MAPS))
    if not files:
        raise ValueError(f"no {MAPS} below {folder}")
    meta = load_model(model).meta
    found = Statistics()
    problems: list[str] = []
    variants: defaultdict[Any, dict[str, Variant]] = defaultdict(dict)
    measure = partial(_measure, model=model, threshold=threshold, categories=categories or {})
    compare = partial(_compare, model=model, threshold=threshold)
    with _mapping(processes) as over:
        for part, own, wrong in tqdm(over(measure, files), "measure", len(files), leave=False):
            found = found.merge(part)
            problems += wrong
            for key, variant in own:
                variants[key].setdefault(variant.adjective, variant)
        groups = [[*group.values()] for group in variants.values() if len(group) > 1]
        for part, wrong in tqdm(over(compare, groups), "compare", len(groups), leave=False):
            found = found.merge(part)
            problems += wrong
    if not found.means:
        others = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise ValueError(f"nothing can be measured: {', '.join(problems[:1])}{others}")
    name = f"{meta['lang']}_{meta['name']} {meta['version']}"
    return Study(found, name, threshold, problems)


@cache
def load_model(name: str) -> Any:
    """A spaCy model that parses and tags, by its name or folder.

    Raises:
        ImportError: spaCy is missing.
        ValueError: spaCy does not find the model, or it does not parse and tag.
    """
    try:
        import spacy
    except ImportError as error:
        raise ImportError('the study needs spaCy: pip install "daam-diffusers[study]"') from error
    try:
        nlp = spacy.load(name)
    except OSError as error:
        raise ValueError(
            f"spaCy finds no model {name!r}: install one, e.g. python -m spacy download "
            "en_core_web_sm, or give the path of a model's folder"
        ) from error
    doc = nlp("a red house")
    if lacking := [kind for kind in ("DEP", "POS") if not doc.has_annotation(kind)]:
        raise ValueError(
            f"the spaCy model {name!r} gives no {' and no '.join(lacking)}: choose one with a "
            "parser and a tagger, e.g. en_core_web_sm"
        )
    return nlp


def read_categories(path: Path) -> dict[str, str]:
    """A table of nouns and categories from a JSON file, for `study`.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if isinstance(found, dict) and all(isinstance(x, str) for x in found.values()):
        return found
    raise ValueError(f'{path} must be JSON of nouns and categories, {{"zebra": "animal"}}')


class Variant(NamedTuple):
    """An image that may be compared with those of other adjectives, and where the two words are."""

    path: Path
    adjective: str
    adjective_index: int
    noun_index: int


def _measure(
    path: Path, *, model: str, threshold: float, categories: Mapping[str, str]
) -> tuple[Statistics, list[tuple[Any, Variant]], list[str]]:
    """Statistics of one image, what it may be compared with by, and what is wrong with it."""
    try:
        maps = HeatMaps.load(path)
        if not maps.prompt.text:
            raise ValueError(f"{path}: its prompt is not known")
        doc = load_model(model)(maps.prompt.text)
        mask = partial(_mask, maps, threshold)
        found = linguistics.measure(doc, maps.prompt, mask, categories)
    except (OSError, ValueError) as error:
        return Statistics(), [], [str(error)]
    if not maps.provenance.get("seed", "").isdecimal():  # of a batch it names all seeds
        return found, [], []
    same = json.dumps([dict(maps.provenance), maps.image_size], sort_keys=True)
    variants = [
        ((frame, noun, same), Variant(path, doc[adjective].lower_, adjective, noun))
        for frame, adjective, noun in linguistics.adjectives(doc)
    ]
    return found, variants, []


def _compare(
    group: Sequence[Variant], *, model: str, threshold: float
) -> tuple[Statistics, list[str]]:
    """The first image of a group against each of the others."""
    first, *others = group
    values: defaultdict[Key, list[float]] = defaultdict(list)
    try:
        before = _drawn(first, model)
        for other in others:
            for row, change in _changes(before, _drawn(other, model), first, threshold):
                for column, value in zip(("inside", "outside"), change, strict=True):
                    values["adjectives", row, column].append(value)
    except (OSError, ValueError) as error:
        return Statistics(), [str(error)]
    return Statistics.of(values, compared=len(others)), []


Drawn = tuple[HeatMaps, list[Word | None], npt.NDArray[np.float32] | None]


def _drawn(variant: Variant, model: str) -> Drawn:
    """Maps, words and image, (H, W, 3) in [0, 1], if it is there."""
    maps = HeatMaps.load(variant.path)
    words = linguistics.align(load_model(model)(maps.prompt.text), maps.prompt)
    picture = variant.path.with_name("image.png")
    if not picture.is_file():
        return maps, words, None
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)
    if pixels.shape[:2] != maps.image_size:
        raise ValueError(
            f"{picture} has {pixels.shape[0]}×{pixels.shape[1]} pixels, and the maps beside it are "
            f"of an image of {maps.image_size[0]}×{maps.image_size[1]}"
        )
    return maps, words, pixels


def _changes(
    before: Drawn, after: Drawn, place: Variant, threshold: float
) -> Iterator[tuple[str, tuple[float, float]]]:
    """What of it, and how much it changes inside and outside the noun's masks of both images."""
    nouns = [(maps, words[place.noun_index]) for maps, words, _ in (before, after)]
    masks = [_mask(maps, threshold, noun) for maps, noun in nouns if noun is not None]
    if len(masks) < 2:
        return
    inside = masks[0] | masks[1]
    if before[2] is not None and after[2] is not None:
        yield "image", linguistics.change(before[2], after[2], inside)
    names = {place.adjective_index: "the adjective's map", place.noun_index: "the noun's map"}
    for index, (one, other) in enumerate(zip(before[1], after[1], strict=True)):
        if one is not None and other is not None:
            maps = _normalized(before[0], one), _normalized(after[0], other)
            yield names.get(index, "other words' maps"), linguistics.change(*maps, inside)


def _mask(maps: HeatMaps, threshold: float, word: Word) -> Mask:
    mask: Mask = maps.combine(word).mask(threshold).numpy()
    return mask


def _normalized(maps: HeatMaps, word: Word) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = (
        maps.combine(word).mean().upscale().normalized().values.numpy()
    )
    return values


@contextmanager
def _mapping(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` in this process, or over several."""
    if processes == 1:
        yield map
        return
    # Spawned: a process that torch has run threads in must not be forked.
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield partial(pool.map, chunksize=8)
