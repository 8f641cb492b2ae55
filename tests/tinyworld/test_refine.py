"""Refined maps: what the commands judge is what the package returns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import refine
from daam_diffusers import trace

MODELS = [evaluate.HERE / "model", evaluate.HERE / "model-transformer"]


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_the_ablation_keeps_what_the_tracer_keeps(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "STEPS", 4)
    refine.record(model, 2, tmp_path, batch=2)
    captions = [str(caption) for caption in evaluate.held_out(2, refine.SEED)]
    pipe = evaluate.load(model)
    with trace(pipe, refine=True) as tracer:
        images = pipe(
            captions,
            guidance_scale=evaluate.GUIDANCE,
            num_inference_steps=4,
            generator=[torch.Generator().manual_seed(number) for number in (0, 1)],
            output_type="np",
        ).images
    for number in (0, 1):
        with np.load(tmp_path / f"{number}.npz") as file:
            kept = {name: torch.from_numpy(file[name]).float() for name in ("maps", "S256")}
            assert np.array_equal(file["image"], (images[number] * 255).round().astype(np.uint8))
        maps = tracer.heat_maps(image=number)
        assert maps.self_attention is not None
        alike = kept["S256"].mean((0, 1)).view(256, 16, 16)
        torch.testing.assert_close(alike, maps.self_attention, rtol=2e-3, atol=1e-6)
        for index, word in enumerate(maps.prompt.words):
            plain, refined = maps.combine(word).values, maps.refined().combine(word).values
            found = kept["maps"][index].mean((0, 1))
            torch.testing.assert_close(found.clamp(0, 1), plain, rtol=1e-4, atol=1e-6)
            recipe = refine.Recipe(power=3 if model.name == "model" else 1)
            own = recipe.maps({**kept, "texts": []})[index]
            torch.testing.assert_close(own, refined, rtol=2e-2, atol=1e-4)


def test_refined_and_guided_maps_are_judged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = evaluate.RuleScore(1, 1.0, 1.0, 1.0, 1.0)  # half a minute, and of no map
    monkeypatch.setattr(evaluate, "rule_accuracy", lambda vae: rule)
    few = ["--captions", "2", "--steps", "6", "--batch", "2", "--layers", "up", "--any-noun"]
    evaluate.main([*few, "--refine", "--power", "2", "--guide"])
    assert "They are refined: power 2, passes 1, guided by the image." in capsys.readouterr().out


def test_the_committed_table_is_of_200_captions_of_both_models() -> None:
    report = json.loads(Path(refine.__file__).with_suffix(".json").read_text())
    assert (report["captions"], report["seed"]) == (200, refine.SEED)
    for model in MODELS:
        rows = report["models"][model.name]["recipes"]
        assert rows.keys() == refine.recipes(model.name).keys()
        page = (evaluate.HERE / "refine.md").read_text(encoding="utf-8")
        for name, scores in rows.items():
            assert f"| {' | '.join(refine.cells(name, scores))} |" in page


def test_masks_of_objects_are_what_a_map_is_held_against() -> None:
    image = {
        "maps": torch.zeros(3, 1, 4, 16, 16),
        "texts": ["a", "red", "house"],
        "nouns": np.array([2, 2]),
        "masks": np.zeros((2, 64, 64), dtype=bool),
        "image": np.zeros((64, 64, 3), dtype=np.uint8),
    }
    image["maps"][:, :, :, 4:8, 4:8] = 0.5
    image["masks"][:, 16:32, 16:32] = True
    scores = refine.judge([image], refine.Recipe(passes=0))
    assert scores["noun"]["0.4"] == scores["color"]["otsu"]
    assert scores["noun"]["0.4"] > 0.8
    assert scores["pointing"] == {"noun": 1.0, "color": 1.0}
