"""The HTML report: as text, and as Chromium shows it."""

import base64
import html as markup
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import Browser, Dialog, Page, Request, expect

from daam_diffusers import Prompt, Token, report
from daam_diffusers.atomic import written_beside
from daam_diffusers.colors import RAMP
from daam_diffusers.report import OPACITY

Floats = npt.NDArray[np.float32]


class ReportWord(NamedTuple):
    """A word at its place in the prompt, and its map."""

    text: str
    start: int
    end: int
    values: Floats


def render(image: Any, text: str, words: Sequence[ReportWord], **options: Any) -> str:
    """The page of a prompt whose words are these, whatever they are made of, in any order."""
    words = sorted(words, key=lambda word: word.start)
    tokens = [Token(word.text, word.start, word.end, i) for i, word in enumerate(words)]
    spans = tuple((word.start, word.end) for word in words)
    prompt = Prompt(text, tuple(tokens), len(tokens), added=spans)
    return report.render(image, prompt, [word.values for word in words], **options)


def write(path: Path, html: str) -> Path:
    with written_beside(path) as beside:
        beside.write_bytes(html.encode("utf-8"))
    return path


PROMPT = "a red car and a red dog"
HOSTILE = '<script>window.hacked = 1; alert(1)</script><img src="x" onerror="alert(2)">'


def picture(width: int = 96, height: int = 64) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def bump(height: int, width: int, row: float, column: float) -> Floats:
    """(height, width): a hill whose top is at (row, column), both as shares of the size."""
    y, x = np.mgrid[:height, :width]
    distance = ((y + 0.5) / height - row) ** 2 + ((x + 0.5) / width - column) ** 2
    return np.asarray(0.5 * np.exp(-20 * distance), dtype=np.float32)


def words_of(prompt: str, values: Floats) -> list[ReportWord]:
    found = re.finditer(r"\w+", prompt)
    return [ReportWord(match.group(), match.start(), match.end(), values) for match in found]


# The buttons 0 to 3 are hot in the top right, top left, bottom left and bottom right corner.
TOP_RIGHT, TOP_LEFT = bump(8, 12, 0, 1), bump(8, 12, 0, 0)
BOTTOM_LEFT, BOTTOM_RIGHT = bump(8, 12, 1, 0), bump(20, 16, 1, 1)
WORDS = [
    ReportWord("red", 2, 5, TOP_RIGHT),
    ReportWord("car", 6, 9, TOP_LEFT),
    ReportWord("red", 16, 19, BOTTOM_LEFT),
    ReportWord("dog", 20, 23, BOTTOM_RIGHT),
]


