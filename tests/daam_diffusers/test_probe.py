"""Words beyond the prompt: queries of the run, keys of another text, in a plain softmax."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from proofs import denoisers_of, state
from slow import attentions, probabilities
from tiny_cross import VARIANTS as CROSS
from tiny_joint import VARIANTS as JOINT
from tiny_pipelines import PROMPT
from tiny_pipelines import VARIANTS as UNETS
from tiny_video import VIDEOS

from daam_diffusers import HeatMaps, TraceError, trace

TEXT = "the running dog"
OTHER = "the dog beside a red house"
# Two text encoders, image prompts, T5 with a mask, norms on queries and keys, keys of pixels
# beside those of text, guidance in separate calls, frames.
FAMILIES = {
    name: {**UNETS, **CROSS, **JOINT, **VIDEOS}[name]
    for name in ("sd", "sdxl", "ip-adapter", "pixart-sigma", "sana sprint", "deepfloyd", "wan")
}


def run(pipe: Any, variant: Any, prompt: Any = PROMPT, **changes: Any) -> Any:
    return variant.run(pipe, prompt, num_inference_steps=2, **changes)


def traced(pipe: Any, variant: Any, **options: Any) -> HeatMaps:
    with trace(pipe, probe=True, **options) as tracer:
        run(pipe, variant)
    return tracer.heat_maps()


def seen(pipe: Any, variant: Any, prompt: str) -> list[Any]:
    """The attentions of the prompt's own calls, those to text first."""
    (denoiser,) = denoisers_of(pipe).values()
    with attentions(denoiser) as found:
        run(pipe, variant, prompt)
    alone = len({one.call for one in found}) > 2  # the negative prompt's calls are every other
    return [one for one in found if one.index == 0 and not (alone and one.call % 2)]


@pytest.mark.parametrize("name", FAMILIES)
def test_queries_of_the_run_meet_keys_of_the_text(name):
    """The reference's keys are those of a whole run with that text as its prompt."""
    variant = FAMILIES[name]
    pipe = variant.make()
    queries, keys = seen(pipe, variant, PROMPT), seen(pipe, variant, TEXT)
    before = state(pipe)
    maps = traced(pipe, variant)
    probed = maps.probing(TEXT)
    assert state(pipe) == before
    assert [word.text for word in probed.prompt.words] == TEXT.split()
    text = probed.prompt.columns
    for layer in maps.layers:
        first = next(one for one in keys if one.path == layer.name)
        means = []
        for one in (one for one in queries if one.path == layer.name):
            key = torch.cat([first.key[:, :, :text], one.key[:, :, text:]], dim=2)
            own = probabilities(one.query, key, key, first.mask)[-1].mean(dim=0)
            means.append(own[:, list(probed.columns)].T)  # (C, N)
        found = probed.probabilities[layer.name][:-1].flatten(1)
        torch.testing.assert_close(found.double(), sum(means) / 2, rtol=0, atol=1e-5)
    # A word of the prompt in its context has its own map.
    for word in ("dog", "red car"):
        again = maps.probe(PROMPT, word)
        torch.testing.assert_close(again.values, maps[word].values, rtol=0, atol=1e-4)
        assert (again.text, again.frames) == (word, maps[word].frames)
    assert not torch.allclose(maps.probe("dog").values, maps["dog"].values, atol=1e-4)


def test_context_changes_a_word_and_all_words_are_their_mean(sd):
    maps = traced(sd, UNETS["sd"])
    bare, house = maps.probe("house"), maps.probe("a red house", "house")
    assert (bare.values - house.values).abs().max() > 1e-4
    both = maps.probe("a red house", ["house", "red"]).values
    red = maps.probe("a red house", "red").values
    torch.testing.assert_close(both, (house.values + red) / 2, rtol=0, atol=1e-4)
    whole = maps.probe("a red house").values
    a = maps.probe("a red house", "a").values
    torch.testing.assert_close(whole, (house.values + red + a) / 3, rtol=0, atol=1e-4)
    with pytest.raises(KeyError, match="'dog' is not in the prompt"):
        maps.probe("house", "dog")
    with pytest.raises(ValueError, match="needs a text"):
        maps.probe(" ")
    for text in (None, ["dog"]):
        with pytest.raises(TypeError, match="takes a text"):
            maps.probe(text)


