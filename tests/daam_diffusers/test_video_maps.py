"""Maps of videos: frames in time, masks, overlays, files that play."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from daam_diffusers import HeatMap
from daam_diffusers.evaluation import iou
from daam_diffusers.video import latent_frames

SIZE = (12, 20)  # rows and columns of the video


def planted(frames: int = 9, latent: int = 3) -> HeatMap:
    """A spot that moves one cell to the right a latent frame, twice as hot in the last one."""
    values = torch.zeros(latent, 6, 10)
    for k in range(latent):
        values[k, 2:4, k : k + 2] = 0.1 * (1 + (k == latent - 1))
    return HeatMap("dog", values, ("frame",), SIZE, frames)


def film(frames: int = 9, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in noise]


# Frames of latent frames


@pytest.mark.parametrize(
    ("frames", "latent", "counts"),
    [
        pytest.param(81, 21, [1] + [4] * 20, id="wan"),
        pytest.param(49, 13, [1] + [4] * 12, id="cogvideox"),
        pytest.param(161, 21, [1] + [8] * 20, id="ltx"),
        pytest.param(85, 15, [1] + [6] * 14, id="mochi"),
        pytest.param(9, 3, [1, 4, 4], id="also-three-each"),
        pytest.param(88, 22, [4] * 22, id="allegro"),
        pytest.param(16, 4, [4] * 4, id="also-one-and-five-each"),
        pytest.param(16, 16, [1] * 16, id="animatediff"),
        pytest.param(10, 3, [4, 3, 3], id="uneven"),
        pytest.param(5, 1, [5], id="one-latent-frame"),
        pytest.param(1, 1, [1], id="one-frame"),
        pytest.param(2, 4, [1, 0, 1, 0], id="fewer-than-latent"),
    ],
)
def test_each_frame_has_the_latent_frame_it_was_decoded_from(
    frames: int, latent: int, counts: list[int]
) -> None:
    order = latent_frames(frames, latent)
    assert [order.count(k) for k in range(latent)] == counts
    assert order == sorted(order)


@given(st.integers(2, 30), st.sampled_from([4, 6, 8]))
def test_a_causal_decoder_gives_one_frame_and_then_several_a_latent_frame(
    latent: int, ratio: int
) -> None:
    decoded = [0]
    for k in range(1, latent):
        decoded += [k] * ratio
    assert latent_frames(1 + ratio * (latent - 1), latent) == decoded


def test_upscaling_brings_each_latent_frame_to_its_own_frames() -> None:
    heat = planted()
    scaled = heat.upscale()
    assert scaled.values.shape == (9, *SIZE)
    for frame, latent in enumerate([0, 1, 1, 1, 1, 2, 2, 2, 2]):
        single = HeatMap("dog", heat.values[latent], (), SIZE).upscale()
        assert torch.equal(scaled.values[frame], single.values)
    assert heat.upscale((3, 5)).values.shape == (9, 3, 5)


def test_other_axes_are_averaged_and_frames_stay() -> None:
    values = torch.rand(5, 2, 3, 6, 10)
    heat = HeatMap("dog", values, ("step", "head", "frame"), SIZE, 9)
    assert repr(heat) == "HeatMap('dog', step=5, head=2, frame=3, 6×10)"
    torch.testing.assert_close(heat.mean().values, values.mean(dim=(0, 1)))
    assert heat.mean().axes == ("frame",)
    steps = heat.mean(keep=("step",))
    assert steps.axes == ("step", "frame")
    torch.testing.assert_close(steps.values, values.mean(dim=1))
    assert heat.upscale().values.shape == (5, 2, 9, *SIZE)
    assert torch.equal(heat.mask(0.5), heat.mean().mask(0.5))
    image = HeatMap("dog", values[0, 0], ("head",), SIZE)
    torch.testing.assert_close(image.mean().values, values[0, 0].mean(dim=0))
    assert repr(image.mean()) == "HeatMap('dog', 6×10)"


# Masks


def test_a_mask_has_one_scale_for_the_video() -> None:
    heat = planted()
    scaled = heat.upscale().values
    expected = (scaled - scaled.min()) / (scaled.max() - scaled.min()) >= 0.6
    found = heat.mask(0.6)
    assert torch.equal(found, expected)
    assert found[5:].any()
    assert not found[:5].any()  # half as hot as the last frames
    assert heat.mask(0.6, (6, 10)).shape == (9, 6, 10)


def test_iou_of_a_video_counts_over_all_frames() -> None:
    heat = planted()
    true = torch.zeros(9, *SIZE, dtype=torch.bool)
    true[5:, 4:8, 4:8] = True
    expected = iou(heat.mask(0.6), true)
    assert heat.iou(true, 0.6) == expected > 0.7
    assert heat.iou(true.numpy(), 0.6) == expected
    assert heat.iou([Image.fromarray(mask) for mask in true.numpy()], 0.6) == expected
    assert heat.iou(heat.mask(0.5, (6, 10)), 0.5) == 1  # its shape sets the size
    with pytest.raises(ValueError, match=r"one shape, got \(9, 12, 20\) and \(8, 12, 20\)"):
        heat.iou(true[:8])
    with pytest.raises(ValueError, match=r"mask must be \(F, H, W\), got shape \(12, 20\)"):
        heat.iou(true[0])


# Overlays


def test_an_overlay_of_a_video_is_that_of_each_frame_on_one_scale() -> None:
    heat, frames = planted(), film()
    drawn = heat.overlay(frames)
    assert [frame.size for frame in drawn] == [(20, 12)] * 9
    for frame, latent in [(0, 0), (3, 1), (8, 2)]:
        assert latent_frames(9, 3)[frame] == latent
        values = heat.upscale().normalized().values[frame]
        alone = HeatMap("dog", values, (), SIZE)
        # The hottest cell of the video in a corner: the single image is on the video's scale.
        values[0, 0] = heat.upscale().normalized().values.max()
        expected = np.asarray(alone.overlay(frames[frame])).copy()
        expected[0, 0] = np.asarray(frames[frame])[0, 0]
        np.testing.assert_allclose(np.asarray(drawn[frame], dtype=int), expected, atol=1)


@pytest.mark.parametrize("kind", ["np", "pt", "bfloat16", "uint8", "channels first", "list"])
def test_frames_are_taken_as_pipelines_return_them(kind: str) -> None:
    frames = [Image.fromarray(np.asarray(frame) // 255 * 255) for frame in film()]  # exact floats
    array = np.stack([np.asarray(frame) for frame in frames])
    floats = array.astype(np.float32) / 255
    given = {
        "np": floats,
        "pt": torch.from_numpy(floats),
        "bfloat16": torch.from_numpy(floats).bfloat16(),
        "uint8": array,
        "channels first": torch.from_numpy(floats).movedim(-1, 1),
        "list": list(floats),
    }[kind]
    for drawn, expected in zip(planted().overlay(given), planted().overlay(frames), strict=True):
        assert np.array_equal(np.asarray(drawn), np.asarray(expected))


@pytest.mark.parametrize(
    ("heat", "given", "message"),
    [
        (planted(), film()[0], "video of 9 frames, got one image"),
        (planted(), film(8), "9 frames, got 8: give all"),
        (planted(), [], "9 frames, got 0"),
        (planted(), [film()], r"shape \(1, 9, 12, 20, 3\); of a batch, give one video"),
        (planted(), np.zeros((1, 9, 12, 20, 3)), r"shape \(1, 9, 12, 20, 3\)"),
        (planted(), np.zeros((9, 12, 20)), r"shape \(9, 12, 20\)"),
        (planted(), np.full((9, 12, 20, 3), 7.0), r"in \[0, 1\], got 7 to 7"),
        (planted(), np.full((9, 12, 20, 3), np.nan), r"in \[0, 1\], got nan"),
        (planted(), [*film(8), film(1, (6, 10))[0]], r"one size .*\(10, 6\), \(20, 12\)"),
        (HeatMap("dog", torch.zeros(2, 2), (), SIZE), film(), "of an image, got list"),
    ],
)
def test_pictures_that_are_not_the_maps_are_refused(heat, given, message) -> None:
    with pytest.raises(ValueError, match=message):
        heat.overlay(given)


# Files


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_an_animation_holds_each_frame_for_its_time(tmp_path, suffix: str) -> None:
    frames = [frame.resize((20, 12)) for frame in film(size=(2, 3))]  # smooth, as films are
    path = planted().save(tmp_path / f"dog.{suffix}", frames, fps=5)
    with Image.open(path) as animation:
        found = [
            # Loaded first: Pillow then knows the time of a WebP frame.
            (np.asarray(frame.convert("RGB"), dtype=float), frame.info["duration"])
            for frame in ImageSequence.Iterator(animation)
        ]
        assert animation.info["loop"] == 0
    assert [duration for _, duration in found] == [200] * 9
    for (frame, _), expected in zip(found, planted().overlay(frames), strict=True):
        assert np.abs(frame - np.asarray(expected, dtype=float)).mean() < 15  # of 255
    assert [file.name for file in tmp_path.iterdir()] == [f"dog.{suffix}"]


def test_an_mp4_without_its_writer_names_the_extra(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("daam_diffusers.video.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "daam-diffusers\[video\]"'):
        planted().save(tmp_path / "dog.mp4", film())
    assert not list(tmp_path.iterdir())


def test_an_mp4_plays_the_overlays(tmp_path) -> None:
    pytest.importorskip("imageio")
    writer = pytest.importorskip("imageio_ffmpeg")
    even = [frame.resize((64, 48)) for frame in film()]
    path = planted().save(tmp_path / "dog.mp4", even, fps=8)
    frames, seconds = writer.count_frames_and_secs(str(path))
    assert (frames, seconds) == (9, pytest.approx(9 / 8, abs=0.1))


def test_a_map_is_saved_over_its_image(tmp_path) -> None:
    heat = HeatMap("dog", planted().values[0], (), SIZE)
    image = film(1)[0]
    with Image.open(heat.save(tmp_path / "dog.png", image)) as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(heat.overlay(image)))


@pytest.mark.parametrize(
    ("heat", "name", "options", "message"),
    [
        (planted(), "dog.png", {}, r"\.webp, \.gif or \.mp4, got .*dog\.png"),
        (planted(), "dog.gif", {"fps": 0}, "fps must be a number above 0, got 0"),
        (planted(), "dog.gif", {"fps": "8"}, "fps must be a number above 0, got '8'"),
        (planted(), "dog.gif", {"fps": float("nan")}, "above 0, got nan"),
        (HeatMap("dog", torch.zeros(2, 2), (), SIZE), "dog.mp4", {}, r"\.png or the like"),
        (HeatMap("dog", torch.zeros(2, 2), (), SIZE), "dog", {}, r"\.png or the like"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path, heat, name, options, message) -> None:
    pictures = film() if heat.frames else film()[0]
    with pytest.raises(ValueError, match=message):
        heat.save(tmp_path / name, pictures, **options)
    assert not list(tmp_path.iterdir())


def test_a_video_that_fails_leaves_the_older_file(tmp_path, monkeypatch) -> None:
    path = planted().save(tmp_path / "dog.gif", film())
    before = path.read_bytes()

    def full(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(OSError, match="disk full"):
        planted().save(path, film())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["dog.gif"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        planted().save(tmp_path / "nowhere" / "dog.gif", film())


@pytest.mark.parametrize("frames", [1, 4])
def test_a_video_of_one_latent_frame_stays_a_video(tmp_path, frames: int) -> None:
    heat = planted(frames, 1)
    image = HeatMap("dog", heat.values[0], (), SIZE)
    assert torch.equal(heat.mask(), image.mask().expand(frames, -1, -1))
    drawn = heat.overlay(film(frames))
    assert isinstance(drawn, list)
    assert np.array_equal(np.asarray(drawn[0]), np.asarray(image.overlay(film(frames)[0])))
    assert heat.iou(image.mask().expand(frames, -1, -1)) == 1
    with Image.open(heat.save(tmp_path / "dog.gif", film(frames))) as saved:
        assert getattr(saved, "n_frames", 1) == frames


def test_video_needs_no_torch() -> None:
    """The page, which is made without torch, uses it."""
    import subprocess

    code = "import sys, daam_diffusers.video; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
