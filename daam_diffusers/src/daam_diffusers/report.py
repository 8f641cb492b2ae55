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
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from daam_diffusers import video
from daam_diffusers.colors import RAMP, blend

if TYPE_CHECKING:
    from daam_diffusers.prompt import Prompt
    from daam_diffusers.video import Frames

OPACITY = 0.8  # of the hottest cell: the slider's default, and the thumbnails'
SHORT_IMAGE = 512  # CSS pixels: an image whose longer side is shorter is shown enlarged to this
THUMBNAIL = 176  # pixels, longer side

# What keeps a page within some megabytes.
FRAME_SIDE = 640  # pixels, longer side of a video's frames
STEP_CELLS = 8_000_000  # of all maps together, at a byte a cell, with which steps are still shown

# What PNG stores without loss; an image of any other mode is embedded as RGB.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})

_STRONG = frozenset({"L", "R", "AL"})  # Unicode bidirectional classes


def render(
    image: Image.Image | Frames,
    prompt: Prompt,
    maps: Sequence[npt.NDArray[np.float32]],
    *,
    frames: int | None = None,
    fps: float = 8,
    provenance: Mapping[str, str] | None = None,
) -> str:
    """The page as a string, to be stored as UTF-8.

    Colors show each map on its own min-max scale, or all on one where a switch is set; numbers
    are the absolute probabilities, maps have 8 bits a cell. An image is embedded without loss, a
    video's frames as WebP of at most 640 pixels. Single steps are left out where all maps together
    have more than 8 million cells.

    Args:
        image: the generated image, or the video's frames as `HeatMap.overlay` takes them.
        prompt: shown as text, whatever it contains.
        maps: for each of the prompt's words mean attention probabilities at latent resolution,
            float32, (H, W), or (S, H, W) with the denoising steps, which become a slider; of a
            video (f, H, W), f latent frames. Any size and aspect: the page stretches a map over
            the whole image.
        frames: how many frames the video has; None for an image.
        fps: frames a second at which the page plays a video.
        provenance: what produced the maps (model, steps, layers, versions), as rows of a table.

    Raises:
        ImportError: jinja2 is missing.
        ValueError: an image for a video or the reverse, another number of frames, fps that
            is no number above 0, or maps that are not finite.
    """
    video.check_fps(fps)
    pictures = video.pictures(image, frames)
    first = pictures[0]
    for word, values in zip(prompt.words, maps, strict=True):
        if broken := int(np.count_nonzero(~np.isfinite(values))):
            raise ValueError(
                f"the map of {word.text!r} must be finite, got {broken} of {values.size} values "
                "that are NaN or infinite"
            )
    maps = [_with_mean(values, is_video=frames is not None) for values in maps]
    if sum(values.size for values in maps) > STEP_CELLS:
        maps = [values[:1] for values in maps]
    steps, latent = maps[0].shape[:2] if maps else (1, 1)
    if frames is None:
        uris = [data_uri(first if first.mode in _PNG_MODES else first.convert("RGB"))]
    else:
        scale = min(1.0, FRAME_SIDE / max(first.size))
        size = (math.ceil(first.width * scale), math.ceil(first.height * scale))
        uris = [data_uri(picture.resize(size), "WEBP") for picture in pictures]

    return page(
        "report.html.j2",
        title=" ".join(prompt.text.split()),
        direction=_direction(prompt.text),
        segments=list(_segments(prompt)),
        words=list(_word_data(prompt, maps)),
        decimals=_decimals(maps),
        thumbnails=[data_uri(thumbnail, "JPEG") for thumbnail in _thumbnails(first, maps)],
        image=uris[0],
        frames=uris[1:],
        latent=latent,
        latent_frames=video.latent_frames(len(pictures), latent),
        fps=None if frames is None else float(fps),
        steps=steps - 1,
        width=first.width,
        height=first.height,
        shown_width=round(first.width * max(1.0, SHORT_IMAGE / max(first.size)), 2),
        ramp=RAMP,
        opacity=OPACITY,
        provenance=dict(provenance or {}),
    )


