"""A generated set, drawn by several processes, killed on the way, and judged by true masks."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import coco_gen
import evaluate
from daam_diffusers import HeatMaps
from daam_diffusers.cli import main

COUNT = 100


ASKED = ["--steps", "1", "--guidance-scale", "1", "--height", "32", "--width", "32"]
SCRIPTS = Path(sys.executable).parent


def done(out: Path) -> dict[str, int]:
    """The samples there are, with the times at which their maps were written."""
    folders = [x for x in out.glob("*") if x.is_dir() and not x.name.startswith(".")]
    return {x.name: (x / "heat_maps.safetensors").stat().st_mtime_ns for x in folders}


@pytest.mark.slow
def test_two_processes_make_100_samples_though_they_are_killed_on_the_way(
    tmp_path: Path, tinyworld_pipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = [str(caption) for caption in evaluate.held_out(COUNT)]
    prompts, out, log = (tmp_path / name for name in ("rows.jsonl", "set", "log"))
    prompts.write_text("".join(json.dumps({"prompt": x}) + "\n" for x in captions))

    asked = ["generate", "--model", str(evaluate.HERE / "model"), "--prompts", str(prompts)]
    asked += ["--out", str(out), "--device", "cpu", *ASKED]
    launcher = [SCRIPTS / "accelerate", "launch", "--multi_gpu", "--num_processes", "2"]
    with socket.create_server(("127.0.0.1", 0)) as server:  # accelerate 1.0 finds none
        port = server.getsockname()[1]
    launcher += ["--main_process_port", str(port), "--no_python", SCRIPTS / "daam-diffusers"]
    with log.open("wb") as file:
        running = subprocess.Popen([*launcher, *asked], stdout=file, stderr=subprocess.STDOUT)
    while {int(name) % 2 for name in done(out)} != {0, 1}:  # both have made some
        assert running.poll() is None, log.read_text()
        time.sleep(0.02)
    for process in [*psutil.Process(running.pid).children(recursive=True), running]:
        process.kill()
    running.wait()
    before = done(out)
    assert 2 <= len(before) < COUNT
    for name in before:
        assert HeatMaps.load(out / name / "heat_maps.safetensors").prompt.text in captions
        with Image.open(out / name / "image.png") as image:
            image.load()

    assert main(asked) == 0
    assert f"{COUNT - len(before)} new of {COUNT} samples" in capsys.readouterr().out
    after = done(out)
    assert sorted(after) == [f"{number:06d}" for number in range(COUNT)]
    assert {name: after[name] for name in before} == before
    assert sorted(x.name for x in out.iterdir()) == [*sorted(after), "generation.json"]
    for number in (0, 1, 99):
        image = tinyworld_pipe(
            captions[number],
            num_inference_steps=1,
            guidance_scale=1.0,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(number),
        ).images[0]
        with Image.open(out / f"{number:06d}" / "image.png") as found:
            assert np.array_equal(np.asarray(found), np.asarray(image))


def test_the_set_is_judged_as_its_maps_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--captions", "3", "--steps", "15", "--out", str(tmp_path)]
    assert coco_gen.main(asked) == 0
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores["masks"] == 4 * scores["images"] > 0
    word = scores["words"][0]
    maps = HeatMaps.load(tmp_path / word["image"] / "heat_maps.safetensors")
    with Image.open(tmp_path / word["image"] / f"{word['word']}.gt.png") as mask:
        true = np.asarray(mask.getchannel("A")) > 0
    assert word["0.475"] == pytest.approx(maps[word["word"]].iou(true, 0.475))
    assert coco_gen.main([*asked, "--refined"]) == 0  # nothing is drawn again
    assert "0 new of 3 samples" in capsys.readouterr().out
    refined = json.loads((tmp_path / "refined.json").read_text(encoding="utf-8"))
    assert refined["words"][0]["otsu"] == pytest.approx(
        maps.refined()[word["word"]].iou(true, "otsu")
    )
