"""One self-contained HTML page: hover or focus a word of the prompt, see its map on the image.

The page holds everything it shows (image or frames, maps, style, script) and its
Content-Security-Policy forbids it to load anything else. This module knows arrays and text only:
no pipeline, no torch.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from daam_diffusers import video
from daam_diffusers.atomic import written_beside
from daam_diffusers.colors import RAMP, blend

if TYPE_CHECKING:
    from daam_diffusers.video import Frames

OPACITY = 0.8  # of the hottest cell: the slider's default, and the thumbnails'
SHORT_IMAGE = 512  # CSS pixels: an image whose longer side is shorter is shown enlarged to this
THUMBNAIL = 176  # pixels, longer side

# What keeps a page within some megabytes: frames are WebP of at most this many pixels on the longer
# side and, together, about this many bytes; maps are 8 bits a cell, at most this many cells.
FRAME_SIDE = 832
FRAME_BYTES = 3_000_000
CELLS = 2_000_000

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
        values: Mean attention probabilities at latent resolution, float32, shape (H, W); of a
            video (f, H, W), f latent frames. Either may have the denoising steps as a leading axis
            more, which become a slider. Any size and aspect: the page stretches a map over the
            whole image.
    """

    text: str
    start: int
    end: int
    values: npt.NDArray[np.float32]


def render(
    image: Image.Image | Frames,
    prompt: str,
    words: Sequence[ReportWord],
    *,
    frames: int | None = None,
    fps: int = 8,
    title: str | None = None,
    provenance: Mapping[str, str] | None = None,
) -> str:
    """The page as a string, to be stored as UTF-8.

    Colors show each map on its own min-max scale, or all on one at the turn of a switch; numbers
    are the absolute probabilities. An image is embedded without loss. A video's frames are WebP,
    shrunk where they would be larger than 832 pixels or together than 3 MB; maps are 8 bits a
    cell, shrunk where all together have more than 2 million cells; where that would halve their
    sides, the single steps are left out.

    Args:
        image: The generated image, or the video's frames as `HeatMap.overlay` takes them.
        prompt: The prompt as the user wrote it. It is shown as text, whatever it contains.
        words: The words that have a map, in any order, none overlapping another. A word that
            occurs twice is two entries with spans of their own. May be empty.
        frames: How many frames the video has; None for an image.
        fps: Frames a second at which the page plays a video.
        title: Heading and window title; by default the window's is the prompt.
        provenance: What produced the maps (model, steps, layers, versions), as rows of a table.

    Raises:
        ImportError: jinja2 is missing.
        ValueError: An empty image, an image for a video or the reverse, another number of frames,
            a span outside the prompt or on top of another, a text that is not what stands there,
            or values that are not a non-empty array of finite numbers, of the shape above and of
            as many steps and latent frames as the others.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            'the HTML report needs jinja2: pip install "daam-diffusers[report]"'
        ) from error

    pictures = video.pictures(image, frames)
    first = pictures[0]
    if not first.width or not first.height:
        raise ValueError(f"the image is empty: {first.width} x {first.height} pixels")
    words = sorted(words, key=lambda word: word.start)
    maps = [_checked_values(word, is_video=frames is not None) for word in words]
    if len(lengths := {values.shape[:2] for values in maps}) > 1:
        raise ValueError(f"maps must agree in (steps, latent frames), got {sorted(lengths)}")
    if sum(values.size for values in maps) > 4 * CELLS:
        maps = [values[:1] for values in maps]
    steps, latent = maps[0].shape[:2] if maps else (1, 1)
    segments = list(_segments(prompt, words))
    if frames is not None:
        uris = _frame_uris(pictures)
    else:
        uris = [_data_uri(first if first.mode in _PNG_MODES else first.convert("RGB"))]

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("daam_diffusers"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    environment.filters["fixed"] = "{:.{}f}".format
    return environment.get_template("report.html.j2").render(
        title=title or "DAAM heat maps",
        window_title=title or " ".join(prompt.split()) or "DAAM heat maps",
        direction=_direction(prompt),
        segments=segments,
        words=list(_word_data(words, maps)),
        decimals=_decimals(maps),
        thumbnails=[_data_uri(thumbnail, "JPEG") for thumbnail in _thumbnails(first, maps)],
        image=uris[0],
        frames=uris[1:],
        latent=latent,
        latent_frames=video.latent_frames(len(pictures), latent),
        fps=None if frames is None else fps,
        steps=steps - 1,
        width=first.width,
        height=first.height,
        shown_width=round(first.width * max(1.0, SHORT_IMAGE / max(first.size)), 2),
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


def _checked_values(word: ReportWord, *, is_video: bool) -> npt.NDArray[np.float32]:
    """The word's map, float32 (S, f, H, W): the mean over steps, then each step if there are any.

    Raises:
        ValueError: what was given is no map.
    """
    values = np.asarray(word.values, dtype=np.float32)
    wanted = "(f, H, W)" if is_video else "(H, W)"
    if values.ndim - wanted.count(",") not in (1, 2) or not values.size:
        raise ValueError(
            f"the map of {word.text!r} must be a non-empty array {wanted}, or one more axis of "
            f"steps before, got shape {values.shape}"
        )
    if broken := int(np.count_nonzero(~np.isfinite(values))):
        raise ValueError(
            f"the map of {word.text!r} must be finite, got {broken} of {values.size} values that "
            "are NaN or infinite"
        )
    if not is_video:
        values = values[..., None, :, :]
    if values.ndim == 3:
        return values[None]
    return np.concatenate([values.mean(axis=0, keepdims=True), values])


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
) -> Iterator[dict[str, Any]]:
    """What the page's script knows of each word: numbers of whole maps, levels of each step."""
    totals = Counter(word.text for word in words)
    seen: Counter[str] = Counter()
    factor = min(1.0, math.sqrt(CELLS / max(1, sum(values.size for values in maps))))
    for word, values in zip(words, maps, strict=True):
        seen[word.text] += 1
        height, width = (math.ceil(length * factor) for length in values.shape[-2:])
        levels = [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)) * 255
            for step in values
            for frame in _min_max(step)
        ]
        yield {
            "text": word.text,
            "occurrence": seen[word.text],
            "occurrences": totals[word.text],
            "steps": [
                {"mean": float(step.mean()), "min": float(step.min()), "max": float(step.max())}
                for step in values.astype(np.float64)
            ],
            "height": height,
            "width": width,
            "levels": _base64(np.rint(levels).astype(np.uint8).tobytes()),
        }


