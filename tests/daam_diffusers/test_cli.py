"""The command line as a stranger meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import daam_diffusers
from daam_diffusers import HeatMaps
from daam_diffusers.cli import main
from daam_diffusers.folder import read_mask


@pytest.fixture(scope="session")
def model(build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder on disk."""
    folder = tmp_path_factory.mktemp("model")
    build["sd"]().save_pretrained(folder)
    return folder


@pytest.fixture
def generated(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """What `generate` writes."""
    out = tmp_path / "new" / "out"
    assert run(model, "--out", str(out), "--seed", "3") == 0
    return out


def run(model: Path, *extra: str, prompt: str = "a red dog / beside a car") -> int:
    arguments = ["generate", "--model", str(model), "--prompt", prompt, "--steps", "2"]
    return main([*arguments, "--height", "32", "--width", "48", *extra])


def test_generate_writes_image_maps_overlays_and_report(generated):
    with Image.open(generated / "image.png") as image:
        assert image.size == (48, 32)
    maps = HeatMaps.load(generated / "heat_maps.safetensors")
    assert maps.prompt.text == "a red dog / beside a car"
    assert maps.provenance["steps"] == "2"
    names = sorted(path.name for path in (generated / "overlays").iterdir())
    assert names == [
        "01-a.png", "02-red.png", "03-dog.png", "04-_.png", "05-beside.png", "06-car.png",
    ]  # fmt: skip
    assert "dog" in (generated / "report.html").read_text(encoding="utf-8")
    assert {path.name for path in generated.iterdir()} == {
        "image.png", "heat_maps.safetensors", "overlays", "report.html",
    }  # fmt: skip


def test_the_same_seed_makes_the_same_files_and_another_does_not(generated, model, tmp_path):
    for seed, same in (("3", True), ("4", False)):
        out = tmp_path / seed
        assert run(model, "--out", str(out), "--seed", seed) == 0
        equal = (out / "image.png").read_bytes() == (generated / "image.png").read_bytes()
        assert equal == same


def test_chosen_words_only_and_groups_of_words(model, tmp_path, capsys):
    assert run(model, "--out", str(tmp_path), "--words", "Red dog", "--words", "car") == 0
    names = sorted(path.name for path in (tmp_path / "overlays").iterdir())
    assert names == ["01-red_dog.png", "02-car.png"]
    assert "red dog" in capsys.readouterr().out


def test_report_makes_a_page_from_saved_maps(generated, tmp_path, capsys):
    page = tmp_path / "page.html"
    files = [str(generated / "heat_maps.safetensors"), str(generated / "image.png")]
    assert main(["report", *files, "--out", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == (generated / "report.html").read_text("utf-8")


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


def test_masks_are_read_from_alpha_or_else_from_light(tmp_path):
    grey = Image.fromarray(np.array([[0, 255], [127, 128]], dtype=np.uint8))
    grey.save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png").tolist() == [[False, True], [False, True]]
    clear = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    clear.save(tmp_path / "clear.png")
    assert not read_mask(tmp_path / "clear.png").any()


def bad(model: Path, tmp: Path) -> dict[str, tuple[list[str], str]]:
    """Mistakes, and what the one line that answers them must name."""
    generate = ["generate", "--prompt", "a dog", "--out", str(tmp / "out")]
    (tmp / "empty").mkdir()
    (tmp / "text.png").write_text("no picture")
    return {
        "unknown flag": ([*generate, "--model", str(model), "--sed", "1"], "--sed"),
        "no prompt": (["generate", "--model", str(model)], "--prompt"),
        "unknown command": (["generat"], "generat"),
        "bad number": ([*generate, "--model", str(model), "--steps", "0"], "--steps"),
        "missing folder": ([*generate, "--model", str(tmp / "nowhere")], "nowhere"),
        "no pipeline": ([*generate, "--model", str(tmp / "empty")], "model_index.json"),
        "hub id offline": ([*generate, "--model", "nobody/nothing"], "nobody/nothing"),
        "unknown word": ([*generate, "--model", str(model), "--words", "cat"], "'cat'"),
        "bad device": ([*generate, "--model", str(model), "--device", "tpu9"], "tpu9"),
        "bad dtype": ([*generate, "--model", str(model), "--dtype", "int8"], "int8"),
        "half a size": ([*generate, "--model", str(model), "--height", "32"], "--width"),
        "out is a file": ([*generate[:-1], str(tmp / "text.png"), "--model", str(model)], "text"),
        "no maps": (["report", str(tmp / "no.safetensors"), str(tmp / "text.png")], "no.safet"),
        "no evaluation": (["evaluate", str(tmp / "nowhere")], "nowhere"),
        "nothing to evaluate": (["evaluate", str(tmp / "empty")], "heat_maps.safetensors"),
    }


MISTAKES = [
    "unknown flag", "no prompt", "half a size", "unknown command", "bad number",
    "missing folder", "no pipeline",
    "hub id offline", "unknown word", "bad device", "bad dtype", "out is a file",
    "no maps", "no evaluation", "nothing to evaluate",
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
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_picture_that_is_none_and_a_mask_of_a_word_that_is_not_there(generated, capsys):
    maps = generated / "heat_maps.safetensors"
    (generated / "cat.gt.png").write_text("no picture")
    assert main(["report", str(maps), str(generated / "cat.gt.png")]) == 2
    assert "cat.gt.png is not an image" in capsys.readouterr().err
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
