"""Probes of single programs: what the device does in a replay, and where its time goes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from probing import Probe
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_cudagraph_asr import ExactForward

HERE = Path(__file__).parent
BF16 = torch.bfloat16


def environment(probe: Probe) -> None:
    """Device, versions, and the attention kernel that torch chooses for each dtype.

    Decides whether figures of two runs may be compared, and what `new_lengths` is about.
    """
    import transformers

    found: dict[str, object] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if probe.on_gpu:
        found["device"] = torch.cuda.get_device_name()
        found["cudnn"] = torch.backends.cudnn.version()
        found["free_and_total_bytes"] = torch.cuda.mem_get_info()
        query = torch.randn(1, 12, 89, 64, device="cuda")
        mask = torch.zeros(1, 12, 89, 89, device="cuda")
        names = {int(kind): name for name, kind in SDPBackend.__members__.items()}
        for dtype in (torch.float32, BF16):
            for masked in (False, True):
                q = query.to(dtype)
                chosen = torch._fused_sdp_choice(q, q, q, mask.to(dtype) if masked else None)
                found[f"attention, {dtype}{', mask' if masked else ''}"] = names.get(int(chosen))
    probe.say("environment", **found)


def parts(probe: Probe) -> None:
    """Device time of each suspect of a replay: bf16, one row.

    Decides what to make faster: fold the weight norm if it takes more than 20 µs; fuse the first
    layer's statistics if they take more than 40 µs; gather the weights of q, k and v in each
    replay, for one product, only if "exact" is faster than with them apart; convolutions as
    products, channels last, if these are faster; name the attention backend if cuDNN's is not the
    fastest.
    """
    model, light = probe.model(BF16), probe.folded(BF16)
    layered = probe.model(BF16, feat_extract_norm="layer", conv_bias=True)
    exact, exact_light, exact_layered = map(ExactForward, (model, light, layered))
    base = model.base_model
    embed, light_embed = (m.base_model.encoder.pos_conv_embed for m in (model, light))
    first, *rest = base.feature_extractor.conv_layers
    layer = base.encoder.layers[0]
    attention = layer.attention
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)

    def measure(seconds: float) -> None:
        values, lengths = probe.inputs(seconds, 1, BF16)
        frames = base.feature_extractor(values).shape[-1]
        hidden = torch.randn(1, frames, model.config.hidden_size, device=probe.device, dtype=BF16)
        mask = torch.zeros(1, 1, 1, frames, device=probe.device, dtype=BF16)
        mask[..., -1] = torch.finfo(BF16).min
        after_first = first(values[:, None])
        fused = torch.randn(3 * hidden.shape[-1], hidden.shape[-1], device=probe.device, dtype=BF16)
        calls: dict[str, Callable[[], object]] = {
            "exact": lambda: exact(values, lengths),
            "exact, q, k, v apart": lambda: _apart(exact, values, lengths),
            "exact, weight norm folded": lambda: exact_light(values, lengths),
            "stock, no mask": lambda: model(values).logits,
            "stock, no mask, folded": lambda: light(values).logits,
            # Masks and lengths without the statistics that a group norm adds to the others.
            "exact, layer norm": lambda: exact_layered(values, lengths),
            "stock, layer norm": lambda: layered(values).logits,
            "weight norm": lambda: embed.conv.weight,
            "positional convolution": lambda: embed(hidden),
            "positional convolution, folded": lambda: light_embed(hidden),
            "lengths to frames": lambda: exact.geometry.counts(lengths, values.shape[1]),
            "first layer, stock": lambda: first(values[:, None]),
            "feature extractor, stock": lambda: base.feature_extractor(values),
            "convolutions 2 to 7": lambda: _through(rest, after_first),
            "convolutions 2 to 7 as products": _as_products(rest, after_first),
            "a layer, mask": lambda: layer(hidden, attention_mask=mask),
            "a layer, no mask": lambda: layer(hidden, attention_mask=None),
            "q, k, v": lambda: [projection(hidden[0]) for projection in projections],
            "q, k, v in one": lambda: hidden[0] @ fused.T,
            "ten empty kernels": lambda: [mask.add_(0) for _ in range(10)],
        }
        found: dict[str, object] = {name: probe.device_us(call) for name, call in calls.items()}
        times = {name: float(str(us)) for name, us in found.items()}
        overhead = times["exact"] - times["stock, no mask"]
        found["first layer's statistics"] = round(
            overhead - (times["exact, layer norm"] - times["stock, layer norm"]), 1
        )
        found |= _attention(probe, hidden, mask, model.config.num_attention_heads)
        probe.say("parts", seconds=seconds, frames=frames, microseconds=found)

    measure(1.8)
    measure(5.0)


def _through(layers: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _as_products(layers: Any, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Convolutions without padding, channels last: rows that overlap in memory times a matrix."""
    weights = [
        (
            layer.conv.weight.permute(2, 1, 0).reshape(-1, layer.conv.out_channels).contiguous(),
            layer.conv.kernel_size[0],
            layer.conv.stride[0],
        )
        for layer in layers
    ]
    start = x[0].T.contiguous()  # (T, C)

    def run() -> torch.Tensor:
        y = start
        for weight, kernel, stride in weights:
            total, channels = y.shape
            rows = (total - kernel) // stride + 1
            windows = y.as_strided((rows, kernel * channels), (stride * channels, 1))
            y = torch.nn.functional.gelu(windows @ weight)  # (T', C)
        return y

    return run


