"""Segmentation as the paper judges it: modes, intervals, COCO's classes, predictors, files."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_maps import made
from PIL import Image
from tiny_tokenizer import clip_tokenizer

from daam_diffusers import HeatMaps
from daam_diffusers.cli import main
from daam_diffusers.coco import class_of
from daam_diffusers.evaluation import (
    MODES,
    ClipSeg,
    Pair,
    best,
    hungarian,
    iou,
    labeled,
)
from daam_diffusers.folder import Score, evaluate

PROMPT = "a red dog and a car"


def disc(row: int, column: int, radius: int, shape: tuple[int, int] = (32, 48)) -> Any:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def save_mask(path: Path, mask: Any) -> None:
    picture = Image.new("RGBA", mask.shape[::-1])
    picture.putalpha(Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)))
    picture.save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three samples of two words each; one mask has twice the image's sides."""
    for number in range(3):
        sample = tmp_path / f"{number:06d}"
        sample.mkdir()
        generator = torch.Generator().manual_seed(number)
        alike = torch.rand(96, 8, 12, generator=generator)
        maps = made(PROMPT, self_attention=alike / alike.sum((1, 2), keepdim=True))
        maps.save(sample / "heat_maps.safetensors")
        Image.new("RGB", (48, 32), (number * 60, 90, 30)).save(sample / "image.png")
        save_mask(sample / "dog.gt.png", disc(10, 12 + number, 7))
        scale = 2 if number == 2 else 1
        save_mask(sample / "red.gt.png", disc(20, 30, 6 + number, (32 * scale, 48 * scale)))
    return tmp_path


def truths(folder: Path) -> list[tuple[HeatMaps, str, Any]]:
    found = []
    for file in sorted(folder.glob("*/*.gt.png")):
        with Image.open(file) as picture:
            mask = np.asarray(picture.getchannel("A")) > 0
        maps = HeatMaps.load(file.parent / "heat_maps.safetensors")
        found.append((maps, file.name.removesuffix(".gt.png"), mask))
    return found


def of(scores: list[Score], **wanted: str) -> Score:
    (found,) = (x for x in scores if all(getattr(x, k) == v for k, v in wanted.items()))
    return found


def test_each_mode_is_what_a_slow_reference_finds(folder: Path) -> None:
    scores = evaluate(folder, (0.3, "otsu"))
    words = ["a", "red", "dog", "and", "car"]
    for threshold in (0.3, "otsu"):
        table = [
            (word, {other: maps[other].iou(mask, threshold) for other in words})
            for maps, word, mask in truths(folder)
        ]
        own = [row[word] for word, row in table]
        assert scores.miou[str(threshold)] == pytest.approx(np.mean(own))
        assert [x[str(threshold)] for x in scores.words] == pytest.approx(own)
        found = of(scores.scores, group="open", method=str(threshold), mode="best")
        assert found.miou == pytest.approx(np.mean([max(row.values()) for _, row in table]))
        best_sum, best_mean = max(
            (sum(ious), np.mean(ious))
            for pair in itertools.permutations(words, 2)
            for ious in [[row[dict(zip(("dog", "red"), pair, strict=True))[w]] for w, row in table]]
        )
        found = of(scores.scores, group="open", method=str(threshold), mode="hungarian")
        assert found.miou * found.masks == pytest.approx(best_sum)
        assert found.miou == pytest.approx(best_mean)
    assert (scores.images, scores.masks) == (3, 6)
    assert {x.mode for x in scores.scores if x.method == "whole_image"} == {"labeled"}
    sums = [sum(own[at : at + 2]) for at in (0, 2, 4)]
    found = of(scores.scores, group="open", method=str(threshold), mode="labeled")
    half = 1.96 * np.std(sums, ddof=1) / np.sqrt(3) / 2  # of images, as each has two masks
    assert found.margin == pytest.approx(half)
    half = of(scores.scores, group="open", method="random_half")
    assert half.miou == pytest.approx(scores.baselines["random_half"])