def _decimals(maps: Sequence[npt.NDArray[np.float32]]) -> int:
    """How many decimals all numbers of the page have: four digits of the greatest, 2 to 8."""
    greatest = max((float(values.max()) for values in maps), default=1.0)
    return min(max(3 - math.floor(math.log10(greatest)), 2), 8) if greatest > 0 else 2


def _thumbnails(
    image: Image.Image, maps: Sequence[npt.NDArray[np.float32]]
) -> Iterator[Image.Image]:
    """What the page's script draws of the first frame at its default settings, for readers without
    scripts."""
    scale = THUMBNAIL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))  # (W, H)
    picture = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    for values in maps:
        resized = Image.fromarray(_min_max(values[0])[0]).resize(size, Image.Resampling.BICUBIC)
        heat = np.clip(np.asarray(resized), 0, 1)  # bicubic overshoots
        yield Image.fromarray(blend(picture, heat, OPACITY))


def _min_max(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(f, H, W) scaled to [0, 1]; all zero where the map is flat and so has nothing to point at."""
    # float64: the difference of two float32 may overflow float32.
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.zeros_like(values)
    return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)


def _frame_uris(frames: Sequence[Image.Image]) -> list[str]:
    """The frames as WebP, shrunk until they are small enough."""
    scale = min(1.0, FRAME_SIDE / max(frames[0].size))
    while True:
        size = (math.ceil(frames[0].width * scale), math.ceil(frames[0].height * scale))
        uris = [_data_uri(frame.resize(size), "WEBP") for frame in frames]
        total = sum(map(len, uris)) * 3 // 4  # base64
        if total <= FRAME_BYTES or scale < 0.1:
            return uris
        scale *= math.sqrt(FRAME_BYTES / total) * 0.9


def _data_uri(image: Image.Image, kind: Literal["PNG", "JPEG", "WEBP"] = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 75, "method": 2} if kind == "WEBP" else {}))
    return f"data:image/{kind.lower()};base64,{_base64(buffer.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _csp_hash(source: str) -> str:
    """The source expression that allows exactly this inline style or script."""
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return "sha256-" + _base64(digest)
