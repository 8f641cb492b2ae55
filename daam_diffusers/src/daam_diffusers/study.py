"""The statistics of `linguistics` over a folder of generated images, and their tables.

Each image is a folder with `heat_maps.safetensors`, as `HeatMaps.save` writes it, and `image.png`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from daam_diffusers.linguistics import Key, Mask, Statistics
from daam_diffusers.maps import HeatMaps
from daam_diffusers.prompt import Word

MAPS = "heat_maps.safetensors"
_CHUNK = 16  # images that a process measures at once

TABLES = {
    "intensity": "Thresholded area by part of speech",
    "relations": "Overlap of head and dependent",
    "cohyponyms": "Overlap of two nouns of known category",
    "adjectives": "Change where an adjective is exchanged",
}


def _reference() -> dict[Key, float]:
    areas = {
        "PUNCT": 0.4465, "CCONJ": 0.3687, "ADP": 0.3188, "VERB": 0.2969, "ADV": 0.2925,
        "ADJ": 0.2886, "NOUN": 0.2879, "PRON": 0.2788, "DET": 0.1942, "NUM": 0.1585,
    }  # fmt: skip
    overlaps = {  # IoU, IoD, IoH
        "compound": (0.334, 0.591, 0.500), "conj:and": (0.284, 0.555, 0.396),
        "amod": (0.147, 0.451, 0.191), "nmod:of": (0.087, 0.129, 0.220),
        "obj": (0.066, 0.106, 0.364), "acl": (0.065, 0.287, 0.111),
        "nsubj": (0.050, 0.107, 0.227), "case": (0.038, 0.181, 0.059),
        "det": (0.004, 0.130, 0.007), "punct": (0.001, 0.024, 0.001),
    }  # fmt: skip
    found: dict[Key, float] = {("intensity", tag, "area"): x for tag, x in areas.items()}
    for name, values in overlaps.items():
        for column, value in zip(("IoU", "IoD", "IoH"), values, strict=True):
            found["relations", name, column] = value
    return found


REFERENCE = _reference()
"""What others report: parts of speech in version 1 of the paper, threshold 0.4; relations in
castorini/daam's notebooks/1-visuosyntactic-analyses.ipynb, where raw maps are cut at 0.15."""


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

    def rows(self) -> list[dict[str, Any]]:
        """A row a mean: its place, value, 95% interval, what it is over, reference and sums.

        Tables come in the order of `TABLES`, rows from high to low in their first column. What
        does not exist, such as the interval of one image, is None.
        """
        means = self.statistics.means
        first: dict[tuple[str, str], float] = {}
        for (table, row, _), mean in means.items():
            first.setdefault((table, row), mean.value)
        order = [*TABLES]
        keys = sorted(means, key=lambda key: (order.index(key[0]), -first[key[:2]], key[1]))
        return [
            {
                **dict(zip(("table", "row", "column"), key, strict=True)),
                "mean": means[key].value,
                "low": _known(means[key].value - means[key].margin),
                "high": _known(means[key].value + means[key].margin),
                "reference": REFERENCE.get(key),
                **asdict(means[key]),
            }
            for key in keys
        ]

    def tables(self) -> Iterator[tuple[str, list[str], dict[str, dict[str, dict[str, Any]]]]]:
        """Name, columns, and by row and column the entries of `rows`, a table at a time."""
        rows = self.rows()
        for table in TABLES:
            own = [row for row in rows if row["table"] == table]
            by_row: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
            for row in own:
                by_row[row["row"]][row["column"]] = row
            if own:
                yield table, list(dict.fromkeys(row["column"] for row in own)), dict(by_row)

    def save(self, folder: Path) -> list[Path]:
        """Write `study.json`, `study.csv` and `study.html`; the folder is made if it is missing."""
        rows = self.rows()
        described = {
            "spacy": self.spacy,
            "threshold": self.threshold,
            "counts": dict(self.statistics.counts),
            "problems": self.problems,
            "rows": rows,
        }
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        texts = {
            "study.json": json.dumps(described, indent=1, ensure_ascii=False) + "\n",
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


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def shown(row: Mapping[str, Any]) -> str:
    """A mean with half its interval, as the terminal shows it."""
    margin = "" if row["high"] is None else f" ± {row['high'] - row['mean']:.3f}"
    return f"{row['mean']:.3f}{margin}"


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
    with _mapping(processes) as pool:
        for part, own, wrong in _bar(pool(measure, _chunks(files)), len(files), "measure"):
            found = found.merge(part)
            problems += wrong
            for key, variant in own:
                variants[key].setdefault(variant.adjective, variant)
        groups = [[*group.values()] for group in variants.values() if len(group) > 1]
        for part, wrong in _bar(pool(compare, _chunks(groups)), len(groups), "compare"):
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
    """A table of nouns and categories from JSON, for `study`.

    Raises:
        ValueError: it is no such table; the message says what one is.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(x, str) for x in found.values()):
        raise ValueError(
            f'{path} must be a JSON object of nouns and categories, {{"zebra": "animal"}}'
        )
    return found


class Variant(NamedTuple):
    """An image that may be compared with those of other adjectives, and where the two words are."""

    path: Path
    adjective: str
    adjective_index: int
    noun_index: int


def _measure(
    files: Sequence[Path], *, model: str, threshold: float, categories: Mapping[str, str]
) -> tuple[Statistics, list[tuple[Any, Variant]], list[str]]:
    nlp = load_model(model)
    found = Statistics()
    variants: list[tuple[Any, Variant]] = []
    problems: list[str] = []
    for path in files:
        try:
            maps = HeatMaps.load(path)
            if not maps.prompt.text:
                raise ValueError(f"{path}: its prompt is not known")
            doc = nlp(maps.prompt.text)
            mask = partial(_mask, maps, threshold)
            found = found.merge(linguistics.measure(doc, maps.prompt, mask, categories))
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        if maps.provenance.get("seed", "").isdecimal():  # of a batch it names all seeds
            same = json.dumps([dict(maps.provenance), maps.image_size], sort_keys=True)
            for frame, adjective, noun in linguistics.adjectives(doc):
                variant = Variant(path, doc[adjective].lower_, adjective, noun)
                variants.append(((frame, noun, same), variant))
    return found, variants, problems


def _compare(
    groups: Sequence[Sequence[Variant]], *, model: str, threshold: float
) -> tuple[Statistics, list[str]]:
    """The first image of each group against each of the others."""
    found = Statistics()
    problems: list[str] = []
    for first, *others in groups:
        values: defaultdict[Key, list[float]] = defaultdict(list)
        try:
            before = _drawn(first, model)
            for other in others:
                changes = _changes(before, _drawn(other, model), first, threshold)
                for row, (inside, outside) in changes:
                    values["adjectives", row, "inside"].append(inside)
                    values["adjectives", row, "outside"].append(outside)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        found = found.merge(Statistics.of(values, compared=len(others)))
    return found, problems


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
        yield pool.map


def _chunks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]


def _bar(results: Iterable[Any], items: int, name: str) -> Iterable[Any]:
    chunks = math.ceil(items / _CHUNK)
    return tqdm(results, desc=name, total=chunks, unit=f"{_CHUNK} images", leave=False)
