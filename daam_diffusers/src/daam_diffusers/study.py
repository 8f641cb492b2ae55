"""The statistics of `linguistics` over a folder of generated images, and their tables.

Each image is a folder with `heat_maps.safetensors`, as `HeatMaps.save` writes it, and `image.png`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from daam_diffusers import linguistics, report
from daam_diffusers.atomic import write_rows, written_beside
from daam_diffusers.heat_map import HeatMap
from daam_diffusers.linguistics import Key, Mask, Mean, Statistics
from daam_diffusers.maps import HeatMaps
from daam_diffusers.samples import IMAGE, find, read_picture

TABLES = {
    "intensity": "Thresholded area by part of speech",
    "relations": "Overlap of head and dependent",
    "cohyponyms": "Overlap of two nouns of known category",
    "adjectives": "Change where an adjective is exchanged",
}

Variant = tuple[str, int, int, str]
"""Prompt with a gap, numbers of adjective and noun, all else that made an image."""


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
        rows = [
            {"table": table, "row": row, "column": column, "mean": m.value}
            | {"margin": m.margin if m.images > 1 else None, "count": m.count, "images": m.images}
            for table, means in self.tables()
            for row, cells in means.items()
            for column, m in cells.items()
        ]
        described = {
            "spacy": self.spacy,
            "threshold": self.threshold,
            "counts": dict(self.statistics.counts),
            "problems": self.problems,
            "rows": rows,
        }
        folder.mkdir(parents=True, exist_ok=True)
        *tables, page = (folder / f"study.{kind}" for kind in ("json", "csv", "html"))
        for path in tables:
            write_rows(path, rows, described)
        with written_beside(page) as beside:
            beside.write_bytes(self.to_html().encode("utf-8"))  # line ends count for its hash
        return [*tables, page]

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
        folder: searched in depth for `heat_maps.safetensors`, links to folders as well; hidden
            folders are left out.
        model: a spaCy model's name or folder; it must parse and tag.
        threshold: on min-max maps, in [0, 1].
        categories: name of a noun to its category, for `cohyponyms`.
        processes: how many share the work; each loads the model.

    Raises:
        ImportError: spaCy is missing.
        ValueError: no folder, no maps, none that can be measured, or a model that spaCy does not
            find or that does not parse and tag.
    """
    files = find(folder)
    meta = load_model(model).meta
    found = Statistics()
    problems: list[str] = []
    variants: defaultdict[Variant, dict[str, Path]] = defaultdict(dict)
    measure = partial(_measure, model=model, threshold=threshold, categories=categories or {})
    for part, wrong, own in _each(measure, files, processes):
        found = found.merge(part)
        problems += wrong
        for variant, adjective, path in own:
            variants[variant].setdefault(adjective, path)
    groups = [(key, [*paths.values()]) for key, paths in variants.items() if len(paths) > 1]
    compare = partial(_compare, model=model, threshold=threshold)
    for part, wrong in _each(compare, groups, processes):
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


def _measure(
    path: Path, *, model: str, threshold: float, categories: Mapping[str, str]
) -> tuple[Statistics, list[str], list[tuple[Variant, str, Path]]]:
    """Statistics of an image, what is wrong with it, and its adjectives, by what else it shows."""
    try:
        maps = HeatMaps.load(path)
        if not maps.prompt.text:
            raise ValueError(f"{path}: its prompt is not known")
        doc = load_model(model)(maps.prompt.text)
        found = linguistics.measure(
            doc, maps.prompt, lambda word: maps.combine(word).mask(threshold).numpy(), categories
        )
    except (OSError, ValueError) as error:
        return Statistics(), [str(error)], []
    if not maps.provenance.get(
        "seed", ""
    ).isdecimal():  # one generator for a batch gives no image its own
        return found, [], []
    made = json.dumps([dict(maps.provenance), maps.image_size], sort_keys=True)
    own = linguistics.adjectives(doc)
    return found, [], [((*place, made), doc[place[1]].lower_, path) for place in own]


def _compare(
    group: tuple[Variant, Sequence[Path]], *, model: str, threshold: float
) -> tuple[Statistics, list[str]]:
    """The first image of a group against each of the others, and what is wrong with one."""
    (_, adjective, noun, _), paths = group
    names = {adjective: "the adjective's map", noun: "the noun's map"}
    values: defaultdict[Key, list[float]] = defaultdict(list)

    def compare(row: str, before: Any, after: Any, inside: Mask) -> None:
        changes = linguistics.change(before, after, inside)
        for column, value in zip(("inside", "outside"), changes, strict=True):
            values["adjectives", row, column].append(value)

    try:
        drawn = (_drawn(path, model) for path in paths)
        before, image = next(drawn)
        for after, other in drawn:
            if noun not in before or noun not in after:
                continue
            inside = (before[noun].mask(threshold) | after[noun].mask(threshold)).numpy()
            if image is not None and other is not None:
                compare("image", image, other, inside)
            for index in sorted(before.keys() & after.keys()):
                one, two = (x[index].upscale().normalized().values.numpy() for x in (before, after))
                compare(names.get(index, "other words' maps"), one, two, inside)
    except (OSError, ValueError) as error:
        return Statistics(), [str(error)]
    return Statistics.of(values, compared=len(paths) - 1), []


def _drawn(path: Path, model: str) -> tuple[dict[int, HeatMap], npt.NDArray[np.float32] | None]:
    """Maps by the number of the word, and the image, (H, W, 3) in [0, 1], if it is there."""
    maps = HeatMaps.load(path)
    words = linguistics.align(load_model(model)(maps.prompt.text), maps.prompt)
    heats = {i: maps.combine(word).mean() for i, word in enumerate(words) if word is not None}
    picture = path.with_name(IMAGE)
    if not picture.is_file():
        return heats, None
    pixels = np.asarray(read_picture(picture).convert("RGB"), np.float32) / np.float32(255)
    if pixels.shape[:2] != maps.image_size:
        raise ValueError(
            f"{picture} has {pixels.shape[0]}×{pixels.shape[1]} pixels, and the maps beside it are "
            f"of an image of {maps.image_size[0]}×{maps.image_size[1]}"
        )
    return heats, pixels


def _each(task: Callable[..., Any], items: Sequence[Any], processes: int) -> Iterable[Any]:
    """Run a task on each item, in this process or in several; results in the items' order."""
    count = min(processes, len(items))
    progress = partial(tqdm, desc="study", total=len(items), leave=False)
    if count < 2:
        yield from progress(map(task, items))
        return
    # Spawned: a process that torch has run threads in must not be forked.
    with ProcessPoolExecutor(count, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        try:
            yield from progress(pool.map(task, items))
        except BrokenProcessPool as error:
            message = "a process was ended from outside, most likely for lack of memory: try fewer"
            raise ChildProcessError(f"{message} than {count}") from error
