"""One self-contained HTML page: hover or focus a word of the prompt, see its map on the image.

The page holds everything it shows (image, maps, style, script) and its Content-Security-Policy
forbids it to load anything else. This module knows arrays and text only: no pipeline, no torch.
"""

import base64
import hashlib
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from daam_diffusers.atomic import written_beside
from daam_diffusers.colours import RAMP, blend

OPACITY = 0.8  # of the hottest cell: the slider's default, and the thumbnails'
SHORT_IMAGE = 512  # CSS pixels: an image whose longer side is shorter is shown enlarged to this
THUMBNAIL = 176  # pixels, longer side

# What PNG stores without loss; an image of any other mode is embedded as RGB.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})

_STRONG = frozenset({"L", "R", "AL"})  # Unicode bidirectional classes


@dataclass(frozen=True)
class ReportWord:
    """One word (or phrase) of the prompt and its map.

    Attributes:
        text: The word as written in the prompt, ``prompt[start:end]``.
        start: First character of the word in the prompt.
        end: One past its last character.
        values: Mean attention probabilities at latent resolution, float32, shape (H, W). Any size
            and aspect: the page stretches a map over the whole image.
    """

    text: str
    start: int
    end: int
    values: npt.NDArray[np.float32]


def render(
    image: Image.Image,
    prompt: str,
    words: Sequence[ReportWord],
    *,
    title: str = "DAAM heat maps",
    provenance: Mapping[str, str] | None = None,
) -> str:
    """The page as a string, to be stored as UTF-8.

    Colours show each map on its own min-max scale; numbers are the absolute probabilities.

    Args:
        image: The generated image.
        prompt: The prompt as the user wrote it. It is shown as text, whatever it contains.
        words: The words that have a map, in any order, none overlapping another. A word that
            occurs twice is two entries with spans of their own. May be empty.
        title: Heading and window title.
        provenance: What produced the maps (model, steps, layers, versions), as rows of a table.

    Raises:
        ImportError: jinja2 is missing.
        ValueError: An empty image, a span outside the prompt or on top of another, a text that is
            not what stands there, or values that are not a non-empty 2-D array of finite numbers.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            'the HTML report needs jinja2: pip install "daam-diffusers[report]"'
        ) from error

    if not image.width or not image.height:
        raise ValueError(f"the image is empty: {image.width} x {image.height} pixels")
    words = sorted(words, key=lambda word: word.start)
    maps = [_checked_values(word) for word in words]
    segments = list(_segments(prompt, words))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("daam_diffusers"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template("report.html.j2").render(
        title=title,
        direction=_direction(prompt),
        segments=segments,
        words=list(_word_data(words, maps)),
        thumbnails=[_data_uri(thumbnail, "JPEG") for thumbnail in _thumbnails(image, maps)],
        image=_data_uri(image if image.mode in _PNG_MODES else image.convert("RGB")),
        width=image.width,
        height=image.height,
        shown_width=round(image.width * max(1.0, SHORT_IMAGE / max(image.size)), 2),
        ramp=RAMP,
        opacity=OPACITY,
        provenance=dict(provenance or {}),
    )


def write(path: str | os.PathLike[str], html: str) -> Path:
    """Write a page, beside its place first and then renamed: never half a file under `path`.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: The folder does not exist; it is not created.
        IsADirectoryError: `path` is a folder.
    """
    with written_beside(path) as beside:
        # Bytes: translated line ends would no longer match the hashes of the policy.
        beside.write_bytes(html.encode("utf-8"))
    return Path(path)


def _checked_values(word: ReportWord) -> npt.NDArray[np.float32]:
    """The word's map, float32 (H, W), or a ValueError that says what was given."""
    values = np.asarray(word.values, dtype=np.float32)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"the map of {word.text!r} must be a non-empty array (H, W), got shape {values.shape}"
        )
    if broken := int(np.count_nonzero(~np.isfinite(values))):
        raise ValueError(
            f"the map of {word.text!r} must be finite, got {broken} of {values.size} values that "
            "are NaN or infinite"
        )
    return values


def _segments(prompt: str, words: Sequence[ReportWord]) -> Iterator[tuple[str, int | None]]:
    """The prompt cut into (text, index of its word or None for the text between words)."""
    position = 0
    for index, word in enumerate(words):
        span = f"the span [{word.start}, {word.end}) of {word.text!r}"
        if not 0 <= word.start < word.end <= len(prompt):
            raise ValueError(
                f"{span} must be a part of the prompt, which has {len(prompt)} characters"
            )
        if word.start < position:
            raise ValueError(f"{span} overlaps {words[index - 1].text!r}, which ends at {position}")
        if prompt[word.start : word.end] != word.text:
            raise ValueError(
                f"{span} holds {prompt[word.start : word.end]!r}: give the text as written there"
            )
        if position < word.start:
            yield prompt[position : word.start], None
        yield word.text, index
        position = word.end
    if position < len(prompt):
        yield prompt[position:], None


def _direction(text: str) -> Literal["ltr", "rtl"]:
    """That of the first strong letter: dir=auto would not look into the words, see the template."""
    strong = (unicodedata.bidirectional(letter) for letter in text)
    return "rtl" if next((kind for kind in strong if kind in _STRONG), "L") != "L" else "ltr"


def _word_data(
    words: Sequence[ReportWord], maps: Sequence[npt.NDArray[np.float32]]
) -> Iterator[dict[str, str | int]]:
    """What the page's script knows of each word."""
    totals = Counter(word.text.casefold() for word in words)
    seen: Counter[str] = Counter()
    for word, values in zip(words, maps, strict=True):
        key = word.text.casefold()
        seen[key] += 1
        levels = np.rint(_min_max(values) * 255).astype(np.uint8)
        yield {
            "text": word.text,
            "occurrence": seen[key],
            "occurrences": totals[key],
            "mean": f"{values.mean(dtype=np.float64):.3g}",
            "min": f"{values.min():.3g}",
            "max": f"{values.max():.3g}",
            "height": values.shape[0],
            "width": values.shape[1],
            "levels": base64.b64encode(levels.tobytes()).decode("ascii"),
        }


def _thumbnails(
    image: Image.Image, maps: Sequence[npt.NDArray[np.float32]]
) -> Iterator[Image.Image]:
    """What the page's script draws at its default settings, for readers without scripts."""
    scale = THUMBNAIL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))  # (W, H)
    picture = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    for values in maps:
        resized = Image.fromarray(_min_max(values)).resize(size, Image.Resampling.BICUBIC)
        heat = np.clip(np.asarray(resized), 0, 1)  # bicubic overshoots
        yield Image.fromarray(blend(picture, heat, OPACITY))


def _min_max(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(H, W) scaled to [0, 1]; all zero where the map is flat and so has nothing to point at."""
    # float64: the difference of two float32 may overflow float32.
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.zeros_like(values)
    return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)


def _data_uri(image: Image.Image, kind: Literal["PNG", "JPEG"] = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"


def _csp_hash(source: str) -> str:
    """The source expression that allows exactly this inline style or script."""
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