def corner(values: npt.NDArray[Any]) -> tuple[bool, bool]:
    """Whether the highest value of (H, W) lies in the (lower, right) half."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return bool(row >= values.shape[0] / 2), bool(column >= values.shape[1] / 2)


def images(html: str) -> list[Image.Image]:
    """The images of the page: the generated one first, then a thumbnail a word."""
    encoded = re.findall(r'<img src="data:image/\w+;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in encoded]


def prompt_markup(html: str) -> str:
    found = re.search(r'<p class="prompt"[^>]*>(.*?)</p>', html, re.DOTALL)
    assert found
    return found.group(1)


def text_of(source: str) -> str:
    return markup.unescape(re.sub(r"<[^>]*>", "", source))


# The page as text


@st.composite
def prompts_with_words(draw: st.DrawFn) -> tuple[str, list[ReportWord]]:
    """A prompt, and words anywhere in it, touching each other or not, in any order."""
    prompt = draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
    cuts = sorted(draw(st.sets(st.integers(0, len(prompt)), max_size=8)))
    spans = [(start, end) for start, end in pairwise(cuts) if draw(st.booleans())]
    words = [ReportWord(prompt[start:end], start, end, TOP_LEFT) for start, end in spans]
    return prompt, draw(st.permutations(words))


@given(prompts_with_words())
@settings(max_examples=40)
def test_the_prompt_is_shown_whole_and_each_word_is_a_button(
    given_prompt: tuple[str, list[ReportWord]],
) -> None:
    prompt, words = given_prompt
    shown = prompt_markup(render(picture(), prompt, words))
    assert text_of(shown) == prompt
    buttons = re.findall(r"<button[^>]*>(.*?)</button>", shown, re.DOTALL)
    in_order = sorted(words, key=lambda word: word.start)
    assert [text_of(button) for button in buttons] == [word.text for word in in_order]


def test_markup_in_any_text_is_escaped() -> None:
    words = [ReportWord(HOSTILE, 0, len(HOSTILE), TOP_LEFT)]
    html = render(picture(), f"{HOSTILE}</title>", words, provenance={HOSTILE: HOSTILE})
    assert "<script>window.hacked" not in html
    assert 'onerror="' not in html
    assert html.count("</script>") == 2  # the page's own: data and code
    assert html.count("</title>") == 1


def test_the_image_is_embedded_without_loss() -> None:
    original = picture(33, 17)
    shown = images(render(original, PROMPT, WORDS))[0]
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(original))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F", "YCbCr"])
def test_an_image_of_any_mode_is_embedded(mode: str) -> None:
    original = picture().convert("L").convert(mode) if mode == "F" else picture().convert(mode)
    assert images(render(original, PROMPT, WORDS))[0].size == original.size


def test_a_thumbnail_is_hot_where_its_map_is_hot() -> None:
    gray = Image.new("RGB", (400, 100), (128, 128, 128))
    _, *thumbnails = images(render(gray, PROMPT, WORDS))
    brightness = [np.asarray(thumbnail, dtype=np.float32).sum(-1) for thumbnail in thumbnails]
    assert [corner(values) for values in brightness] == [
        (False, True),
        (False, False),
        (True, False),
        (True, True),
    ]
    assert {thumbnail.size for thumbnail in thumbnails} == {(176, 44)}
    colors = np.asarray(thumbnails[0], dtype=np.float64)
    hottest = 128 * (1 - OPACITY) + np.array(RAMP[-1], dtype=np.float64) * OPACITY
    np.testing.assert_allclose(colors[0, -1], hottest, atol=12)  # JPEG
    np.testing.assert_allclose(colors[-1, 0], 128, atol=12)


def test_colors_grow_lighter_with_the_value() -> None:
    linear = (np.array(RAMP) / 255) ** 2.2
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0.01).all()


def test_maps_of_widely_different_values_are_all_shown_without_overflow() -> None:
    limit = np.finfo(np.float32).max
    extreme = np.array([[-limit, limit], [0, 0]], dtype=np.float32)
    flat = np.full((2, 2), 0.25, dtype=np.float32)
    words = [ReportWord("red", 2, 5, extreme), ReportWord("car", 6, 9, flat)]
    plain, *thumbnails = images(render(Image.new("RGB", (32, 32)), PROMPT, words))
    assert np.asarray(thumbnails[0]).max() > 150
    assert np.asarray(thumbnails[1]).max() == np.asarray(plain).max()  # flat: no place is meant


NAN = np.full((2, 3), np.nan, dtype=np.float32)


def test_a_map_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="map of 'red' must be finite, got 6 of 6 values"):
        render(picture(), PROMPT, [ReportWord("red", 2, 5, NAN)])


def test_without_jinja2_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'pip install "daam-diffusers\[report\]"'):
        render(picture(), PROMPT, WORDS)


def test_the_window_is_named_after_the_prompt() -> None:
    html = render(picture(), "a <b>\n dog", [])
    assert "<title>a &lt;b&gt; dog</title>" in html
    assert "<h1>DAAM heat maps</h1>" in html
    assert "<title>DAAM heat maps</title>" in render(picture(), "", [])


@pytest.mark.parametrize(
    ("scale", "shown"), [(1.0, "0.4466"), (0.01, "0.004466"), (1e-9, "0.00000000")]
)
def test_all_numbers_have_the_same_decimals(scale: float, shown: str) -> None:
    words = [ReportWord("red", 2, 5, TOP_LEFT), ReportWord("car", 6, 9, TOP_LEFT / 50)]
    words = [word._replace(values=word.values * np.float32(scale)) for word in words]
    captions = re.findall(r"m(?:ean|ax) ([\d.e-]+)<", render(picture(), PROMPT, words))
    assert captions[1] == shown
    assert {len(number) for number in captions} == {len(shown)}


# Videos: the hot corner goes round with the latent frames, 0 to 3 as in WORDS.
CORNERS = [(0, 1), (0, 0), (1, 0), (1, 1)]
MOVING = np.stack([bump(8, 12, row, column) for row, column in CORNERS])
VIDEO = [ReportWord("red", 2, 5, MOVING), ReportWord("car", 6, 9, MOVING[::-1] / 10)]


def film(frames: int = 13, size: tuple[int, int] = (96, 64)) -> list[Image.Image]:
    """Gray frames, each lighter than the one before."""
    return [Image.new("RGB", size, (40 + 8 * frame,) * 3) for frame in range(frames)]


def video(words: Sequence[ReportWord] = VIDEO, **options: Any) -> str:
    return render(film(), PROMPT, words, frames=13, **options)


@pytest.mark.parametrize(
    ("given", "frames", "words", "message"),
    [
        (picture(), 13, VIDEO, "video of 13 frames, got one image"),
        (film(), None, WORDS, "of an image, got list"),
        (film(12), 13, VIDEO, "13 frames, got 12"),
    ],
)
def test_a_video_and_its_maps_must_fit(
    given: Any, frames: int | None, words: list[ReportWord], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render(given, PROMPT, words, frames=frames)
    with pytest.raises(ValueError, match="fps must be a number above 0, got -1"):
        video(fps=-1)


def test_frames_of_a_page_are_small_pictures_of_the_same_aspect() -> None:
    large = [Image.new("RGB", (1664, 960))] * 13
    first, thumbnail, *_ = images(render(large, PROMPT, VIDEO, frames=13))
    assert first.size == (640, 370)
    assert thumbnail.size == (176, 102)
    assert images(video())[0].size == (96, 64)


def test_single_steps_are_left_out_where_they_would_make_a_huge_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [ReportWord("red", 2, 5, MOVING)]
    assert 'id="step"' in render(picture(), PROMPT, words)
    monkeypatch.setattr("daam_diffusers.report.STEP_CELLS", MOVING.size)
    assert 'id="step"' not in render(picture(), PROMPT, words)


# The file


def test_a_page_is_written_byte_by_byte_in_place_of_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")
    assert write(path, "猫\n\r\n") == path
    assert path.read_bytes() == "猫\n\r\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_older_page_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        write(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        assert source.parent == target.parent  # a rename across file systems is no rename
        assert source.read_text(encoding="utf-8") == "page"
        raise OSError("disk gone")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk gone"):
        write(tmp_path / "page.html", "page")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing to write page\.html"):
        write(tmp_path / "missing" / "page.html", "page")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_place_for_a_page(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="give the path of a file"):
        write(tmp_path, "page")


# The page in Chromium


Show = Callable[..., Page]


@pytest.fixture(scope="module")
def window(browser: Browser) -> Callable[..., Page]:
    """Gives a page of a context with the given options: the same one each time, unless `alone`.

    A context has processes of its own, whose start takes longer than most of these tests.
    """
    windows: dict[str, Page] = {}

    def window(alone: bool, **options: Any) -> Page:
        key = repr(sorted(options.items()))
        page = None if alone else windows.get(key)
        if page is None:
            context = browser.new_context(**options)
            context.set_default_timeout(20_000)
            page = context.new_page()
        if not alone:
            windows[key] = page
        page.set_viewport_size(options["viewport"])
        page.mouse.move(0, 0)
        return page

    return window


@pytest.fixture
def show(window: Callable[..., Page], tmp_path: Path) -> Iterator[Show]:
    """Opens a page in a context with the given options; `alone`, in one that no other test has.

    Afterwards: nothing was asked from anywhere, no dialog rose and no error was reported.
    """
    listening: list[tuple[Page, str, Callable[..., None]]] = []
    troubles: list[str] = []

    def show(html: str, *, alone: bool = False, **options: Any) -> Page:
        page = window(alone, **{"viewport": {"width": 1200, "height": 800}, **options})
        address = write(tmp_path / f"page{len(listening)}.html", html).as_uri()

        def note_request(request: Request) -> None:
            if request.url != address and not request.url.startswith("data:"):
                troubles.append(f"asked for {request.url}")

        def dismiss(dialog: Dialog) -> None:
            troubles.append(dialog.message)
            dialog.dismiss()

        listeners: dict[str, Callable[..., None]] = {
            "request": note_request,
            "pageerror": lambda error: troubles.append(str(error)),
            "console": lambda message: troubles.append(message.text),
            "dialog": dismiss,
        }
        for event, listener in listeners.items():
            page.on(event, listener)  # type: ignore[call-overload]
            listening.append((page, event, listener))
        page.goto(address)
        return page

    yield show
    for page, event, listener in listening:
        page.remove_listener(event, listener)
    assert troubles == []


@pytest.fixture
def page(show: Show) -> Page:
    return show(render(picture(), PROMPT, WORDS))


UNLIKE = [ReportWord("red", 2, 5, TOP_RIGHT), ReportWord("car", 6, 9, TOP_LEFT / 10)]


@pytest.fixture
def page_of_unlike(show: Show) -> Page:
    """Two words, the second of which has a tenth of the first one's attention."""
    return show(render(Image.new("RGB", (96, 64)), PROMPT, UNLIKE))


