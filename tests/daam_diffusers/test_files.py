"""Files of heat maps: what they hold, who may read them, and what a damaged one is told."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_maps import made
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from daam_diffusers import HeatMaps
from daam_diffusers.prompt import Prompt


def described(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        return json.loads(metadata["daam_diffusers"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def rewritten(path: Path, change: Callable[[Any, dict[str, torch.Tensor]], Any]) -> Path:
    """The file with a changed description, which `change` returns or edits in place."""
    description, tensors = described(path)
    changed = change(description, tensors)
    text = json.dumps(description if changed is None else changed)
    save_file(tensors, path, {"daam_diffusers": text})
    return path


@pytest.mark.parametrize("axes", [(), ("step",), ("layer", "head", "frame")])
def test_everything_survives_saving(tmp_path, axes):
    maps = made(["a red dog", "the zebra"], axes=axes, calls={"up.0": 4, "up.1": 2})
    added = replace(maps.prompt, added=((2, 5),), cut=("cat",))
    maps = replace(maps, prompt=added)
    loaded = HeatMaps.load(maps.save(tmp_path / "maps.safetensors"))
    for name in ("prompt", "layers", "columns", "axes", "size", "image_size", "frames", "calls"):
        assert getattr(loaded, name) == getattr(maps, name)
    for name in ("start", "end"):
        assert torch.equal(loaded.special(name).values, maps.special(name).values)
    assert loaded["zebra"].frames == maps["zebra"].frames
    assert torch.equal(loaded["zebra"].values, maps["zebra"].values)


def test_files_of_the_first_format_still_load(tmp_path):
    def older(description: Any, tensors: Any) -> None:
        description["format"] = 1
        for key in ("frames", "calls"):
            del description[key]
        for key in ("start", "end", "added"):
            del description["prompt"][key]
        for token in description["prompt"]["tokens"]:
            del token["encoder"]
        for layer in description["layers"]:
            layer.pop("frames", None)

    maps = made()
    loaded = HeatMaps.load(rewritten(maps.save(tmp_path / "maps.safetensors"), older))
    assert torch.equal(loaded["dog"].values, maps["dog"].values)
    assert loaded.frames is None
    with pytest.raises(KeyError, match="no start token"):
        loaded.special("start")


def delete(*keys: str) -> Callable[[Any, Any], None]:
    def change(description: Any, tensors: Any) -> None:
        for key in keys[:-1]:
            description = description[0 if isinstance(description, list) else key]
        del (description[0] if isinstance(description, list) else description)[keys[-1]]

    return change


def put(key: str, value: Any, *inside: str) -> Callable[[Any, Any], None]:
    def change(description: Any, tensors: Any) -> None:
        for name in inside:
            description = description[name]
        (description[0] if isinstance(description, list) else description)[key] = value

    return change


def tensor(edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any, Any], None]:
    def change(description: Any, tensors: dict[str, torch.Tensor]) -> None:
        tensors["up.1"] = edit(tensors["up.1"]).contiguous()

    return change


DAMAGE = {
    "no format": (delete("format"), "format must be a number from 0, got None"),
    "a format in words": (put("format", "two"), "format must be a number"),
    "a list": (lambda description, tensors: [1], r"the description must be dict, got \[1\]"),
    "nothing": (lambda description, tensors: 0, "the description must be dict"),
    "no axes": (delete("axes"), "has no 'axes'"),
    "no prompt": (delete("prompt"), "has no 'prompt'"),
    "a prompt of words": (put("prompt", "a dog"), "prompt must be Prompt, got 'a dog'"),
    "no tokens": (delete("prompt", "tokens"), "prompt has no 'tokens'"),
    "a token without end": (delete("prompt", "tokens", "end"), r"prompt.tokens\[0\] has no 'end'"),
    "a column in words": (
        put("column", "1", "prompt", "tokens"),
        r"prompt.tokens\[0\].column must be a number from 0, got '1'",
    ),
    "a span elsewhere": (put("start", 1, "prompt", "tokens"), "is not what stands at 1 to 1"),
    "a column that is not kept": (put("column", 9, "prompt", "tokens"), r"not kept: \[9\]"),
    "a layer without grid": (delete("layers", "grid"), r"layers\[0\] has no 'grid'"),
    "a grid of three": (put("grid", [8, 12, 1], "layers"), r"layers\[0\].grid must be tuple"),
    "another grid": (put("grid", [8, 11], "layers"), r"layer up.0 must be \(6, 8, 11\), got"),
    "heads in words": (put("heads", None, "layers"), r"layers\[0\].heads must be a number"),
    "no layers": (put("layers", []), "got 0 layers"),
    "true for a number": (put("columns", [True]), r"columns\[0\] must be a number from 0, got T"),
    "negative columns": (put("columns", [-1]), r"columns\[0\] must be a number from 0, got -1"),
    "columns in disorder": (put("columns", [1, 0, 2, 3, 4]), "columns must increase"),
    "columns missing": (put("columns", [0, 1, 2, 3]), r"must be .*\(5, 8, 12\), got \(6, 8, 12\)"),
    "an unknown axis": (put("axes", ["time"]), "axes must be of"),
    "a size of one": (put("size", [8]), "size must be tuple"),
    "no size": (put("size", None), "size must be tuple"),
    "an empty size": (put("size", [0, 12]), "expected layers and sizes of at least 1"),
    "an unknown clamp": (put("clamp", "twice"), "clamp must be .*got 'twice'"),
    "provenance of numbers": (
        put("provenance", {"steps": 3}),
        r"provenance\['steps'\] must be str",
    ),
    "frames of an image": (put("frames", 5), "frames is 5, and axes are"),
    "frames in words": (put("frames", "5"), "frames must be a number"),
    "lists for words": (
        put("cut", [[[]]], "prompt"),
        r"prompt.cut\[0\] must be str",
    ),
    "no tensor": (lambda description, tensors: tensors.clear(), "it has no layer 'up.0'"),
    "a tensor of another shape": (
        tensor(lambda t: t[:, :2]),
        r"layer up.1 must be .*got \(6, 2, 6",
    ),
    "NaN": (tensor(lambda t: t.index_fill(0, torch.tensor(1), torch.nan)), "24 of 144 values NaN"),
    "infinity": (tensor(lambda t: t + torch.inf), "layer up.1 must be finite float32"),
    "whole numbers": (tensor(lambda t: t.int()), "finite float32, got torch.int32"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_a_value_error_that_names_it_and_the_damage(tmp_path, damage):
    change, message = DAMAGE[damage]
    path = rewritten(made().save(tmp_path / "maps.safetensors"), change)
    with pytest.raises(ValueError, match=rf"maps\.safetensors is damaged: .*{message}"):
        HeatMaps.load(path)


def test_files_cut_short_or_of_bad_json_are_value_errors(tmp_path):
    path = made().save(tmp_path / "maps.safetensors")
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=r"maps\.safetensors is not a safetensors file, or not"
        ):
            HeatMaps.load(path)
    for text in ("", "{", "[" * 100_000):
        save_file({"x": torch.zeros(1)}, path, {"daam_diffusers": text})
        with pytest.raises(ValueError, match=r"maps\.safetensors is damaged"):
            HeatMaps.load(path)
    made().save(path)
    with pytest.raises(ValueError, match=r"has format 99, and this version reads up to 2"):
        HeatMaps.load(rewritten(path, put("format", 99)))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_new_files(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        maps = made()
        maps.save(tmp_path / "maps.safetensors")
        maps.to_npz(tmp_path / "maps.npz")
        maps.save(tmp_path / "maps.safetensors")  # over the first
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}
    assert len(list(tmp_path.iterdir())) == 2


def test_files_count_occurrences_as_the_maps_do(tmp_path):
    maps = made("A red-haired dog, a red Dog and a red dog")
    with np.load(maps.to_npz(tmp_path / "maps.npz"), allow_pickle=False) as file:
        listed = list(zip(file["words"].tolist(), file["occurrences"].tolist(), strict=True))
        for (word, occurrence), values in zip(listed, file["values"], strict=True):
            assert np.array_equal(maps.word(word, occurrence).values.numpy(), values)
    annotations = maps.to_coco_rle()
    assert [(a["word"], a["occurrence"]) for a in annotations] == listed
    assert ("a", 1) in listed
    assert ("A", 0) in listed


def coco(
    annotations: list[dict[str, Any]], categories: dict[str, int], images: int, path: Path
) -> Any:
    from pycocotools.coco import COCO

    dataset = {
        "images": [{"id": i, "width": 48, "height": 32} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": word} for word, number in categories.items()],
    }
    path.write_text(json.dumps(dataset))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_pycocotools_loads_a_dataset_of_images_that_share_their_categories(tmp_path):
    categories: dict[str, int] = {}
    maps = made("a red dog and a red car")
    with pytest.raises(ValueError, match=r"two whole numbers >= 1.*got 3"):
        maps.to_coco_rle(size=3, categories=categories)
    assert categories == {}
    first = maps.to_coco_rle(0.5, categories=categories)
    second = made("a blue dog").to_coco_rle(
        categories=categories, image_id=2, first_id=len(first) + 1
    )
    assert [category["category_id"] for category in second] == [1, 6, 3]
    loaded = coco([*first, *second], categories, 2, tmp_path / "coco.json")
    assert len(loaded.getAnnIds()) == 10
    assert loaded.getImgIds(catIds=loaded.getCatIds(catNms=["blue"])) == [2]
    (category,) = loaded.getCatIds(catNms=["red"])
    annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=1, catIds=category, iscrowd=False))
    assert [annotation["occurrence"] for annotation in annotations] == [0, 1]
    for annotation in annotations:
        mask = maps.word("red", annotation["occurrence"]).mask(0.5).numpy()
        assert np.array_equal(loaded.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()


def test_a_video_has_run_lengths_for_each_frame(tmp_path):
    maps = made("a red dog", axes=("frame",))
    categories: dict[str, int] = {}
    annotations = maps.to_coco_rle(0.5, categories=categories)
    loaded = coco(annotations, categories, 5, tmp_path / "coco.json")
    masks = maps["dog"].mask(0.5).numpy()
    assert masks.shape == (5, 32, 48)
    dog = [a for a in annotations if a["word"] == "dog"]
    assert [(a["frame"], a["image_id"]) for a in dog] == [(i, i + 1) for i in range(5)]
    for annotation, mask in zip(dog, masks, strict=True):
        assert np.array_equal(loaded.annToMask(annotation), mask)


def test_a_suffix_of_another_format_is_refused_and_the_file_stays(tmp_path):
    maps = made()
    path = maps.save(tmp_path / "maps.safetensors")
    writers = ((maps.to_npz, path), (maps.save, "m.npz"), (maps.save, "m.HTML"))
    for write, name in (*writers, (lambda x: maps.to_html(x, Image.new("RGB", (48, 32))), path)):
        with pytest.raises(ValueError, match=r"the file to write is \.\w+, got"):
            write(name)
    assert HeatMaps.load(path).prompt == maps.prompt


def test_a_file_is_written_through_a_link(tmp_path):
    (tmp_path / "store").mkdir()
    for name, there in (("old.data", True), ("new.data", False)):
        target, link = tmp_path / "store" / name, tmp_path / f"{name}.npz"
        if there:
            target.write_text("old")
        link.symlink_to(Path("store", name))
        assert made().to_npz(link) == link
        assert link.is_symlink()
        with np.load(target) as file:
            assert str(file["prompt"]) == made().prompt.text
    assert sorted(os.listdir(tmp_path / "store")) == ["new.data", "old.data"]
    picture, link = tmp_path / "store" / "drawn", tmp_path / "drawn.png"  # the link says the format
    link.symlink_to(picture)
    made()["dog"].save(link, Image.new("RGB", (48, 32)))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_neither_file_nor_folder_is_not_replaced(tmp_path, linked):
    pipe, loop, path = tmp_path / "pipe", tmp_path / "loop", tmp_path / "maps.npz"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for there in (pipe, tmp_path / "socket"):
            path.unlink(missing_ok=True)
            if linked:
                path.symlink_to(there)
            with pytest.raises(OSError, match="is no regular file: give the path of another"):
                made().to_npz(path if linked else there)
    assert pipe.is_fifo()
    assert (tmp_path / "socket").is_socket()
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="loop is no regular file"):
        made().to_npz(loop)
    assert loop.is_symlink()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_maps_without_words_make_empty_files(tmp_path):
    maps = made(prompt=Prompt("", (), 77))
    assert maps.to_coco_rle() == []
    with np.load(maps.to_npz(tmp_path / "maps.npz")) as file:
        assert file["words"].size == 0