@pytest.mark.parametrize("images", [1, 2])
def test_each_image_of_a_batch_is_probed(sd, images):
    with trace(sd, probe=True) as tracer:
        run(sd, UNETS["sd"], [PROMPT, OTHER], num_images_per_prompt=images)
        for image in range(2 * images):  # inside the context as well
            maps = tracer.heat_maps(image=image)
            text = (PROMPT, OTHER)[image // images]
            assert torch.allclose(maps.probe(text, "dog").values, maps["dog"].values, atol=1e-4)
        assert tracer.runs == 1


def test_embeddings_are_probed_as_prompts_are(sd):
    positive, negative = sd.encode_prompt(PROMPT, "cpu", 1, True)
    with trace(sd, probe=True) as tracer:
        run(sd, UNETS["sd"], None, prompt_embeds=positive, negative_prompt_embeds=negative)
    maps = tracer.heat_maps(prompt=PROMPT)
    torch.testing.assert_close(maps.probe(PROMPT, "dog").values, maps["dog"].values)


def test_kept_axes_chosen_layers_and_refined_maps_are_probed(sd):
    with trace(sd, probe=True, keep=("step", "head"), refine=True, negative=True) as tracer:
        run(sd, UNETS["sd"])
    for maps in (
        tracer.heat_maps(layers=lambda layer: layer.block == "up", clamp="per_map"),
        tracer.heat_maps(layers="auto").refined(power=2),
    ):
        found = maps.probe(PROMPT, "dog")
        assert found.axes == ("step", "head")
        torch.testing.assert_close(found.values, maps["dog"].values, rtol=0, atol=1e-4)
    assert tracer.heat_maps(negative=True).probing is None


def test_the_log_says_how_much_and_beyond_the_memory_it_lies_on_disk(sd, caplog, monkeypatch):
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with caplog.at_level("INFO"), trace(sd, probe=True) as plain:
        run(sd, UNETS["sd"])
    in_memory = plain.heat_maps().probe("house").values
    with trace(sd) as other:
        run(sd, UNETS["sd"])
    kept = plain.record_bytes() - other.record_bytes()
    size = float(
        re.search(r"up to ([0-9.]+) MiB of layers' inputs a call, 2 calls", caplog.text)[1]
    )
    assert size == round(kept / 2 / 2**20, 1)
    assert [*folder.iterdir()] == []
    with trace(sd, probe=True, probe_memory=kept // 2) as tracer:
        run(sd, UNETS["sd"])
    maps = tracer.heat_maps()
    assert sum(x.stat().st_size for x in folder.rglob("*.safetensors")) >= kept // 2
    assert torch.equal(maps.probe("house").values, in_memory)
    gc.disable()
    del tracer, maps
    gc.enable()
    assert [*folder.iterdir()] == []
    folder.rmdir()


def test_a_temporary_folder_that_fails_costs_the_probe_and_not_the_image(
    sd, tmp_path, monkeypatch, caplog
):
    plain = run(sd, UNETS["sd"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with trace(sd, probe=True, probe_memory=0) as tracer:
        assert torch.equal(run(sd, UNETS["sd"]), plain)
    maps = tracer.heat_maps()
    assert maps["dog"].values.max() > 0
    assert caplog.text.count("could not be written") == 1
    with pytest.raises(TraceError, match=r"could not be written .*none.*TMPDIR"):
        maps.probe("dog")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with trace(sd, probe=True, probe_memory=0) as tracer:
        run(sd, UNETS["sd"])
    shutil.rmtree(next(tmp_path.iterdir()))
    with pytest.raises(TraceError, match=r"temporary folder.*No such file"):
        tracer.heat_maps().probe("dog")


def test_the_latest_run_is_kept_and_maps_of_an_earlier_one_keep_theirs(sd):
    with trace(sd, probe=True) as tracer:
        run(sd, UNETS["sd"])
        first = tracer.heat_maps()
        run(sd, UNETS["sd"], OTHER)
    assert torch.equal(first.probe(PROMPT, "dog").values, first["dog"].values)
    with pytest.raises(ValueError, match="latest run"):
        tracer.heat_maps(run=0).probe("dog")


@pytest.mark.parametrize("probed", [0, 1])
def test_weights_that_changed_are_noticed(sd, probed):
    maps = traced(sd, UNETS["sd"])
    for _ in range(probed):
        maps.probe("dog")
    with torch.no_grad():
        sd.unet.get_submodule(maps.layers[0].name).to_k.weight.mul_(3)
    with pytest.raises(TraceError, match="does not attend now as it did in the run"):
        maps.probe("dog")


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.to(torch.bfloat16),
        lambda pipe: pipe.text_encoder.to("meta"),
        lambda pipe: setattr(pipe, "text_encoder", None),
    ],
    ids=["dtype", "meta", "none"],
)
def test_a_pipeline_that_was_changed_is_an_error_with_its_cause(sd, change):
    pipe = copy.deepcopy(sd)
    maps = traced(pipe, UNETS["sd"])
    change(pipe)
    with pytest.raises(TraceError, match=r"as things are now.*Error: ") as raised:
        maps.probe("dog")
    assert raised.value.__cause__ is not None


def test_a_denoiser_that_was_taken_away_is_not_called_compiled(sd, caplog):
    pipe = copy.deepcopy(sd)
    maps = traced(pipe, UNETS["sd"])
    pipe.unet = None
    with contextlib.suppress(TraceError):
        maps.probe("dog")
    assert "compiled" not in caplog.text


def test_probes_of_several_threads_are_those_of_one(sd):
    maps, texts = traced(sd, UNETS["sd"]), ["a dog", "house", "a red car", "tree"]
    expected = [maps.probe(text).values for text in texts]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda text: maps.probe(text).values, texts)]
    assert all(map(torch.equal, found, expected))


