"""`ExactForward`: logits that padding does not change.

The host's forward lets padding in at several places: group norm takes its statistics over it,
convolutions with zero padding see what layers made of it where an unpadded run sees zeros, pooling
and strided adapters move the boundary. Here the forward is composed anew from the model's own
submodules, called by their public signatures, with a mask at each of these places. So nothing of
the model is replaced, hooked or copied, not even for the time of a call: any number of threads
may call it, and there is nothing to restore.

The modules whose forward is composed here (`composed`) are not called themselves: the base model,
its feature extractor and encoder; with group norm the first convolutional layer; positional
convolutions that mask inside; the layers of Wav2Vec2-Conformer and their convolution modules; the
adapter, of Wav2Vec2-BERT with its layers; of Parakeet, Lasr and Granite Speech the encoder; in them
dropout, group norm and tables of positions. With hooks on any, a model is refused; others fire.

All shapes are static, each row's length is a value in a tensor, and nothing waits for the device:
the forward can be captured as a CUDA graph and exported as one graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from hf_cudagraph_asr.families import UnsupportedModel, class_name, family_of
from hf_cudagraph_asr.geometry import Frames

# Where queries, keys and values of a layer are one product, and not three: on these devices, up to
# as many values as leave them idle (tiles of 128 × 128, 132 multiprocessors).
FUSED_ON = ("cuda",)
FUSED_VALUES = 2**21
PROJECTIONS = ("q_proj", "k_proj", "v_proj")

# Where group norm's statistics cost less by the windows of the samples, with more kernels.
WINDOWS_ON = ("cpu",)


class ExactForward(nn.Module):
    """The logits of each row of a padded batch as the model gives them for that row alone.

        exact = ExactForward(model.eval())
        logits, frames = exact(input_values, lengths)    # (B, T, V), (B,)
        logits[0, : frames[0]]                           # = model(input_values[:1, :n]).logits[0]

    In float32 to 1e-5 of the row's largest logit. In bfloat16 and float16 runs of different shapes
    round differently whatever one does: there to 2.5 times what the model's own run errs from
    float32 with the same weights, the largest difference over a batch of rows each.

    Args:
        model: a CTC model of a listed family (`families.FAMILIES`), in evaluation mode. It is
            held, not copied: its parameters are those of this module.

    Attributes:
        model: the model.
        geometry: its frame arithmetic.
        receptive_field: the fewest samples that give a frame of logits.
        takes_features: its input is (B, T, F) features of a feature extractor, such as log-mel
            ones. What is said of samples goes for the T positions then.

    Raises:
        UnsupportedModel: there is no such forward for the model; the message says why.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._encode = _ENCODERS[family_of(model).encoder]
        if not model.training and any(map(_trains, model.modules())):
            raise UnsupportedModel("some modules are in training mode: call model.eval()")
        for module in composed(model):
            if _hooked(module):
                raise UnsupportedModel(
                    f"a {class_name(module)} has a hook, or a forward of its own, which the exact "
                    f"forward does not call: remove it, put it on a layer within, or run the "
                    f"model eagerly"
                )
        self.geometry = Frames(model.config)
        if bool(self.geometry.adapter) != (getattr(_base(model), "adapter", None) is not None):
            raise UnsupportedModel("config.add_adapter does not fit the model: set it back")
        self.takes_features = bool(self.geometry.features)
        if not self.takes_features:
            _check_first_layer(_base(model).feature_extractor.conv_layers[0])
        self.receptive_field = self.geometry.receptive_field
        self.model = model
        # Not through train(): that would set the model's mode.
        self.training = model.training

    @property
    def head(self) -> Any:
        """The model's layer that makes logits of hidden states."""
        return head_of(self.model)

    def forward(
        self, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of a padded batch.

        A row shorter than the receptive field counts as padded with silence up to it, one longer
        than the batch as cut off: the model gives such a row no logits at all, but a graph cannot
        stop and say so, so the caller checks. No value beyond a row's length is ever used, not
        even NaN.

        Args:
            input_values: (B, S), or (B, T, F) features, in the model's dtype and on its device,
                made and normalized as the model's feature extractor does it for each row alone.
            lengths: (B,) int64 on the same device, each row's samples; or (4, B), what
                `geometry.counts` makes of them, which spares a captured graph that arithmetic.

        Returns:
            logits (B, T, V) in the model's dtype, and (B,) int64 how many of the T frames are the
            row's own. The other frames are finite and mean nothing.

        Raises:
            ValueError: S is below the receptive field, or has more frames than there are
                positions; the lengths are no such tensor; or the model is in training mode, or was
                changed and no longer has the geometry of its configuration.
        """
        geometry, base = self.geometry, _base(self.model)
        rows, total = input_values.shape[:2]
        if not torch.compiler.is_compiling() and (
            getattr(lengths, "dtype", None) not in (torch.int64, torch.int32)
            or lengths.shape not in ((rows,), (4, rows))
        ):
            raise ValueError(f"lengths are {lengths!r:.80}, expected {rows} numbers, of int64")
        if total < self.receptive_field:
            raise ValueError(
                f"a batch of {total} samples a row is shorter than the receptive field: pad it to "
                f"{self.receptive_field} samples or more"
            )
        if self.model.training:
            raise ValueError("the model is in training mode, where it is random: call model.eval()")

        if lengths.ndim == 1:
            lengths = torch.stack(geometry.counts(lengths, total))
        samples, counted, firsts, frames = lengths.unbind()  # (B,) each
        if self.takes_features:
            features = zero_beyond(input_values, keep_mask(samples, total)[:, :, None])
            hidden, frames = self._encode(self.model, features, counted, geometry)
            _check_frames(hidden, geometry.emitted(total), total)
            return self.head(hidden), frames
        positions, zero = torch.arange(total, device=lengths.device), input_values.new_zeros(())
        heard = torch.where(positions < samples[:, None], input_values, zero)  # (B, S)
        # A frame is the row's own where its last sample is: each mask of frames is a view of this.
        own = positions < counted[:, None]
        first, *others = base.feature_extractor.conv_layers
        # These convolutions do not pad: a row's frames see none but its samples. Statistics do.
        if isinstance(norm := getattr(first, "layer_norm", None), nn.GroupNorm):
            x = convolve_and_normalize(heard, own, counted, firsts, first.conv, norm)
            x = first.activation(x)
        else:
            x = first(heard[:, None])  # (B, C, T₁)
        for layer in others:
            x = layer(x)
        hidden = _project(base, x.transpose(1, 2))  # (B, T, H)
        _check_frames(hidden, geometry.encoded(total), total)
        keep = own[:, geometry.last_samples]  # (B, T)
        hidden = torch.where(keep[:, :, None], hidden, zero)
        hidden = self._encode(base.encoder, hidden, frames, keep)  # (B, T, H)
        if geometry.adapter:
            hidden, frames = _adapt(base.adapter, hidden, geometry, frames)
        logits: torch.Tensor = self.model.lm_head(hidden)  # (B, T', V)
        return logits, frames


def _check_frames(hidden: torch.Tensor, expected: int, total: int) -> None:
    if hidden.shape[1] != expected:
        raise ValueError(
            f"the feature encoder gave {hidden.shape[1]} frames of {total} samples, its "
            f"configuration says {expected}: build the ExactForward anew from a model whose config "
            f"fits it"
        )


def _hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _watched(module: Any) -> bool:
    everywhere: Any = nn.modules.module  # where hooks on all modules are
    hooks = everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks
    return bool(hooks) or _hooked(module)


def moded(module: Any) -> bool:
    """Whether what it computes depends on its mode; a new layer of torch.nn is in training mode."""
    kind = type(module).__module__
    return kind.startswith("transformers.models.") or kind.endswith(("dropout", "norm"))


def _trains(module: Any) -> bool:
    """Whether it is in training mode, and computes something else there."""
    return bool(module.training and moded(module) and getattr(module, "p", 1))


def _base(model: Any) -> Any:
    """The model without its head. Of SEW-D, the host before 5.18 looks for it by a wrong name."""
    return getattr(model, "sew_d", model.base_model)


def head_of(model: Any) -> Any:
    """The layer that makes logits of hidden states; None where there is none by its names."""
    return getattr(model, "lm_head", getattr(model, "ctc_head", None))


def composed(model: Any) -> list[Any]:
    """List the modules that `ExactForward` does not call: it composes them from what they hold."""
    found = _composed(_base(model))
    for within in [model, *found]:
        for name, module in within.named_children():
            if "dropout" in name and type(module) not in (nn.Dropout, nn.Identity):
                raise UnsupportedModel(
                    f"{name} is a {class_name(module)}, expected torch.nn.Dropout: run it eagerly"
                )
            if "dropout" in name or name == "embed_positions":
                found.append(module)
    return found


def _composed(base: Any) -> list[Any]:
    if head_of(base) is not None:  # Parakeet, Lasr, Granite Speech
        return [base.encoder]
    found = [base, base.encoder]
    if (adapter := getattr(base, "adapter", None)) is not None:
        found.append(adapter)
    if not hasattr(base, "feature_extractor"):  # Wav2Vec2-BERT
        return found + list(adapter.layers if adapter is not None else ())
    found.append(base.feature_extractor)
    first = base.feature_extractor.conv_layers[0]
    if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
        found += [first, first.layer_norm]
    embed = getattr(base.encoder, "pos_conv_embed", None)
    if hasattr(embed, "layers") or getattr(embed, "batch_norm", None) is not None:
        found.append(embed)
    for layer in getattr(base.encoder, "layers", ()):
        if hasattr(layer, "conv_module"):  # a conformer's
            found += [layer, layer.conv_module]
    return found


def _check_first_layer(layer: Any) -> None:
    norm = getattr(layer, "layer_norm", None)
    if not isinstance(norm, nn.GroupNorm):
        return
    conv = layer.conv
    # Exactly this class: an adapter or a subclass in its place computes something else.
    if type(conv) is not nn.Conv1d or type(norm) is not nn.GroupNorm:
        raise UnsupportedModel(
            f"the first convolution and its group norm are {class_name(conv)} and "
            f"{class_name(norm)}, expected those of torch.nn: merge or remove what wraps them, or "
            f"run the model eagerly"
        )
    if conv.in_channels != 1 or norm.num_groups != conv.out_channels or norm.weight is None:
        raise UnsupportedModel(
            f"the first convolution has {conv.in_channels} input channels and "
            f"{conv.out_channels} outputs in {norm.num_groups} groups, expected one input and as "
            f"many affine groups as outputs; run the model eagerly"
        )


def _project(base: Any, features: torch.Tensor) -> torch.Tensor:
    """(B, T, C) → (B, T, H)."""
    if hasattr(base, "project_features"):  # SEW: the parts lie in the base model itself
        features = base.layer_norm(features)
        if not base.project_features:
            return features
    # Most families also return what their pre-training quantizes.
    hidden: torch.Tensor = _first(base.feature_projection(features))
    return hidden


def _first(output: Any) -> Any:
    """Hidden states of a module that, in some family or version, returns more with them."""
    return output[0] if isinstance(output, tuple) else output


def _positions(embed: Any, hidden: torch.Tensor, keep: torch.Tensor) -> Any:
    """The positional convolution of (B, T, H), which is zero where `keep` is False.

    Whatever stands between those zeros and a convolution makes something else of them.
    """
    stack = getattr(embed, "layers", None)
    norm = getattr(embed, "batch_norm", None)
    x = hidden.transpose(1, 2)  # (B, H, T)
    if stack is not None:  # Data2Vec: several convolutions
        for layer in stack:
            x = layer(zero_beyond(x, keep[:, None]))
        return x.transpose(1, 2)
    if norm is not None:  # HuBERT: a shift before the convolution
        x = embed.conv(zero_beyond(norm(x), keep[:, None]))
        return embed.activation(embed.padding(x)).transpose(1, 2)
    return embed(hidden)


def _embed(encoder: Any, hidden: torch.Tensor, keep: torch.Tensor) -> Any:
    hidden = hidden + _positions(encoder.pos_conv_embed, hidden, keep)
    return hidden if _stable(encoder) else encoder.layer_norm(hidden)


def _stable(encoder: Any) -> bool:
    """Layer norm before attention and feed-forward, and once after all layers."""
    # The host asks its configuration when it chooses the class, and not again.
    return type(encoder).__name__.endswith("StableLayerNorm")


def _transformer(
    encoder: Any, hidden: torch.Tensor, frames: torch.Tensor, keep: torch.Tensor
) -> Any:
    mask = additive_mask(keep, hidden.dtype)
    hidden = _embed(encoder, hidden, keep)
    for layer in _layers(encoder, hidden):
        hidden = _first(layer(hidden, attention_mask=mask))
    return encoder.layer_norm(hidden) if _stable(encoder) else hidden


def _layers(encoder: Any, hidden: torch.Tensor) -> list[Any]:
    """An encoder's layers, with one product for queries, keys and values where launches cost.

    Its weights are gathered from the model's own in every run, by two kernels for all layers: a
    copy that is kept would not show that `weight.data` was written to.
    """
    layers = list(encoder.layers)
    # Before PyTorch 2.12 its compiler cannot trace the copies of modules that are made below.
    old = torch.compiler.is_dynamo_compiling() and torch.__version__ < "2.12"
    if old or hidden.device.type not in FUSED_ON or hidden.numel() > FUSED_VALUES:
        return layers
    linears = [getattr(layer.attention, name) for layer in layers for name in PROJECTIONS]
    # These are not called. A layer of PEFT is of its own class, and pruning is a hook.
    if any(type(linear) is not nn.Linear or _watched(linear) for linear in linears):
        return layers
    if any(one.bias is None or one.weight.shape != linears[0].weight.shape for one in linears):
        return layers
    weights = torch.cat([linear.weight for linear in linears]).chunk(len(layers))
    biases = torch.cat([linear.bias for linear in linears]).chunk(len(layers))
    return list(map(_fused, layers, weights, biases))


def _fused(layer: Any, weight: torch.Tensor, bias: torch.Tensor) -> Any:
    """A layer whose attention's projections are parts of one product of what they are given."""
    given: Any = None
    made: tuple[torch.Tensor, ...] = ()

    def project(part: int, x: torch.Tensor) -> torch.Tensor:
        nonlocal given, made
        if x is not given:
            given, made = x, nn.functional.linear(x, weight, bias).chunk(3, dim=-1)
        return made[part]

    parts = {name: partial(project, part) for part, name in enumerate(PROJECTIONS)}
    return _with(layer, attention=_with(layer.attention, **parts))


def _with(module: Any, **others: Any) -> Any:
    """A module of the same class that holds all that this one does, but others in some places."""
    found = object.__new__(type(module))
    vars(found).update(vars(module), _modules={**module._modules, **others})
    return found


def _gated(encoder: Any, hidden: torch.Tensor, frames: torch.Tensor, keep: torch.Tensor) -> Any:
    """WavLM: the first layer makes the position bias, the others are handed it."""
    hidden = _embed(encoder, hidden, keep)
    bias = None
    for layer in encoder.layers:
        hidden, bias, *_ = layer(hidden, attention_mask=keep, position_bias=bias)
    return encoder.layer_norm(hidden) if _stable(encoder) else hidden


def _squeezed(encoder: Any, hidden: torch.Tensor, frames: torch.Tensor, keep: torch.Tensor) -> Any:
    """SEW, SEW-D: layers over every `squeeze_factor` frames pooled to one; a rest is zero."""
    factor, total = encoder.config.squeeze_factor, hidden.shape[1]
    x = hidden.transpose(1, 2)  # (B, H, T)
    positions, pooled = encoder.pos_conv_embed(x), encoder.pool(x)
    size = min(positions.shape[-1], pooled.shape[-1])
    hidden = (pooled[..., :size] + positions[..., :size]).transpose(1, 2)  # (B, T/factor, H)

    squeezed = frames // factor
    own = keep_mask(squeezed, size)
    if (inner := getattr(encoder, "encoder", None)) is not None:  # SEW-D
        hidden = zero_beyond(hidden, own[:, :, None])
        distances = _distances(inner, size, hidden.device)
        hidden = inner(hidden, own.long(), relative_pos=distances).last_hidden_state
    else:
        mask = additive_mask(own, hidden.dtype)
        hidden = encoder.layer_norm(hidden)
        for layer in _layers(encoder, hidden):
            hidden = _first(layer(hidden, attention_mask=mask))
    hidden = encoder.upsample(hidden)
    hidden = zero_beyond(hidden, keep_mask(squeezed * factor, hidden.shape[1])[:, :, None])
    return nn.functional.pad(hidden, (0, 0, 0, total - hidden.shape[1]))  # (B, T, H)


def _distances(encoder: Any, total: int, device: torch.device) -> torch.Tensor | None:
    """The `relative_pos` of SEW-D, (1, T, T), by the host's arithmetic.

    The host's own function copies a number to the device, for which a capture cannot wait.
    """
    if not encoder.relative_attention:
        return None
    times = torch.arange(total, device=device)
    distances = times[:, None] - times  # (T, T)
    middle, most = encoder.position_buckets // 2, encoder.max_relative_positions
    if encoder.position_buckets > 0:
        far = distances.abs().clamp(min=middle)
        steps = torch.log(far / middle) / torch.log(torch.tensor((most - 1) / middle, device="cpu"))
        buckets = torch.ceil(steps * (middle - 1)) + middle
        near = distances.abs() <= middle
        distances = torch.where(near, distances, buckets * distances.sign()).long()
    return distances[None]


def _conformer(encoder: Any, hidden: torch.Tensor, frames: torch.Tensor, keep: torch.Tensor) -> Any:
    """The layer of arXiv 2005.08100, figure 1, with a mask inside its convolution module."""
    mask = additive_mask(keep, hidden.dtype)
    positions = _relative_positions(encoder, hidden)
    for layer in encoder.layers:
        hidden = hidden + layer.ffn1(layer.ffn1_layer_norm(hidden)) * 0.5
        attended = layer.self_attn(
            hidden_states=layer.self_attn_layer_norm(hidden),
            attention_mask=mask,
            relative_position_embeddings=positions,
        )
        hidden = hidden + _first(attended)
        hidden = hidden + _conformer_convolution(layer.conv_module, hidden, keep)
        hidden = hidden + layer.ffn2(layer.ffn2_layer_norm(hidden)) * 0.5
        hidden = layer.final_layer_norm(hidden)
    return encoder.layer_norm(hidden)


def _conformer_convolution(module: Any, hidden: torch.Tensor, keep: torch.Tensor) -> Any:
    x = module.layer_norm(hidden).transpose(1, 2)  # (B, H, T)
    x = module.glu(module.pointwise_conv1(x))
    x = module.depthwise_conv(zero_beyond(x, keep[:, None]))
    x = module.activation(module.batch_norm(x))
    return module.pointwise_conv2(x).transpose(1, 2)


def _relative_positions(encoder: Any, hidden: torch.Tensor) -> Any:
    """What `encoder.embed_positions` returns.

    Calling it would rebind its cache, which belongs to the host and is no graph's business, and
    make rotary embeddings on the CPU.
    """
    embed, total = encoder.embed_positions, hidden.shape[1]
    if hasattr(embed, "inv_freq"):  # rotary
        frequencies = embed.inv_freq  # (head / 2,)
        times = torch.arange(total, device=frequencies.device).to(frequencies.dtype)
        angles = times[:, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None, None, :]  # (T, 1, 1, head)
        return torch.stack((angles.cos(), angles.sin())).to(hidden.dtype)
    if hasattr(embed, "pe"):  # relative
        table = embed.pe  # (1, 2·P − 1, H): distances P − 1 down to −(P − 1)
        middle = table.shape[1] // 2
        if total > middle + 1:
            raise ValueError(
                f"{total} frames are more than the {middle + 1} relative positions the model "
                f"holds: shorten the batch, or call the model itself once on input as long"
            )
        # Until its first call the host of some versions keeps the table on the CPU.
        return table[:, middle - total + 1 : middle + total].to(hidden)
    return None


def _adapt(
    adapter: Any, hidden: torch.Tensor, geometry: Frames, frames: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, H) → (B, T', H'): each layer pads with zeros, at its own stride, and has fewer."""
    if adapter.proj is not None:
        hidden = adapter.proj_layer_norm(adapter.proj(hidden))
    x = hidden.transpose(1, 2)  # (B, H', T)
    for layer, convolution in zip(adapter.layers, geometry.adapter, strict=True):
        x = layer(zero_beyond(x, keep_mask(frames, x.shape[-1])[:, None]))
        frames = convolution.out(frames)
    return x.transpose(1, 2), frames


def _bert(
    model: Any, features: torch.Tensor, counted: torch.Tensor, geometry: Frames
) -> tuple[torch.Tensor, torch.Tensor]:
    """Wav2Vec2-BERT: (B, T, F) features → (B, T', H) and (B,) frames.

    Its convolutions look back only, and its layers mask. But its adapter's do neither.
    """
    base, frames = model.base_model, counted
    own = keep_mask(counted, features.shape[1])
    hidden = zero_beyond(_first(base.feature_projection(features)), own[:, :, None])
    mask, positions = additive_mask(own, hidden.dtype), _relative_positions(base.encoder, hidden)
    for layer in base.encoder.layers:
        hidden = layer(
            hidden,
            attention_mask=mask,
            relative_position_embeddings=positions,
            conv_attention_mask=own,
        )
    if base.intermediate_ffn is not None:
        hidden = hidden + 0.5 * base.intermediate_ffn(hidden)
    if base.adapter is None:
        return hidden, frames
    if base.adapter.proj is not None:
        hidden = base.adapter.proj_layer_norm(base.adapter.proj(hidden))
    for layer, convolution in zip(base.adapter.layers, geometry.adapter, strict=True):
        own = keep_mask(frames, hidden.shape[1])[:, :, None]
        shorter = [  # of each (B, T, H) → (B, T', H)
            layer.activation(conv(zero_beyond(norm(hidden), own).mT)).mT
            for norm, conv in (
                (layer.residual_layer_norm, layer.residual_conv),
                (layer.self_attn_layer_norm, layer.self_attn_conv),
            )
        ]
        frames = convolution.out(frames)
        mask = additive_mask(keep_mask(frames, shorter[1].shape[1]), hidden.dtype)
        hidden = _first(layer.self_attn(shorter[1], attention_mask=mask)) + shorter[0]
        hidden = hidden + layer.ffn(layer.ffn_layer_norm(hidden))
    return hidden, frames


def _parakeet(
    model: Any, features: torch.Tensor, counted: torch.Tensor, geometry: Frames
) -> tuple[torch.Tensor, torch.Tensor]:
    """FastConformer, whose convolutions all mask, those in two dimensions too."""
    encoder, frames = model.encoder, geometry.encoded(counted)
    hidden = encoder.subsampling(features, keep_mask(counted, features.shape[1]))
    hidden = hidden * encoder.input_scale
    mask, positions = keep_mask(frames, hidden.shape[1]), encoder.encode_positions(hidden)
    for layer in encoder.layers:
        hidden = layer(hidden, attention_mask=mask[:, None, None], position_embeddings=positions)
    return hidden, frames


def _lasr(
    model: Any, features: torch.Tensor, counted: torch.Tensor, geometry: Frames
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolutions without padding, and layers that mask."""
    encoder, frames = model.encoder, geometry.encoded(counted)
    hidden = encoder.subsampler(features)
    times = torch.arange(hidden.shape[1], device=hidden.device)
    positions = encoder.rotary_emb(hidden, times[None])
    mask = additive_mask(keep_mask(frames, hidden.shape[1]), hidden.dtype)
    for layer in encoder.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=positions)
    return encoder.out_norm(hidden), frames


def _granite(
    model: Any, features: torch.Tensor, counted: torch.Tensor, geometry: Frames
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in blocks, and layers that mask, some of which give half as many frames."""
    encoder, own = model.encoder, keep_mask(counted, features.shape[1])
    hidden = zero_beyond(encoder.input_linear(features), own[:, :, None])
    for at, layer in enumerate(encoder.layers):
        hidden = layer(hidden, attention_mask=own, position_embeddings=encoder.attention_dists)
        if at in encoder.config.subsample_layers:
            own = own[:, 1::2]  # the mean of two frames that are
        # A block without any key is NaN in float16, and the next layer's blocks are others.
        hidden = zero_beyond(hidden, own[:, :, None])
        if at + 1 == encoder.config.num_hidden_layers // 2:
            said = nn.functional.softmax(encoder.out(hidden), dim=-1)
            hidden = hidden + encoder.out_mid(said)
    return hidden, geometry.encoded(counted)


_ENCODERS: dict[str, Callable[..., Any]] = {
    "transformer": _transformer,
    "gated": _gated,
    "squeezed": _squeezed,
    "conformer": _conformer,
    "bert": _bert,
    "parakeet": _parakeet,
    "lasr": _lasr,
    "granite": _granite,
}


def keep_mask(lengths: torch.Tensor, total: int) -> torch.Tensor:
    """Bool, (B, total): True at positions before each row's length, (B,) int64."""
    return torch.arange(total, device=lengths.device) < lengths[:, None]


def zero_beyond(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """`x` with zeros where `keep`, which broadcasts, is False; NaN and infinity go as well."""
    return torch.where(keep, x, x.new_zeros(()))


def additive_mask(keep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, T) bool → (B, 1, 1, T) in `dtype`: 0 for keys to attend to, the lowest number else.

    Both attention implementations add it, so that the host's setting needs no branch. A number
    and not −inf: a row without any key would be NaN.
    """
    mask = torch.full(keep.shape, torch.finfo(dtype).min, dtype=dtype, device=keep.device)
    return mask.masked_fill_(keep, 0)[:, None, None, :]


def convolve_and_normalize(
    samples: torch.Tensor,
    own: torch.Tensor,
    counted: torch.Tensor,
    frames: torch.Tensor,
    conv: nn.Conv1d,
    norm: nn.GroupNorm,
) -> torch.Tensor:
    """A convolution of one channel, and group norm with statistics over each row's own frames.

    Args:
        samples: (B, S), zero beyond each row's length.
        own: (B, S), True at the samples that count.
        counted, frames: (B,) how many these are, and how many of the T frames are the row's own.

    Returns:
        (B, C, T) in the dtype of `samples`; frames that are not the row's own mean nothing.
    """
    wide = torch.promote_types(samples.dtype, torch.float32)
    if samples.dtype == wide:
        # Group norm takes a constant away again, but not what is rounded because of it. With fewer
        # bits the subtraction itself would round more than that.
        total = samples.sum(dim=1, keepdim=True)
        samples = torch.addcdiv(samples, total, counted[:, None], value=-1)
    convolved = conv(samples[:, None])  # (B, C, T)
    keep = own[:, None, conv.kernel_size[0] - 1 :: conv.stride[0]]  # (B, 1, T)
    if samples.device.type in WINDOWS_ON and not _watched(conv):
        mean, variance = _of_windows(samples, keep, frames, conv)
    else:
        kept = zero_beyond(convolved, keep)
        mean = kept.sum(dim=-1, keepdim=True, dtype=wide) / frames[:, None, None]  # (B, C, 1)
        centered = torch.addcmul(kept, keep, mean, value=-1)  # in `wide`, and zero beyond
        variance = centered.square().sum(dim=-1) / frames[:, None]  # (B, C)

    # Batch norm with given statistics normalizes in one pass; each row's channel is a channel.
    normalized = nn.functional.batch_norm(
        convolved.flatten(0, 1)[None],  # (1, B·C, T)
        mean.flatten().to(wide),
        variance.flatten().to(wide),
        norm.weight.to(wide).expand_as(variance).flatten(),
        norm.bias.to(wide).expand_as(variance).flatten(),
        eps=norm.eps,
    )
    return normalized.view_as(convolved)


def _of_windows(
    samples: torch.Tensor, keep: torch.Tensor, frames: torch.Tensor, conv: nn.Conv1d
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of a convolution of one channel, (B, C) float64, in no pass over it.

    With w a kernel, μ and Σ mean and covariance of the kernel-sized windows of the samples, they
    are w·μ and wᵀΣw. In float64, for a kernel may well be nearly orthogonal to what dominates Σ.
    """
    windows = samples.double().unfold(-1, conv.kernel_size[0], conv.stride[0])  # (B, T, k)
    windows = windows * keep.mT
    means = windows.sum(dim=1) / frames[:, None]  # (B, k)
    covariance = windows.mT @ windows / frames[:, None, None] - means[:, :, None] * means[:, None]
    kernels = conv.weight[:, 0].double()  # (C, k)
    mean = means @ kernels.mT  # (B, C)
    if conv.bias is not None:
        mean = mean + conv.bias
    return mean, ((kernels @ covariance) * kernels).sum(dim=-1).clamp(min=0)