def overlay(page: Page) -> npt.NDArray[np.uint8]:
    """What the canvas over the image holds: RGBA, (H, W, 4)."""
    uri: str = page.locator("#overlay").evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def point_away(page: Page) -> None:
    page.mouse.move(0, 0)


def test_hovering_a_word_shows_its_map_in_the_right_place(page: Page) -> None:
    assert not overlay(page).any()
    for index, expected in enumerate([(False, True), (False, False), (True, False), (True, True)]):
        page.locator(".word").nth(index).hover()
        shown = overlay(page)
        assert corner(shown[..., 3]) == expected
        assert shown[..., 3].max() == pytest.approx(255 * OPACITY, abs=1)
        hottest = shown[np.unravel_index(shown[..., 3].argmax(), shown.shape[:2])]
        np.testing.assert_allclose(hottest[:3], RAMP[-1], atol=4)
    point_away(page)
    assert not overlay(page).any()


def test_the_overlay_is_the_bicubic_map_over_the_whole_image(page: Page) -> None:
    page.locator(".word").nth(3).hover()
    shown = overlay(page)
    box = page.locator(".stage img").bounding_box()
    assert box
    assert box["width"] / box["height"] == pytest.approx(96 / 64, rel=0.01)
    assert shown.shape[:2] == (round(box["height"]), round(box["width"]))
    assert page.locator("#overlay").bounding_box() == box

    low, high = BOTTOM_RIGHT.min(), BOTTOM_RIGHT.max()
    map_image = Image.fromarray((BOTTOM_RIGHT - low) / (high - low))
    size = (shown.shape[1], shown.shape[0])
    expected = np.asarray(map_image.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    # One level of the 8 bits of a map and one of the canvas; Pillow treats the rim otherwise.
    difference = np.abs(shown[..., 3] - 255 * OPACITY * expected)
    assert difference.max() < 6
    assert difference.mean() < 1


def test_focus_by_keyboard_shows_what_hovering_shows(page: Page) -> None:
    page.locator(".word").nth(1).hover()
    hovered = overlay(page)
    point_away(page)
    for _ in range(3):  # the link to the sliders, then two words
        page.keyboard.press("Tab")
    expect(page.locator(".word").nth(1)).to_be_focused()
    np.testing.assert_array_equal(overlay(page), hovered)
    outline = page.locator(".word").nth(1).evaluate("word => getComputedStyle(word).outlineStyle")
    assert outline == "solid"


def test_arrow_keys_home_and_end_move_between_words_and_stop_at_the_ends(page: Page) -> None:
    buttons = page.locator(".word")
    buttons.nth(0).focus()
    for key, index in [
        ("ArrowLeft", 0),
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 3),
        ("ArrowRight", 3),
        ("Home", 0),
    ]:
        page.keyboard.press(key)
        expect(buttons.nth(index)).to_be_focused()
    assert corner(overlay(page)[..., 3]) == (False, True)