def test_words_and_cocos_classes_have_means_of_their_own(folder: Path) -> None:
    scores = evaluate(folder, (0.4,)).scores
    own = {"red": [], "dog": []}
    for maps, word, mask in truths(folder):
        own[word].append(maps[word].iou(mask, 0.4))
    assert {(x.group, x.name) for x in scores if x.name} == {
        ("word", "red"), ("word", "dog"), ("class", "dog"),
    }  # fmt: skip
    for group, name, word in (("word", "red", "red"), ("class", "dog", "dog")):
        found = of(scores, group=group, name=name, method="0.4")
        assert (found.images, found.masks, found.mode) == (3, 3, "labeled")
        assert found.miou == pytest.approx(np.mean(own[word]))
    of_coco = of(scores, group="coco80", method="0.4", mode="labeled")
    assert of_coco.miou == pytest.approx(np.mean(own["dog"]))
    rivals = [
        max(maps[x].iou(mask, 0.4) for x in ("dog", "car"))
        for maps, word, mask in truths(folder) if word == "dog"
    ]  # fmt: skip
    found = of(scores, group="coco80", method="0.4", mode="best")
    assert found.miou == pytest.approx(np.mean(rivals))


def test_refined_maps_are_judged_where_the_file_holds_what_they_need(folder: Path) -> None:
    maps = HeatMaps.load(folder / "000001/heat_maps.safetensors")
    made(PROMPT).save(folder / "000000/heat_maps.safetensors")
    scores = evaluate(folder, (0.4,), refined=True)
    (problem,) = scores.problems
    assert "000000/heat_maps.safetensors: refined maps need" in problem
    word = scores.words[0]
    (true,) = (mask for x, name, mask in truths(folder)[2:3])
    assert (word["image"], word["word"]) == ("000001", "dog")
    assert word["0.4"] == pytest.approx(maps.refined()["dog"].iou(true, 0.4))


