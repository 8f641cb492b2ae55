"""A run is continued only with what changes no text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recogniser import RATE, save_recogniser

from hf_cudagraph_asr.plan import plan_buckets
from hf_cudagraph_asr.provenance import provenance
from hf_cudagraph_asr.transcriber import Transcriber


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recogniser")
    save_recogniser(folder)
    return folder


def of(folder: Path, change: Callable[[Transcriber], object], **options: Any) -> dict[str, Any]:
    with Transcriber.from_pretrained(folder, **options) as transcriber:
        change(transcriber)
        return provenance(transcriber)


def nothing(transcriber: Transcriber) -> None:
    pass


def scale_the_end_of_every_weight(transcriber: Transcriber) -> None:
    with torch.no_grad():
        for parameter in transcriber.model.parameters():
            parameter.flatten()[parameter.numel() // 2 :].mul_(1.01)


def another_delimiter(transcriber: Transcriber) -> None:
    transcriber.tokenizer.init_kwargs["word_delimiter_token"] = "e"


def another_configuration(transcriber: Transcriber) -> None:
    transcriber.model.config.layer_norm_eps = 0.1


def test_it_is_the_same_for_the_same_and_holds_no_path(folder: Path) -> None:
    same = of(folder, nothing)
    with Transcriber.from_pretrained(folder) as transcriber:
        model = transcriber.model
        plan = plan_buckets([0.5, 1.0], graphs=1, model=model, batch_sizes=(2,), sampling_rate=RATE)
    assert of(folder, nothing, plan=plan, backend="export") == same
    assert str(folder) not in json.dumps(same)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (scale_the_end_of_every_weight, "model"),
        (another_configuration, "model"),
        (another_delimiter, "processor"),
    ],
    ids=["weights", "configuration", "delimiter"],
)
def test_it_changes_with_what_may_change_a_text(
    folder: Path, change: Callable[[Transcriber], object], part: str
) -> None:
    before, after = of(folder, nothing), of(folder, change)
    assert {name for name in before if before[name] != after[name]} == {part}


def test_the_dtype_and_the_chunks_are_told_apart(folder: Path) -> None:
    before = of(folder, nothing)
    after = of(folder, nothing, dtype="bfloat16", chunk_length_s=10.0)
    assert (after["dtype"], after["chunk_length_s"]) == ("bfloat16", 10.0)
    assert (before["dtype"], before["chunk_length_s"]) == ("float32", 30.0)