def test_two_occurrences_of_a_word_show_maps_of_their_own(page: Page) -> None:
    first, second = page.locator(".word", has_text="red").all()
    first.hover()
    shown = overlay(page)
    expect(page.locator(".status")).to_contain_text("red\u2069 (1 of 2)")
    second.hover()
    expect(page.locator(".status")).to_contain_text("red\u2069 (2 of 2)")
    assert (overlay(page) != shown).any()


def test_the_status_names_the_word_with_its_absolute_mean_and_max(page: Page) -> None:
    status = page.locator(".status")
    expect(status).to_contain_text("No word shown")
    page.locator(".word").nth(3).hover()
    expect(status).to_contain_text("dog")
    mean, maximum = BOTTOM_RIGHT.mean(), BOTTOM_RIGHT.max()
    expect(status).to_contain_text(f"mean probability {mean:.4f}, max {maximum:.4f}")
    expect(status).to_have_attribute("aria-live", "polite")


@pytest.mark.parametrize("how", ["click", "Enter", "Space"])
def test_a_pinned_word_stays_until_it_is_released(page: Page, how: str) -> None:
    button = page.locator(".word").nth(1)

    def press() -> None:
        if how == "click":
            button.click()
            point_away(page)
        else:
            button.focus()
            page.keyboard.press(how)
            page.keyboard.press("Shift+Tab")  # away from the words: only the pin can show one
            page.keyboard.press("Shift+Tab")

    press()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert corner(overlay(page)[..., 3]) == (False, False)
    assert overlay(page).any()
    page.locator(".word").nth(3).hover()  # another word is a glance, then the pinned one is back
    assert corner(overlay(page)[..., 3]) == (True, True)
    point_away(page)
    assert corner(overlay(page)[..., 3]) == (False, False)
    press()
    expect(button).to_have_attribute("aria-pressed", "false")
    assert not overlay(page).any()


@pytest.mark.parametrize("state", ["hovered", "focused", "pinned", "slider in use"])
def test_escape_clears(page: Page, state: str) -> None:
    button = page.locator(".word").nth(1)
    if state == "hovered":
        button.hover()
    elif state == "focused":
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
    else:
        button.click()
        point_away(page)
        if state == "slider in use":
            page.get_by_label("Threshold").focus()
    assert overlay(page).any()
    page.keyboard.press("Escape")
    assert not overlay(page).any()
    page.get_by_label("Opacity").fill("0.5")  # a cleared word does not come back with a slider
    assert not overlay(page).any()
    expect(page.locator('.word[aria-pressed="true"]')).to_have_count(0)
    expect(page.locator(".status")).to_contain_text("No word shown")