def test_an_error_leaves_the_pipeline_and_another_tracer_alone(sd):
    maps, before = traced(sd, UNETS["sd"]), state(sd)
    with trace(sd) as tracer:
        with pytest.raises(TraceError, match="another tracer"):
            maps.probe("dog")
        run(sd, UNETS["sd"])
        assert tracer.heat_maps()["dog"]
    vars(sd.unet.conv_in)["forward"] = lambda *_: 1 / 0
    with pytest.raises(TraceError, match=r"as things are now.*ZeroDivisionError"):
        maps.probe("dog")
    # By hand: in pytest 9.0 monkeypatch leaves the attribute on the instance.
    del vars(sd.unet.conv_in)["forward"]
    assert state(sd) == before


def test_without_it_nothing_is_kept_and_files_hold_nothing_to_probe(sd, tmp_path):
    with trace(sd, negative=True) as tracer:
        run(sd, UNETS["sd"])
    with pytest.raises(ValueError, match="probe=True"):
        tracer.heat_maps().probe("dog")
    maps = traced(sd, UNETS["sd"], negative=True)
    loaded = HeatMaps.load(maps.save(tmp_path / "maps.safetensors"))
    with pytest.raises(ValueError, match="do not load"):
        loaded.probe("dog")
    for copied in (copy.copy(maps), copy.deepcopy(maps)):
        assert copied.probing is maps.probing  # no copy of the pipeline
    pickled = pickle.loads(pickle.dumps(maps))  # noqa: S301 - own bytes
    assert pickled.probing is None
    assert torch.equal(pickled["dog"].values, maps["dog"].values)


@pytest.mark.parametrize("name", ["flux dev", "sd3"])
def test_joint_attention_and_pipelines_without_encode_prompt_are_refused(name):
    with (
        pytest.raises(TraceError, match="attended to the image"),
        trace(JOINT[name].make(), probe=True),
    ):
        pass
    with (
        pytest.raises(TraceError, match="encode_prompt"),
        trace(CROSS["latent diffusion"].make(), probe=True),
    ):
        pass


@pytest.mark.parametrize("memory", [-1, 1.5, 1 << 20])
def test_a_memory_that_is_no_number_of_bytes_is_refused(sd, memory):
    with pytest.raises(ValueError, match="probe_memory"), trace(sd, probe_memory=memory):
        pass
