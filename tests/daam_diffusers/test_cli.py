"""The command line as a stranger meets it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import daam_diffusers
from daam_diffusers import HeatMaps, commands
from daam_diffusers.cli import main
from daam_diffusers.folder import evaluate, read_mask


@pytest.fixture(scope="session")
def model(build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder on disk."""
    folder = tmp_path_factory.mktemp("model")
    build["sd"]().save_pretrained(folder)
    return folder


def save_mask(path: Path, mask: Any) -> None:
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)


@pytest.fixture
def generated(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """What `generate` writes."""
    out = tmp_path / "new" / "out"
    assert run(model, "--out", str(out), "--seed", "3") == 0
    return out


def run(model: Path, *extra: str, prompt: str = "a red dog / beside a car") -> int:
    arguments = ["generate", "--model", str(model), "--prompt", prompt, "--steps", "2"]
    return main([*arguments, "--height", "32", "--width", "48", *extra])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_generate_writes_image_maps_overlays_and_report(generated):
    with Image.open(generated / "image.png") as image:
        assert image.size == (48, 32)
    maps = HeatMaps.load(generated / "heat_maps.safetensors")
    assert maps.prompt.text == "a red dog / beside a car"
    assert maps.provenance["steps"] == "2"
    assert names(generated / "overlays") == [
        "01-a-2.png", "01-a.png", "02-red.png", "03-dog.png", "04-_.png", "05-beside.png",
        "06-car.png",
    ]  # fmt: skip
    with Image.open(generated / "image.png") as image:
        for name, word in (("01-a-2", maps.word("a", 1)), ("03-dog", maps["dog"])):
            with Image.open(generated / "overlays" / f"{name}.png") as overlay:
                assert np.array_equal(np.asarray(overlay), np.asarray(word.overlay(image)))
    assert "dog" in (generated / "report.html").read_text(encoding="utf-8")
    assert names(generated) == ["heat_maps.safetensors", "image.png", "overlays", "report.html"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in generated.rglob("*.*")}
    assert modes == {0o666 & ~current_umask()}


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_files_say_what_the_command_line_was_asked_for(model, tmp_path):
    asked = ["--seed", "5", "--negative-prompt", "a house", "--dtype", "bfloat16"]
    assert run(model, "--out", str(tmp_path), *asked, "--words", "dog") == 0
    provenance = HeatMaps.load(tmp_path / "heat_maps.safetensors").provenance
    assert provenance["seed"] == "5"
    assert provenance["negative_prompt"] == "a house"
    assert provenance["dtype"] == "bfloat16"
    assert provenance["scheduler"] == "DDIMScheduler"
    assert "a house" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_set_holds_what_single_runs_write(model, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a red dog", "id": "dog"}\n{"prompt": "a car", "seed": 9}\n')
    size = ["--steps", "2", "--height", "32", "--width", "48"]
    asked = ["generate", "--model", str(model), "--prompts", str(rows), *size, "--seed", "5"]
    assert main([*asked, "--out", str(tmp_path / "set")]) == 0
    assert "2 new of 2 samples" in capsys.readouterr().out
    assert names(tmp_path / "set") == ["000001", "dog", "generation.json"]
    for name, prompt, seed in (("dog", "a red dog", "5"), ("000001", "a car", "9")):
        one = tmp_path / name
        assert run(model, "--out", str(one), "--seed", seed, prompt=prompt) == 0
        sample = tmp_path / "set" / name
        assert names(sample) == ["heat_maps.safetensors", "image.png"]
        for file in names(sample):
            assert (sample / file).read_bytes() == (one / file).read_bytes()
    again = [x if x != str(model) else os.path.relpath(model) + "/" for x in asked]
    assert main([*again, "--out", str(tmp_path / "set")]) == 0
    assert "0 new of 2 samples" in capsys.readouterr().out
    assert main([*asked, "--out", str(tmp_path / "set"), "--steps", "3"]) == 2
    assert "set was made otherwise (steps was 2, is 3)" in capsys.readouterr().err


def test_overlays_are_of_refined_maps_and_the_file_of_plain_ones(model, tmp_path):
    assert run(model, "--out", str(tmp_path), "--refine", "--words", "dog") == 0
    maps = HeatMaps.load(tmp_path / "heat_maps.safetensors")
    with (
        Image.open(tmp_path / "image.png") as image,
        Image.open(tmp_path / "overlays/01-dog.png") as shown,
    ):
        expected = maps.refined()["dog"].overlay(image)
        assert np.array_equal(np.asarray(shown), np.asarray(expected))
    assert "power 3, passes 1" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_words_in_other_letters_have_overlays_of_their_own(model, tmp_path):
    prompt = "A red-haired Dog, a red dog's house and a red dog"
    assert (
        run(model, "--out", str(tmp_path), "--words", "dog", "--words", "red", prompt=prompt) == 0
    )
    assert names(tmp_path / "overlays") == ["01-dog.png", "02-red-2.png", "02-red.png"]
    maps = HeatMaps.load(tmp_path / "heat_maps.safetensors")
    with (
        Image.open(tmp_path / "image.png") as image,
        Image.open(tmp_path / "overlays/01-dog.png") as shown,
    ):
        assert maps.prompt.find("dog").start == 46
        assert np.array_equal(np.asarray(shown), np.asarray(maps["dog"].overlay(image)))


def test_words_beyond_the_window_are_warned_of_in_a_line_each(model, tmp_path, capsys):
    prompt = " ".join(["red"] * 75 + ["dog"] * 40)
    assert (
        run(model, "--out", str(tmp_path), "--words", "dog", "--words", "red", prompt=prompt) == 0
    )
    warned = [x for x in capsys.readouterr().err.splitlines() if x.startswith("daam-diffusers: ")]
    assert len(warned) == 2
    assert "it never saw: 'dog', 'dog', 'dog', 'dog', 'dog' and 35 more" in warned[0]
    assert "'dog' lies beyond the text encoder's window" in warned[1]
    assert len(names(tmp_path / "overlays")) == 75


def test_a_variant_and_loras_are_loaded(build, tmp_path):
    from peft import LoraConfig

    pipe = build["sd"]()
    pipe.save_pretrained(tmp_path / "model", variant="fp16")
    assert run(tmp_path / "model", "--out", str(tmp_path / "plain"), "--variant", "fp16") == 0
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(pipe.unet)
    pipe.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    files = ["--lora", str(tmp_path / "lora"), "--variant", "fp16"]
    assert run(tmp_path / "model", "--out", str(tmp_path / "changed"), *files) == 0
    (file,) = (tmp_path / "lora").iterdir()
    files = ["--lora", str(file), "--variant", "fp16"]
    assert run(tmp_path / "model", "--out", str(tmp_path / "again"), *files) == 0
    plain, changed, again = (
        (tmp_path / name / "image.png").read_bytes() for name in ("plain", "changed", "again")
    )
    assert plain != changed
    assert changed == again
    maps = HeatMaps.load(tmp_path / "again/heat_maps.safetensors")
    assert maps.provenance["lora"] == str(file)


def test_a_video_is_written_with_overlays_that_play(tmp_path):
    from tiny_video import animatediff

    animatediff().save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    prompt = "a red dog and a car"
    asked = ["--out", str(out), "--frames", "4", "--words", "a", "--words", "dog"]
    assert run(tmp_path / "model", *asked, prompt=prompt) == 0
    assert names(out / "overlays") == ["01-a-2.webp", "01-a.webp", "02-dog.webp"]
    maps = HeatMaps.load(out / "heat_maps.safetensors")
    assert maps.frames == 4
    with Image.open(out / "overlays/02-dog.webp") as overlay:
        assert (overlay.size, overlay.is_animated) == ((48, 32), True)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f'{{"prompt": "{prompt}"}}\n')
    asked = ["--prompts", str(rows), "--out", str(tmp_path / "set"), "--frames", "4"]
    size = ["--steps", "2", "--height", "32", "--width", "48"]
    assert main(["generate", "--model", str(tmp_path / "model"), *asked, *size]) == 0
    sample = tmp_path / "set/000000"
    assert (sample / "video.webp").read_bytes() == (out / "video.webp").read_bytes()
    assert (out / "report.html").read_text("utf-8").count("data:image/webp") >= 4


def test_report_of_a_video_takes_the_animated_picture_it_was_written_as(tmp_path, capsys):
    from made_maps import made

    from daam_diffusers import video

    maps = made("a red dog and a car", axes=("frame",))  # of 5 frames
    maps.save(tmp_path / "maps.safetensors")
    levels = (0, 30, 60, 90, 200)
    drawn = [Image.new("RGB", (48, 32), (level,) * 3) for level in levels]
    video.save(tmp_path / "video.webp", drawn, 8)
    page = str(tmp_path / "page.html")
    for name in ("video.webp", "maps.safetensors", "one.png"):
        Image.new("RGB", (48, 32)).save(tmp_path / "one.png")
        files = [str(tmp_path / "maps.safetensors"), str(tmp_path / name)]
        assert main(["report", *files, "--out", page]) == (0 if name == "video.webp" else 2)
    error = capsys.readouterr().err
    assert "cannot identify image file" in error
    assert "one.png: the map is of a video of 5 frames, got 1" in error


def test_the_same_seed_makes_the_same_files_and_another_does_not(generated, model, tmp_path):
    for seed, same in (("3", True), ("4", False)):
        out = tmp_path / seed
        assert run(model, "--out", str(out), "--seed", seed) == 0
        equal = (out / "image.png").read_bytes() == (generated / "image.png").read_bytes()
        assert equal == same


def test_chosen_words_only_and_groups_of_words(model, tmp_path, capsys):
    assert run(model, "--out", str(tmp_path), "--words", "Red dog", "--words", "car") == 0
    assert names(tmp_path / "overlays") == ["01-red_dog.png", "02-car.png"]
    assert "red dog" in capsys.readouterr().out
    (tmp_path / "overlays" / "mine.png").touch()
    assert run(model, "--out", str(tmp_path), "--words", "car") == 0
    assert names(tmp_path / "overlays") == ["01-car.png", "mine.png"]


def test_report_makes_a_page_from_saved_maps(generated, tmp_path, capsys):
    page = tmp_path / "page.html"
    files = [str(generated / "heat_maps.safetensors"), str(generated / "image.png")]
    assert main(["report", *files, "--out", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == (generated / "report.html").read_text("utf-8")
    for file in files:
        before = Path(file).read_bytes()
        (tmp_path / "link.html").unlink(missing_ok=True)
        (tmp_path / "link.html").symlink_to(file)
        assert main(["report", *files, "--out", str(tmp_path / "link.html")]) == 2
        assert "is read by this command" in capsys.readouterr().err
        assert main(["report", *files, "--out", file]) == 2
        assert "is read by this command" in capsys.readouterr().err
        assert Path(file).read_bytes() == before


def test_evaluate_scores_masks_beside_maps(generated, tmp_path, capsys):
    maps = HeatMaps.load(generated / "heat_maps.safetensors")
    mask = maps["dog"].mask(0.4).numpy()
    alpha = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    picture = Image.new("RGBA", alpha.size)
    picture.putalpha(alpha)
    picture.save(generated / "dog.gt.png")
    scores = tmp_path / "scores.json"

    assert main(["evaluate", str(tmp_path), "--threshold", "0.4", "--out", str(scores)]) == 0
    found = json.loads(scores.read_text())
    assert found["miou"] == {"0.4": 1.0}
    assert found["baselines"]["whole_image"] == pytest.approx(mask.mean())
    assert 0 < found["baselines"]["random_half"] < 0.6
    (word,) = found["words"]
    assert (word["word"], word["image"]) == ("dog", "new/out")
    assert "1.000" in capsys.readouterr().out


def test_evaluate_names_masks_that_cannot_be_judged_and_goes_on(tmp_path, capsys):
    from made_maps import made

    maps = made("a red dog and a car")
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        maps.save(tmp_path / name / "heat_maps.safetensors")
    save_mask(tmp_path / "first/dog.gt.png", maps["dog"].mask(0.4))
    save_mask(tmp_path / "first/cat.gt.png", maps["dog"].mask(0.4))
    (tmp_path / "first/car.gt.png").write_text("no picture")
    whole = (tmp_path / "first/dog.gt.png").read_bytes()
    (tmp_path / "second/red.gt.png").write_bytes(whole[:-40])
    (tmp_path / "second/car.gt.png").mkdir()
    save_mask(tmp_path / "second/a.gt.png", np.zeros((32, 48)))
    save_mask(tmp_path / "second/dog.gt.png", np.ones((48, 32)))
    (tmp_path / "fourth").mkdir()
    save_mask(tmp_path / "fourth/dog.gt.png", maps["dog"].mask(0.4))
    (tmp_path / "third/car.gt.png").write_bytes(whole)
    (tmp_path / "third/heat_maps.safetensors").write_bytes(b"damaged")

    scores = tmp_path / "scores.json"
    assert main(["evaluate", str(tmp_path), "--threshold", "0.4", "--out", str(scores)]) == 1
    captured = capsys.readouterr()
    assert "1 image(s), 1 mask(s)" in captured.out
    warned = [x for x in captured.err.splitlines() if x.startswith("daam-diffusers: warning: ")]
    wrong = [
        "fourth has masks and no heat_maps",
        "car.gt.png is not a picture",
        "cat.gt.png: 'cat' is not in the prompt",
        "second/a.gt.png is empty",
        "second/car.gt.png",
        "second/dog.gt.png has 48×32 pixels",
        "second/red.gt.png",
        "third/heat_maps.safetensors is not",
    ]
    assert len(warned) == len(wrong)
    assert all(part in line for part, line in zip(wrong, warned, strict=True))
    found = json.loads(scores.read_text())
    assert found["miou"] == {"0.4": 1.0}
    assert len(found["problems"]) == 8

    (tmp_path / "first/dog.gt.png").unlink()
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "no mask can be judged: " in capsys.readouterr().err
    with pytest.raises(ValueError, match="and 7 more problems"):
        evaluate(tmp_path, (0.4,))


def test_masks_are_read_from_alpha_or_else_from_light(tmp_path):
    gray = Image.fromarray(np.array([[0, 255], [127, 128]], dtype=np.uint8))
    gray.save(tmp_path / "gray.png")
    assert read_mask(tmp_path / "gray.png").tolist() == [[False, True], [False, True]]
    clear = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    clear.save(tmp_path / "clear.png")
    assert not read_mask(tmp_path / "clear.png").any()
    clear.putalpha(Image.fromarray(np.array([[0, 255], [1, 128]], dtype=np.uint8)))
    clear.save(tmp_path / "feathered.png")
    assert read_mask(tmp_path / "feathered.png").tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "I;16"])
def test_masks_are_read_from_one_color_that_is_transparent(tmp_path, mode):
    gray = np.array([[0, 7], [255, 0]], dtype=np.uint16 if mode == "I;16" else np.uint8)
    picture = Image.fromarray(gray) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    picture.save(tmp_path / "mask.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, True], [True, False]]


def test_masks_of_16_bits_are_read_from_their_light(tmp_path):
    gray = np.array([[0, 300], [2**15 - 1, 2**15]], dtype=np.uint16)
    Image.fromarray(gray).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_mask_that_is_transparent_nowhere_is_refused(tmp_path, mode):
    gray = Image.fromarray(np.array([[0, 255], [0, 255]], dtype=np.uint8))
    gray.convert(mode).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"mask\.png has an alpha channel that marks every pixel"):
        read_mask(tmp_path / "mask.png")


def bad(model: Path, tmp: Path) -> dict[str, tuple[list[str], str]]:
    """Mistakes, and what the one line that answers them must name."""
    generate = ["generate", "--prompt", "a dog", "--out", str(tmp / "out")]
    rows = ["--prompts", str(tmp / "rows.jsonl")]
    of_set = ["generate", "--model", str(model), "--out", str(tmp / "out"), *rows]
    (tmp / "rows.jsonl").write_text('{"prompt": "a dog"}\n{"prompt": ""}\n')
    (tmp / "empty").mkdir()
    (tmp / "text.png").write_text("no picture")
    (tmp / "lora").mkdir()
    lora = str(tmp / "lora" / "heat_maps.safetensors")
    Path(lora).write_text("weights")
    os.mkfifo(tmp / "pipe")
    return {
        "unknown flag": ([*generate, "--model", str(model), "--sed", "1"], "--sed"),
        "no prompt": (["generate", "--model", str(model), "--out", str(tmp / "out")], "--prompt"),
        "two kinds of prompts": ([*generate, "--model", str(model), *rows], "one of them"),
        "words of a set": ([*of_set, "--words", "dog"], "--words goes with --prompt"),
        "a bad row": (of_set, 'rows.jsonl:2: "prompt" must be a text'),
        "no rows": ([*of_set, "--prompts", str(tmp / "nowhere.jsonl")], "nowhere.jsonl"),
        "no CLIPSeg": (["evaluate", str(tmp), "--clipseg", str(tmp / "empty")], "empty"),
        "bad threshold": (
            ["evaluate", str(tmp), "--threshold", "half"],
            "'--threshold': a number from 0 to 1 or otsu, got 'half'",
        ),
        "study to a file": (
            ["study", str(tmp), "--spacy", "none", "--out", str(tmp / "text.png" / "deeper")],
            "text.png is a file: give the path of a folder",
        ),
        "unknown command": (["generat"], "generat"),
        "bad number": ([*generate, "--model", str(model), "--steps", "0"], "--steps"),
        "missing folder": ([*generate, "--model", str(tmp / "nowhere")], "nowhere"),
        "no pipeline": ([*generate, "--model", str(tmp / "empty")], "model_index.json"),
        "hub id offline": ([*generate, "--model", "nobody/nothing"], "nobody/nothing"),
        "unknown word": ([*generate, "--model", str(model), "--words", "cat"], "'cat'"),
        "bad device": (
            [*generate, "--model", str(model), "--device", "tpu9"],
            "cuda:1, mps or auto, got 'tpu9'",
        ),
        "no out": ([*generate[:-1], "", "--model", str(model)], "--out is empty"),
        "a huge seed": ([*generate, "--model", str(model), "--seed", str(2**63)], "--seed"),
        "no guidance": (
            [*generate, "--model", str(model), "--guidance-scale", "nan"],
            "--guidance-scale must be a finite number, got nan",
        ),
        "swapped": (["report", "i.png", "m.safetensors"], "the file of maps comes first"),
        "another format": (["report", "m", "i", "--out", "m.npz"], "error: the file to write"),
        "report of a folder": (["report", str(tmp), "i.png"], "is a folder"),
        "bad dtype": ([*generate, "--model", str(model), "--dtype", "int8"], "int8"),
        "half a size": ([*generate, "--model", str(model), "--height", "32"], "--width"),
        "out is a file": ([*generate[:-1], str(tmp / "text.png"), "--model", str(model)], "text"),
        "offload on a CPU": (
            [*generate, "--model", str(model), "--offload", "model", "--device", "cpu"],
            "--offload model",
        ),
        "an option it lacks": ([*generate, "--model", str(model), "--frames", "9"], "num_frames"),
        "no variant": ([*generate, "--model", str(model), "--variant", "fp8"], "fp8"),
        "no lora": ([*generate, "--model", str(model), "--lora", str(tmp / "empty")], "empty"),
        "close word": ([*generate, "--model", str(model), "--words", "dgo"], "Did you mean 'dog'?"),
        "report to a folder": (["report", "x", "y", "--out", str(tmp / "empty")], "is a folder"),
        "scores to a folder": (["evaluate", str(tmp), "--out", str(tmp / "empty")], "is a folder"),
        "scores to nowhere": (["evaluate", str(tmp), "--out", str(tmp / "n" / "s")], "no folder"),
        "scores below a file": (
            ["evaluate", str(tmp), "--out", str(tmp / "text.png" / "s")],
            "text.png is a file",
        ),
        "report to a pipe": (["report", "x", "y", "--out", str(tmp / "pipe")], "no regular file"),
        "scores to a pipe": (["evaluate", str(tmp), "--out", str(tmp / "pipe")], "no regular file"),
        "set into its rows": (
            [*of_set[:-3], str(tmp), "--prompts", str(tmp / "generation.json")],
            "generation.json is read by this command",
        ),
        "image into its LoRA": (
            [*generate[:-1], str(tmp / "lora"), "--model", "x", "--lora", lora],
            "heat_maps.safetensors is read by this command",
        ),
        "no maps": (["report", str(tmp / "no.safetensors"), str(tmp / "text.png")], "no.safet"),
        "no evaluation": (["evaluate", str(tmp / "nowhere")], "nowhere"),
        "nothing to evaluate": (["evaluate", str(tmp / "empty")], "heat_maps.safetensors"),
    }


MISTAKES = [
    "unknown flag", "no prompt", "half a size", "unknown command", "bad number",
    "missing folder", "no pipeline",
    "hub id offline", "unknown word", "bad device", "bad dtype", "out is a file",
    "no maps", "no evaluation", "nothing to evaluate", "offload on a CPU", "an option it lacks",
    "no variant", "no lora", "close word", "report to a folder", "scores to a folder",
    "scores to nowhere", "no out", "a huge seed", "no guidance", "swapped", "report of a folder",
    "another format", "two kinds of prompts", "words of a set", "a bad row", "no rows",
    "bad threshold", "no CLIPSeg", "study to a file", "scores below a file", "report to a pipe",
    "scores to a pipe", "set into its rows", "image into its LoRA",
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(model, tmp_path, capsys, mistake):
    arguments, named = bad(model, tmp_path)[mistake]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("daam-diffusers")]
    assert len(lines) == 1
    assert named in lines[0]
    assert lines[0].startswith("daam-diffusers: error: ")
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


def test_a_size_that_the_pipeline_refuses_is_its_own_words_in_one_line(model, tmp_path, capsys):
    assert run(model, "--out", str(tmp_path / "out"), "--height", "33") == 2
    assert "divisible by 8 but are 33 and 48" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_picture_that_is_none_and_a_mask_of_a_word_that_is_not_there(generated, capsys):
    maps = generated / "heat_maps.safetensors"
    (generated / "cat.gt.png").write_text("no picture")
    assert main(["report", str(maps), str(generated / "cat.gt.png")]) == 2
    assert "cat.gt.png: cannot identify image file" in capsys.readouterr().err
    assert main(["evaluate", str(generated)]) == 2
    assert "'cat' is not in the prompt" in capsys.readouterr().err


def test_the_installed_script_fails_without_a_traceback(tmp_path):
    script = Path(sys.executable).with_name("daam-diffusers")
    done = subprocess.run(
        [script, "evaluate", tmp_path / "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"daam-diffusers: error: no such folder: {tmp_path / 'nowhere'}"
    ]


def test_the_first_lines_are_not_of_other_libraries(model, tmp_path):
    script = Path(sys.executable).with_name("daam-diffusers")
    asked = ["--model", model, "--prompt", "a dog", "--out", tmp_path / "out", "--steps", "1"]
    done = subprocess.run(
        [script, "generate", *asked, "--height", "16", "--width", "16"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "overlay" in done.stdout.splitlines()[1]
    bars = ("it/s", "s/it", "?it")  # of progress
    lines = done.stderr.splitlines()
    assert not "".join(line for line in lines if not any(bar in line for bar in bars))


@pytest.mark.parametrize("way", ["model", "sequential"])
def test_offloading_is_left_to_the_pipeline(model, tmp_path, monkeypatch, way):
    import torch
    from diffusers import StableDiffusionPipeline

    asked = []
    monkeypatch.setattr(commands, "_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(
        StableDiffusionPipeline, f"enable_{way}_cpu_offload",
        lambda self, device: asked.append(device),
    )  # fmt: skip
    out = str(tmp_path / "out")
    assert run(model, "--out", out, "--offload", way, "--dtype", "float32") == 0
    assert asked == [torch.device("meta")]


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"daam-diffusers {daam_diffusers.__version__}\n"


def test_the_package_and_its_help_import_neither_torch_nor_diffusers():
    code = (
        "import sys, daam_diffusers, daam_diffusers.cli as cli; assert cli.main(['--help']) == 0;"
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib', 'jinja2'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_is_there():
    assert all(getattr(daam_diffusers, name) is not None for name in daam_diffusers.__all__)
    assert set(daam_diffusers.__all__) < set(dir(daam_diffusers))
    with pytest.raises(AttributeError, match="no attribute 'tracr'"):
        daam_diffusers.tracr  # noqa: B018


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("generate", "report", "evaluate"))


def test_without_its_extra_the_command_names_the_pip_line(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "daam_diffusers.commands", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["--help"]) == 2
    assert 'pip install "daam-diffusers[cli]"' in capsys.readouterr().err