def test_a_high_threshold_leaves_the_hot_pixels_only(page: Page) -> None:
    page.locator(".word").nth(0).click()
    at_zero = overlay(page)[..., 3]
    page.get_by_label("Threshold").fill("0.95")
    shown = overlay(page)[..., 3]
    limit = 255 * OPACITY * 0.95
    assert (shown[at_zero > limit + 1] > 0).all()
    assert (shown[at_zero < limit - 1] == 0).all()
    assert 0 < np.count_nonzero(shown) < 0.05 * shown.size
    expect(page.locator("#threshold-value")).to_have_text("0.95")


def test_no_opacity_leaves_nothing_and_half_of_it_half(page: Page) -> None:
    page.locator(".word").nth(0).click()
    slider = page.get_by_label("Opacity")
    expect(slider).to_have_value(str(OPACITY))
    slider.fill("0.5")
    assert overlay(page)[..., 3].max() == pytest.approx(127.5, abs=1)
    slider.fill("0")
    assert not overlay(page)[..., 3].any()
    expect(page.locator("#opacity-value")).to_have_text("0.00")


def test_sliders_move_by_keyboard_and_act_on_the_word_seen_last(page: Page) -> None:
    page.locator(".word").nth(0).hover()
    before = np.count_nonzero(overlay(page)[..., 3])
    point_away(page)
    page.get_by_label("Threshold").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#threshold-value")).to_have_text("0.10")
    assert 0 < np.count_nonzero(overlay(page)[..., 3]) < before
    for _ in range(5):  # past the other controls
        assert overlay(page).any()
        page.keyboard.press("Tab")
    assert not overlay(page).any()


def test_the_skip_link_leads_past_the_words_to_the_sliders(page: Page) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Threshold")).to_be_focused()


def test_a_thumbnail_shows_its_word_too(page: Page) -> None:
    page.locator(".thumbnails figure").nth(3).hover()
    assert corner(overlay(page)[..., 3]) == (True, True)
    expect(page.locator(".word").nth(3)).to_have_class("word shown")


def test_scripts_in_texts_are_shown_and_never_run(show: Show) -> None:
    prompt = f"{HOSTILE} and {HOSTILE}"
    words = [ReportWord(HOSTILE, 0, len(HOSTILE), TOP_LEFT)]
    page = show(
        render(picture(), prompt, words, provenance={HOSTILE: HOSTILE})
    )  # the fixture fails on a dialog, and on the request for x
    page.locator(".word").hover()
    assert page.locator("#prompt").inner_text() == prompt
    assert page.title() == prompt
    expect(page.locator(".status")).to_contain_text(HOSTILE)
    expect(page.locator("figcaption bdi")).to_have_text(HOSTILE)
    assert page.evaluate("window.hacked") is None


def test_the_policy_of_the_page_stops_foreign_scripts_and_requests(
    browser: Browser, tmp_path: Path
) -> None:
    """Not with `show`: each of the two is reported on the console, as it should be."""
    html = render(picture(), PROMPT, WORDS)
    foreign = '<script>window.hacked = 1</script><img src="other.png"></main>'
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    (tmp_path / "other.png").write_bytes(b"")
    page.goto(write(tmp_path / "page.html", html.replace("</main>", foreign)).as_uri())
    page.locator(".word").nth(0).hover()
    assert overlay(page).any()
    assert page.evaluate("window.hacked") is None
    assert sum("Content Security Policy" in text for text in refused) == 2
    page.close()


def test_white_space_of_the_prompt_is_kept(show: Show) -> None:
    prompt = "  red\n\ncar ,\tdog"
    page = show(render(picture(), prompt, words_of(prompt, TOP_LEFT)))
    assert page.locator("#prompt").evaluate("prompt => prompt.textContent") == prompt
    assert page.locator("#prompt").inner_text().count("\n") == 2


def test_a_right_to_left_prompt_runs_and_moves_to_the_left(show: Show) -> None:
    prompt = "قطة حمراء"
    page = show(render(picture(), prompt, words_of(prompt, TOP_LEFT)))
    first, second = (button.bounding_box() for button in page.locator(".word").all())
    assert first
    assert second
    assert second["x"] + second["width"] <= first["x"]
    page.locator(".word").nth(0).focus()
    for key, index in [("ArrowLeft", 1), ("ArrowRight", 0)]:
        page.keyboard.press(key)
        expect(page.locator(".word").nth(index)).to_be_focused()


def test_a_right_to_left_phrase_in_a_left_to_right_prompt_keeps_its_order(show: Show) -> None:
    prompt = "signed قطة حمراء below"
    page = show(render(picture(), prompt, words_of(prompt, TOP_LEFT)))
    lefts = [box["x"] for button in page.locator(".word").all() if (box := button.bounding_box())]
    assert np.argsort(lefts).tolist() == [0, 2, 1, 3]