def _attention(
    probe: Probe, hidden: torch.Tensor, mask: torch.Tensor, heads: int
) -> dict[str, object]:
    query = hidden.view(1, hidden.shape[1], heads, -1).transpose(1, 2)  # (1, H, T, D)
    attend = torch.nn.functional.scaled_dot_product_attention
    kinds = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
    found: dict[str, object] = {}
    for kind, given in itertools.product(kinds, (mask, None)):
        name = f"attention, {kind}, {'no mask' if given is None else 'mask'}"
        try:
            with sdpa_kernel(getattr(SDPBackend, kind)):
                found[name] = probe.device_us(
                    lambda given=given: attend(query, query, query, attn_mask=given)
                )
        except RuntimeError as error:
            found[name] = str(error)[:60]
    return found


def _apart(forward: ExactForward, values: torch.Tensor, lengths: torch.Tensor) -> object:
    with mock.patch("hf_cudagraph_asr.exact.FUSED_ON", ()):
        return forward(values, lengths)


def kernels(probe: Probe) -> None:
    """Every kernel of a replay, by time.

    Decides whether to aim at fewer kernels: "exact" of `parts` less "busy_us" is the time between
    kernels, which only fewer of them, or their overlapped launch, take away.
    """
    from torch.profiler import ProfilerActivity, profile

    if not probe.on_gpu:
        return
    for dtype, seconds in ((BF16, 1.8), (BF16, 5.0), (torch.float32, 1.8)):
        exact = ExactForward(probe.model(dtype))
        values, lengths = probe.inputs(seconds, 1, dtype)
        replay = probe.graph(lambda e=exact, v=values, n=lengths: e(v, n))
        for _ in range(5):
            replay()
        probe.wait()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as traced:
            for _ in range(5):
                replay()
            probe.wait()
        events = [e for e in traced.events() if str(e.device_type).endswith("CUDA")]
        times: dict[str, list[float]] = {}
        for event in events:
            times.setdefault(event.name[:110], []).append(event.device_time_total)
        order = sorted(times.items(), key=lambda item: -sum(item[1]))
        probe.say(
            "kernels",
            dtype=str(dtype),
            seconds=seconds,
            count=len(events) / 5,
            busy_us=round(sum(map(sum, times.values())) / 5, 1),
            name_count_us=[[n, len(t) / 5, round(sum(t) / 5, 1)] for n, t in order[:40]],
        )