class Oracle:
    """Knows where the dogs are, and takes all else for nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, image: Image.Image, words: Any) -> list[Any]:
        self.seen.append((*image.size, image.getpixel((0, 0))[0]))
        number = self.seen[-1][2] // 60
        empty = np.zeros(image.size[::-1], dtype=bool)
        return [disc(10, 12 + number, 7, empty.shape) if word == "dog" else empty for word in words]


def test_any_predictor_is_judged_beside_the_maps(folder: Path) -> None:
    oracle = Oracle()
    scores = evaluate(folder, (0.4,), predictors={"oracle": oracle})
    assert [x["oracle"] for x in scores.words] == [1, 0] * 3
    assert scores.miou == {"0.4": scores.miou["0.4"], "oracle": 0.5}
    assert oracle.seen[-2:] == [(48, 32, 120), (96, 64, 120)]
    (folder / "000002/image.png").unlink()
    scores = evaluate(folder, (0.4,), predictors={"oracle": oracle})
    assert scores.images == 2
    assert "000002/image.png" in scores.problems[0]
    with pytest.raises(ValueError, match="fewer: 5 words have 1 mask"):
        evaluate(folder, (0.4,), predictors={"fewer": lambda image, words: [disc(1, 1, 1)]})


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPSeg of random weights, saved as the Hub has them."""
    from transformers import (
        CLIPSegConfig,
        CLIPSegForImageSegmentation,
        CLIPSegProcessor,
        ViTImageProcessor,
    )

    tokenizer = clip_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPSegConfig(
        text_config={
            **shape,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**shape, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        extract_layers=[1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    path = tmp_path_factory.mktemp("clipseg")
    CLIPSegForImageSegmentation(config).save_pretrained(path)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    CLIPSegProcessor(processor, tokenizer).save_pretrained(path)
    return path


def test_clipseg_is_a_predictor(clipseg: Path) -> None:
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    model = CLIPSegForImageSegmentation.from_pretrained(clipseg)
    processor = CLIPSegProcessor.from_pretrained(clipseg)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    find = ClipSeg(model, processor, 0.49)
    masks = find(image.resize((48, 32)), ["a red dog", "car"])
    assert [(mask.dtype, mask.shape) for mask in masks] == [(torch.bool, (32, 48))] * 2
    inputs = processor(text=["a red dog"], images=[image], return_tensors="pt")
    with torch.no_grad():
        middle = model(**inputs).logits.reshape(32, 32).sigmoid()
    (alone,) = ClipSeg(model, processor, float(middle.median()))(image, ["a red dog"])
    assert torch.equal(alone, middle >= float(middle.median()))
    assert 0.4 < alone.float().mean() < 0.6


def test_the_command_writes_every_mean_as_json_and_csv(
    folder: Path, clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "scores.json", tmp_path / "scores.csv"]
    asked = [item for file in files for item in ("--out", str(file))]
    assert main(["evaluate", str(folder), "--clipseg", str(clipseg), *asked]) == 0
    found = json.loads(files[0].read_text(encoding="utf-8"))
    assert list(found["miou"]) == ["0.3", "0.4", "0.5", "otsu", "CLIPSeg"]
    with files[1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["scores"])
    for row, score in zip(rows, found["scores"], strict=True):
        assert row == {key: "" if x is None else str(x) for key, x in score.items()}
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("CLIPSeg", "hungarian", "whole image", "dog (COCO)"))
    score = of([Score(**x) for x in found["scores"]], group="open", method="0.4", mode="labeled")
    assert f"{score.miou:.3f} ± {score.margin:.3f}" in shown


NAMES = ["dog.gt.png", "DOG.GT.PNG", "image.png", "heat_maps.safetensors", "../generation.json"]


@pytest.mark.parametrize("name", NAMES)
def test_scores_replace_nothing_that_is_judged(
    folder: Path, clipseg: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    read = folder / "000001" / name
    (folder / "generation.json").write_text("{}")
    if not read.exists():
        (folder / "000001" / "dog.gt.png").rename(read)
    (folder / "link.csv").symlink_to(read)
    before = read.read_bytes()
    for out in (read, folder / "000002" / ".." / "000001" / name, folder / "link.csv"):
        assert main(["evaluate", str(folder), "--out", str(out)]) == 2
        assert f"--out {out} is read by this command" in capsys.readouterr().err
    hard = folder / "hard.csv"
    hard.hardlink_to(read)
    assert main(["evaluate", str(folder), "--out", str(hard)]) == 0
    assert read.read_bytes() == before
    config = clipseg / "config.json"
    arguments = ["evaluate", str(folder), "--clipseg", str(clipseg), "--out", str(config)]
    assert main(arguments) == 2
    assert "config.json is read by this command" in capsys.readouterr().err
    beside = folder / "000001" / "scores.csv"
    for _ in range(2):  # a file of ours is written again
        assert main(["evaluate", str(folder), "--out", str(beside)]) == 0


@pytest.mark.parametrize("threshold", ["1.5", "-0.1", "nan", "half"])
def test_a_threshold_is_a_share_or_otsu(
    folder: Path, threshold: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(folder), f"--threshold={threshold}"]) == 2
    error = capsys.readouterr().err
    assert "threshold" in error
    assert threshold in error


def test_hidden_folders_do_not_count_but_for_one_that_is_asked_for(folder: Path) -> None:
    hidden = folder / ".hidden"
    (hidden / "trash").mkdir(parents=True)
    (folder / "000001").rename(hidden / "trash" / "000001")
    shutil.copytree(folder / "000000", hidden / "masks")
    (hidden / "masks/heat_maps.safetensors").unlink()
    scores = evaluate(folder, (0.4,))
    assert (scores.images, scores.problems) == (2, [])
    assert evaluate(hidden, (0.4,)).images == 1
    assert evaluate(hidden / "trash" / "000001", (0.4,)).images == 1


def test_links_to_folders_are_followed_once(folder: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "000002").rename(elsewhere / "000002")
    for name in ("000002", "again"):
        (folder / name).symlink_to(elsewhere / "000002")
    (folder / "000001" / "around").symlink_to(folder)
    (elsewhere / "000002" / ".hidden").symlink_to(folder / "000001")
    scores = evaluate(folder, (0.4,))
    assert (scores.images, scores.problems) == (3, [])
    assert [word["image"] for word in scores.words[4:]] == ["000002", "000002"]


def test_a_folder_that_cannot_be_read_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if os.fspath(path).endswith("000001"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="000001"):
        evaluate(folder, (0.4,))


@pytest.mark.parametrize("name", ["0.4", "otsu", "whole_image", "word"])
def test_a_predictor_replaces_no_other_column(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"predictors need other names than {name}"):
        evaluate(folder, (0.4, "otsu"), predictors={name: Oracle()})


def test_a_word_has_one_mask_and_its_suffix_any_letters(folder: Path) -> None:
    (folder / "000000/dog.gt.png").rename(folder / "000000/dog.GT.PNG")
    shutil.copy(folder / "000001/dog.gt.png", folder / "000001/Dog.gt.png")
    scores = evaluate(folder, (0.4,))
    assert scores.masks == 6
    (problem,) = scores.problems
    assert "000001/dog.gt.png: another mask beside it is of the same word" in problem


def test_a_mode_says_how_many_masks_it_is_over(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for maps, name in ((made(PROMPT), "000000"), (made(PROMPT), "000001"), (made(), "000002")):
        maps.save(folder / name / "heat_maps.safetensors")
        if "car" in maps:  # "dog" is assigned to "car", which the third prompt lacks
            save_mask(folder / name / "dog.gt.png", maps["car"].mask("otsu").numpy())
    assert main(["evaluate", str(folder), "--threshold", "OTSU"]) == 0
    shown = capsys.readouterr().out
    scores = evaluate(folder, ("otsu",))
    for mode in MODES:
        count = of(scores.scores, group="open", method="otsu", mode=mode).masks
        assert re.search(rf"otsu\W+{mode}\W+{count}\b", shown)
        assert (count == scores.masks) == (mode != "hungarian")


def test_maps_of_a_video_are_no_maps_of_an_image(folder: Path) -> None:
    made(PROMPT, axes=("frame",)).save(folder / "000001/heat_maps.safetensors")
    (problem,) = evaluate(folder, (0.4,)).problems
    assert "000001/heat_maps.safetensors is of a video" in problem


# Pure logic

scored = st.lists(
    st.builds(
        Pair,
        st.integers(0, 4),
        st.sampled_from("abc"),
        st.sampled_from("abcd"),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda pair: pair[:3],
)


@given(scored)
def test_assignment_is_the_best_of_all(pairs: list[Pair]) -> None:
    true = sorted({pair.true for pair in pairs})
    ways = itertools.permutations("abcd", len(true))
    sums = [
        sum(pair.iou for pair in pairs if chosen[pair.true] == pair.predicted)
        for chosen in (dict(zip(true, way, strict=True)) for way in ways)
    ]
    found = hungarian(pairs)
    assert sum(pair.iou for pair in found) == pytest.approx(max(sums))
    assert len({(x.true, x.predicted) for x in found}) == len({x.true for x in found})
    assert len({(x.true, x.predicted) for x in found}) == len({x.predicted for x in found})


@given(scored)
def test_the_best_prediction_is_at_least_the_words_own(pairs: list[Pair]) -> None:
    top = {(x.image, x.true): x.iou for x in best(pairs)}
    assert len(top) == len(best(pairs)) == len({(x.image, x.true) for x in pairs})
    assert all(top[pair.image, pair.true] >= pair.iou for pair in pairs)
    assert all(pair.true == pair.predicted for pair in labeled(pairs))


def test_no_pairs_are_no_scores() -> None:
    assert [mode([]) for mode in MODES.values()] == [[], [], []]


def test_classes_are_named_by_their_words() -> None:
    classes = {class_of(x) for x in ("Person", "men", "kids", "traffic  lights", "knives")}
    assert classes == {"person", "traffic light", "knife"}
    assert class_of("skis") == "skis"
    assert class_of("bus") == class_of("buses") == "bus"
    assert (class_of("baby"), class_of("motor bikes")) == ("person", "motorcycle")
    none = (
        "cares",
        "house",
        "red",
        "carpet",
        "dogma",
        "s",
        "",
        "ties in",
        "businesses",
        "glass",
        "table",
    )
    assert [class_of(word) for word in none] == [None] * len(none)


def test_iou_of_a_predictors_mask_needs_the_images_shape() -> None:
    with pytest.raises(ValueError, match="masks must have one shape"):
        iou(disc(1, 1, 1), disc(1, 1, 1, (48, 32)))