def page(template: str, **values: Any) -> str:
    """A page of one of the package's templates; what it is given is escaped.

    Raises:
        ImportError: jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            'an HTML page needs jinja2: pip install "daam-diffusers[report]"'
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("daam_diffusers"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template(template).render(**values)


def _with_mean(values: npt.NDArray[np.float32], *, is_video: bool) -> npt.NDArray[np.float32]:
    """A map as (S, f, H, W): the mean over steps, then each step if there are any."""
    if is_video:
        return values[None]
    steps = values.reshape(-1, 1, *values.shape[-2:])
    mean = steps.mean(axis=0, keepdims=True)
    return mean if values.ndim == 2 else np.concatenate([mean, steps])


def _segments(prompt: Prompt) -> Iterator[tuple[str, int | None]]:
    """The prompt cut into (text, index of its word or None for the text between words)."""
    position = 0
    for index, word in enumerate(prompt.words):
        yield prompt.text[position : word.start], None
        yield word.text, index
        position = word.end
    yield prompt.text[position:], None


def _direction(text: str) -> Literal["ltr", "rtl"]:
    """Direction of the first strong letter: dir=auto would not look into the words."""
    strong = (unicodedata.bidirectional(letter) for letter in text)
    return "rtl" if next((kind for kind in strong if kind in _STRONG), "L") != "L" else "ltr"


def _word_data(prompt: Prompt, maps: Sequence[npt.NDArray[np.float32]]) -> Iterator[dict[str, Any]]:
    """Each word for the page's script: numbers of whole maps, levels of each step."""
    totals = Counter(word.text for word in prompt.words)
    for word, occurrence, values in zip(prompt.words, prompt.occurrences, maps, strict=True):
        levels = np.concatenate([_min_max(step) for step in values]) * 255
        yield {
            "text": word.text,
            "occurrence": occurrence + 1,
            "occurrences": totals[word.text],
            "steps": [
                {"mean": float(step.mean()), "min": float(step.min()), "max": float(step.max())}
                for step in values.astype(np.float64)
            ],
            "height": values.shape[-2],
            "width": values.shape[-1],
            "levels": _base64(np.rint(levels).astype(np.uint8).tobytes()),
        }


def _decimals(maps: Sequence[npt.NDArray[np.float32]]) -> int:
    """Number of decimals on the page: four digits of the greatest number, 2 to 8."""
    greatest = max((float(values.max()) for values in maps), default=1.0)
    return min(max(3 - math.floor(math.log10(greatest)), 2), 8) if greatest > 0 else 2


def _thumbnails(
    image: Image.Image, maps: Sequence[npt.NDArray[np.float32]]
) -> Iterator[Image.Image]:
    """The pictures that the page's script draws of the first frame at its default settings, for
    readers without scripts."""
    scale = THUMBNAIL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))  # (W, H)
    picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    for values in maps:
        resized = Image.fromarray(_min_max(values[0])[0]).resize(size, Image.Resampling.BICUBIC)
        heat = np.clip(np.asarray(resized), 0, 1)  # bicubic overshoots
        yield blend(picture, heat, OPACITY)


def _min_max(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(f, H, W) scaled to [0, 1]; all zero where the map is flat and so has nothing to point at."""
    # float64: the difference of two float32 may overflow float32.
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.zeros_like(values)
    return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)


def data_uri(image: Image.Image, kind: Literal["PNG", "JPEG", "WEBP"] = "PNG") -> str:
    """A picture as the address that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 75, "method": 2} if kind == "WEBP" else {}))
    return f"data:image/{kind.lower()};base64,{_base64(buffer.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _csp_hash(source: str) -> str:
    """The source expression that allows exactly this inline style or script."""
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return "sha256-" + _base64(digest)