def batches(probe: Probe) -> None:
    """Device time of replays by rows: how many queries a second the device has room for.

    Decides whether larger batches are worth waiting for.
    """
    exact = ExactForward(probe.folded(BF16))
    for seconds in (2.0, 5.0):
        found = {}
        for rows in (1, 2, 4, 8, 16, 32) if probe.on_gpu else (1, 2):
            values, lengths = probe.inputs(seconds, rows, BF16)
            us = probe.device_us(lambda v=values, n=lengths: exact(v, n), 10)
            found[rows] = [us, round(rows / us * 1e6)]
        probe.say("batches", seconds=seconds, rows_us_and_queries_a_second=found)


def streams(probe: Probe) -> None:
    """Replays on streams of their own, side by side.

    Decides whether replicas pay: they do if four streams answer more than twice as many queries
    as one, and callers have streams of their own.
    """
    exact = ExactForward(probe.folded(BF16))
    for seconds in (1.8, 5.0):
        found = {}
        for many in (1, 2, 4, 8) if probe.on_gpu else (1, 2):
            lanes = []
            for _ in range(many):
                values, lengths = probe.inputs(seconds, 1, BF16)
                replay = probe.graph(lambda v=values, n=lengths: exact(v, n))
                lanes.append((torch.cuda.Stream() if probe.on_gpu else None, replay))
            rounds = 40 if probe.on_gpu else 1
            probe.wait()
            start = time.perf_counter()
            for _ in range(rounds):
                for stream, replay in lanes:
                    with torch.cuda.stream(stream):
                        replay()
            probe.wait()
            taken = time.perf_counter() - start
            found[many] = [round(1e6 * taken / rounds, 1), round(rounds * many / taken)]
        probe.say("streams", seconds=seconds, streams_us_a_round_and_queries_a_second=found)


def first_replay(probe: Probe) -> None:
    """The first launch of a graph against the next ones.

    Decides whether a replay at the end of each capture is needed: if the first takes longer.
    """
    exact = ExactForward(probe.model(BF16))
    values, lengths = probe.inputs(2.0, 1, BF16)
    replay = probe.graph(lambda: exact(values, lengths))
    found = []
    for _ in range(5):
        probe.wait()
        start = time.perf_counter()
        replay()
        launched = time.perf_counter() - start
        probe.wait()
        found.append([round(1e6 * launched, 1), round(1e6 * (time.perf_counter() - start), 1)])
    probe.say("first_replay", launch_and_end_us=found)


def new_lengths(probe: Probe) -> None:
    """What an eager run pays for a length it has not seen, with and without cuDNN's attention.

    Decides whether servers with a tail of long queries need TORCH_CUDNN_SDPA_DEPRIORITIZED=1, and
    the stock model in benchmarks: they do if "first" is 100 ms longer than "again" with cuDNN's.
    """
    model = probe.model(BF16)
    try:
        for cudnn in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            found: dict[str, list[float]] = {"first": [], "again": []}
            for i in range(8 if probe.on_gpu else 2):
                samples = 20_000 + 1_333 * i + 640 * cudnn
                values = torch.randn(1, samples, device=probe.device).to(BF16)
                for kind in found:
                    found[kind].append(round(probe.wall_us(lambda v=values: model(v), 1) / 1e3, 2))
            probe.say("new_lengths", cudnn_attention=cudnn, milliseconds=found)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def after_a_failure(probe: Probe) -> None:
    """What a failed capture leaves behind, each in a process of its own: torch's, and a pool's.

    Decides whether the pool's undoing is needed, and whether it works: with torch alone before
    2.13, random numbers raise and nothing is given back; after a pool's failure neither happens.
    """
    for name in ("torch", "asking", "waiting"):
        if name == "waiting" and not probe.on_gpu:
            continue
        done = subprocess.run(
            [sys.executable, str(HERE / "uncapturable.py"), name, probe.device],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        lines = done.stdout.splitlines()
        found = json.loads(lines[-1]) if lines else {"failed": done.stderr[-800:]}
        probe.say("after_a_failure", of=name, **found)