def test_words_outside_the_basic_plane_and_without_spaces_are_told_apart(show: Show) -> None:
    prompt = "🐈夜の猫"
    words = [ReportWord("🐈", 0, 1, TOP_LEFT), ReportWord("猫", 3, 4, BOTTOM_RIGHT)]
    page = show(render(picture(), prompt, words))
    page.locator(".word", has_text="猫").hover()
    assert corner(overlay(page)[..., 3]) == (True, True)


def test_a_page_without_words_shows_the_image_and_says_so(show: Show) -> None:
    page = show(render(picture(), "<b>nothing</b>", []))
    expect(page.get_by_alt_text("The generated image")).to_be_visible()
    expect(page.locator("#prompt")).to_have_text("<b>nothing</b>")
    expect(page.get_by_text("No word of this prompt has a map.")).to_be_visible()
    expect(page.get_by_role("slider")).to_have_count(0)


def test_without_scripts_the_thumbnails_are_there_and_dead_controls_are_not(show: Show) -> None:
    page = show(render(picture(), PROMPT, WORDS), java_script_enabled=False)
    expect(page.locator(".thumbnails img")).to_have_count(len(WORDS))
    expect(page.locator(".thumbnails img").nth(3)).to_be_visible()
    expect(page.locator("#controls")).to_be_hidden()
    expect(page.get_by_role("link")).to_have_count(0)  # it would lead to the sliders
    expect(page.locator("noscript p")).to_contain_text("Scripts are off")


def test_the_provenance_is_a_table_that_opens(show: Show) -> None:
    page = show(render(picture(), PROMPT, WORDS, provenance={"model": "tiny", "steps": "30"}))
    row = page.get_by_role("row", name="steps 30")
    expect(row).to_be_hidden()
    page.locator("summary").click()
    expect(row).to_be_visible()


@pytest.mark.parametrize(
    ("size", "viewport"),
    [((64, 64), (1200, 800)), ((3000, 1000), (1200, 800)), ((500, 2000), (1200, 800))],
    ids=["small-enlarged", "wide", "tall"],
)
def test_the_image_fits_the_window_at_its_own_aspect(
    show: Show, size: tuple[int, int], viewport: tuple[int, int]
) -> None:
    html = render(Image.new("RGB", size), PROMPT, WORDS)
    page = show(html, viewport={"width": viewport[0], "height": viewport[1]})
    box = page.get_by_alt_text("The generated image").bounding_box()
    assert box
    assert box["width"] / box["height"] == pytest.approx(size[0] / size[1], rel=0.02)
    assert box["width"] <= viewport[0] * 0.6
    assert box["height"] <= viewport[1]
    if size == (64, 64):
        assert box["width"] == pytest.approx(512, abs=1)


def test_the_overlay_follows_a_resized_window(page: Page) -> None:
    page.locator(".word").nth(0).click()
    point_away(page)  # or the button that moves from under it would cause the drawing
    page.set_viewport_size({"width": 400, "height": 800})
    box = page.locator(".stage img").bounding_box()
    assert box
    page.wait_for_function(f"document.getElementById('overlay').width === {round(box['width'])}")
    assert corner(overlay(page)[..., 3]) == (False, True)


def test_on_a_telephone_a_long_prompt_neither_overflows_nor_hides_the_image(show: Show) -> None:
    prompt = " ".join(["photograph"] * 100) + " " + "x" * 200
    page = show(
        render(picture(), prompt, words_of(prompt, TOP_RIGHT)),
        viewport={"width": 375, "height": 700},
        has_touch=True,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.locator(".word").nth(80).tap()
    expect(page.locator(".word").nth(80)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_alt_text("The generated image")).to_be_in_viewport(ratio=1)
    assert corner(overlay(page)[..., 3]) == (False, True)
    page.locator(".word").nth(80).tap()
    assert not overlay(page).any()


@pytest.mark.parametrize("width", [1400, 390])
def test_numbers_below_titles_of_one_and_of_two_lines_stand_side_by_side(
    show: Show, width: int
) -> None:
    long = "supercalifragilisticexpialidocious"
    html = render(picture(), f"{long} dog", words_of(f"{long} dog", TOP_LEFT))
    page = show(html, viewport={"width": width, "height": 900})
    texts = page.locator("figcaption bdi")
    one, two = (texts.nth(at).bounding_box() for at in (1, 0))
    assert one
    assert two
    assert one["y"] == two["y"]
    assert two["height"] > 1.5 * one["height"]
    numbers = page.locator("figcaption > span")
    first, second = (numbers.nth(at).bounding_box() for at in (0, 1))
    assert first
    assert second
    assert first["y"] == second["y"]


def test_one_scale_for_all_words_leaves_a_faint_word_faint(page_of_unlike: Page) -> None:
    page = page_of_unlike
    page.locator(".word").nth(1).hover()  # a tenth as hot as the first
    assert overlay(page)[..., 3].max() == pytest.approx(255 * OPACITY, abs=1)
    point_away(page)
    thumbnail = page.locator(".thumbnails img").nth(1)
    before, own = images(page.content())[2], thumbnail.get_attribute("src") or ""
    page.get_by_label("One color scale").check()
    page.locator(".word").nth(1).hover()
    assert overlay(page)[..., 3].max() == pytest.approx(255 * OPACITY / 10, abs=2)
    page.locator(".word").nth(0).hover()
    assert overlay(page)[..., 3].max() == pytest.approx(255 * OPACITY, abs=1)
    expect(page.locator(".legend")).to_contain_text("all words")
    expect(page.locator("#all-words")).to_have_text("All words on one color scale")
    expect(thumbnail).not_to_have_attribute("src", own)
    faint = np.asarray(images(page.content())[2], dtype=int)
    assert faint.max() < np.asarray(before, dtype=int).max() - 30


def test_the_map_stands_on_the_image_in_gray_or_alone(page: Page) -> None:
    page.locator(".word").nth(1).click()
    image = page.get_by_alt_text("The generated image")
    page.get_by_label("Behind the map").select_option("in gray")
    assert image.evaluate("image => getComputedStyle(image).filter") == "grayscale(1)"
    assert overlay(page)[..., 3].min() < 10
    page.get_by_label("Behind the map").select_option("nothing")
    expect(page.locator(".stage img")).to_be_hidden()
    assert overlay(page)[..., 3].min() == 255
    np.testing.assert_allclose(overlay(page)[-1, -1, :3], RAMP[0], atol=4)
    expect(page.get_by_label("Opacity")).to_be_disabled()


@pytest.mark.parametrize("how", ["switch", "Shift"])
def test_words_are_combined_into_their_mean(page_of_unlike: Page, how: str) -> None:
    page = page_of_unlike
    buttons = page.locator(".word")
    buttons.nth(0).click()
    if how == "switch":
        page.get_by_label("Combine words").check()
    buttons.nth(1).click(modifiers=["Shift"] if how == "Shift" else [])
    expect(page.locator('.word[aria-pressed="true"]')).to_have_count(2)
    expect(page.locator(".status")).to_contain_text(
        "\u2068red\u2069 + \u2068car\u2069, mean of 2 words"
    )
    mean = (UNLIKE[0].values + UNLIKE[1].values) / 2
    expect(page.locator("#status-numbers")).to_have_text(
        f"mean probability {mean.mean():.4f}, max {mean.max():.4f}"
    )
    shown = overlay(page)[..., 3]  # with the pointer still on the second
    stretched = Image.fromarray((mean - mean.min()) / (mean.max() - mean.min()))
    expected = np.asarray(stretched.resize(shown.shape[::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    assert np.abs(shown - 255 * OPACITY * expected).max() < 8  # as for one word, rounded twice
    point_away(page)
    buttons.nth(0).click(modifiers=["Shift"])
    expect(page.locator('.word[aria-pressed="true"]')).to_have_text("car")


def test_maps_of_unlike_grids_are_combined(page: Page) -> None:
    page.locator(".word").nth(1).click()  # 8 x 12, top left
    page.locator(".word").nth(3).click(modifiers=["Shift"])  # 20 x 16, bottom right
    point_away(page)
    alpha = overlay(page)[..., 3]
    assert alpha[5, 5] > 150
    assert alpha[-5, -5] > 150
    assert alpha[5, -5] < 20


def test_denoising_steps_are_a_slider(show: Show) -> None:
    words = [ReportWord("red", 2, 5, MOVING)]  # of an image: the first axis is the steps
    page = show(render(picture(), PROMPT, words))
    page.locator(".word").click()
    point_away(page)
    slider = page.get_by_label("Denoising step")
    expect(page.locator("#step-value")).to_have_text("mean of 4")
    expect(page.locator("#legend-max")).to_have_text(f"{MOVING.mean(axis=0).max():.4f}")
    for step, (row, column) in enumerate(CORNERS, start=1):
        slider.fill(str(step))
        assert corner(overlay(page)[..., 3]) == (bool(row), bool(column))
        expect(page.locator("#legend-max")).to_have_text(f"{MOVING[step - 1].max():.4f}")
    expect(page.locator("#step-value")).to_have_text("4 of 4")
    expect(page.locator("figcaption")).to_contain_text(f"max {MOVING[3].max():.4f}")


@pytest.mark.parametrize("touch", [True, False])
def test_the_page_speaks_of_taps_where_there_is_no_pointer(show: Show, touch: bool) -> None:
    page = show(render(picture(), PROMPT, WORDS), has_touch=touch)
    words = page.locator("#controls").inner_text()
    assert ("Tap a word" in words, "Hover" in words, "Esc" in words) == (
        touch,
        not touch,
        not touch,
    )


def brightness(page: Page) -> float:
    """Of the frame that is shown."""
    sources = page.locator(".stage img").get_attribute("src") or ""
    data = base64.b64decode(sources.partition(",")[2])
    return float(np.asarray(Image.open(io.BytesIO(data)).convert("L")).mean())


def test_the_frame_slider_shows_each_frame_with_the_map_it_was_decoded_from(show: Show) -> None:
    page = show(video(), reduced_motion="reduce")
    page.locator(".word").nth(0).hover()
    point_away(page)  # a slider in use keeps the word
    thumbnail = page.locator(".thumbnails img").first
    first = thumbnail.get_attribute("src") or ""
    slider = page.get_by_label("Frame", exact=True)
    for frame, latent in [(0, 0), (1, 1), (4, 1), (5, 2), (12, 3)]:  # 13 frames of 4: causal
        slider.fill(str(frame + 1))
        assert brightness(page) == pytest.approx(40 + 8 * frame, abs=3)
        assert corner(overlay(page)[..., 3]) == tuple(map(bool, CORNERS[latent]))
        expect(page.locator("#frame-value")).to_have_text(f"{frame + 1} of 13")
        expect(page.get_by_alt_text(f"Frame {frame + 1} of the generated video")).to_be_visible()
    slider.press("ArrowLeft")
    expect(page.locator("#frame-value")).to_have_text("12 of 13")
    # The thumbnails follow.
    expect(thumbnail).not_to_have_attribute("src", first)
    shown = np.asarray(images(page.content())[1].convert("L"), dtype=float)
    assert corner(shown) == (True, True)


def test_a_video_plays_until_it_is_paused_and_goes_round(show: Show) -> None:
    page = show(video(fps=10), alone=True, reduced_motion="reduce")  # the clock is the context's
    value = page.locator("#frame-value")
    page.clock.install(time=0)
    page.clock.pause_at(10)
    expect(value).to_have_text("1 of 13")  # motion was not welcome
    page.get_by_role("button", name="Play").press("Space")
    for frame in (9, 4):
        page.clock.run_for(800)
        expect(value).to_have_text(f"{frame} of 13")
    page.get_by_role("button", name="Pause").press("Enter")
    page.clock.run_for(1000)
    expect(value).to_have_text("4 of 13")


def test_a_video_plays_at_once_where_motion_is_welcome_and_stops_when_moved(show: Show) -> None:
    page = show(video(fps=50), reduced_motion="no-preference")
    expect(page.locator("#frame-value")).not_to_have_text("1 of 13")
    page.get_by_label("Frame", exact=True).fill("5")
    page.wait_for_timeout(100)
    expect(page.locator("#frame-value")).to_have_text("5 of 13")
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_a_video_without_words_plays_and_without_scripts_is_its_first_frame(show: Show) -> None:
    page = show(video([]), reduced_motion="reduce")
    page.get_by_label("Frame", exact=True).fill("13")
    assert brightness(page) == pytest.approx(40 + 8 * 12, abs=3)
    page = show(video(), java_script_enabled=False)
    assert brightness(page) == pytest.approx(40, abs=3)
    expect(page.get_by_role("button", name="Play")).to_be_hidden()
    expect(page.locator(".thumbnails img")).to_have_count(2)


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast of two CSS colors as Chromium computes them, `rgb(r, g, b)`."""

    def luminance(color: str) -> float:
        value = np.array([int(band) for band in re.findall(r"\d+", color)[:3]]) / 255
        linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast_in_either_color_scheme(show: Show, scheme: str) -> None:
    page = show(render(picture(), PROMPT, WORDS), color_scheme=scheme, reduced_motion="reduce")

    def style(selector: str, name: str) -> str:
        found: str = page.locator(selector).first.evaluate(
            "(element, name) => getComputedStyle(element)[name]", name
        )
        return found

    paper = style("body", "backgroundColor")
    assert (contrast(paper, "rgb(0, 0, 0)") > 10) == (scheme == "light")
    for selector in ["#prompt", "h2", "figcaption span"]:
        assert contrast(style(selector, "color"), paper) > 4.5
    assert contrast(style(".hint", "color"), style(".card", "backgroundColor")) > 4.5
    page.locator(".word").first.hover()
    assert contrast(style(".word", "color"), style(".word", "backgroundColor")) > 4.5


def test_nothing_moves_for_readers_who_prefer_less_motion(show: Show) -> None:
    html = render(picture(), PROMPT, WORDS)
    duration = "word => getComputedStyle(word).transitionDuration"
    for preference, still in [("reduce", True), ("no-preference", False)]:
        page = show(html, reduced_motion=preference)
        moves = page.locator(".word").first.evaluate(duration)
        assert (set(moves.split(", ")) == {"0s"}) == still


def test_the_page_names_its_language_and_encoding(page: Page) -> None:
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.evaluate("document.characterSet") == "UTF-8"
    assert page.evaluate("document.compatMode") == "CSS1Compat"
