"""Which frames of a padded batch are a row's own, and statistics over these alone.

Lengths are tensors on the model's device; nothing here asks for a value of one, so nothing waits
for the device and everything can be captured.
"""

from __future__ import annotations

import torch
from torch import nn


def keep_mask(lengths: torch.Tensor, total: int) -> torch.Tensor:
    """Bool, (B, total): True at positions before each row's length, (B,) int64."""
    return torch.arange(total, device=lengths.device) < lengths[:, None]


def zero_beyond(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """`x`, (B, T, C), with zeros where `keep`, (B, T), is False; NaN and infinity go as well."""
    return torch.where(keep[:, :, None], x, x.new_zeros(()))


def zero_channels_beyond(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """`zero_beyond` for channels first, (B, C, T)."""
    return torch.where(keep[:, None, :], x, x.new_zeros(()))


def additive_mask(keep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, T) bool → (B, 1, 1, T) in `dtype`: 0 for keys to attend to, the lowest number else.

    Both attention implementations add it, so that the host's setting needs no branch. A number
    and not −inf: a row without any key would be NaN.
    """
    lowest = torch.finfo(dtype).min
    mask = torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill(~keep, lowest)
    return mask[:, None, None, :]


def convolve_and_normalise(
    samples: torch.Tensor, frames: torch.Tensor, conv: nn.Conv1d, norm: nn.GroupNorm
) -> torch.Tensor:
    """A convolution of one channel, and group norm with statistics over each row's own frames.

    With one channel in and one channel a group, mean and variance of an output channel over time
    follow from those of the kernel-sized windows of the samples: with w its kernel, μ and Σ mean
    and covariance of the windows, they are w·μ and wᵀΣw. A k × k matrix takes the place of two
    passes over the largest tensor of the model. In float64, for a kernel may well be nearly
    orthogonal to what dominates Σ.

    Args:
        samples: (B, S), zero beyond each row's length.
        frames: (B,) int64, how many of the T are the row's own, at least one.
        conv: 1 → C channels, neither padded nor dilated.
        norm: C groups of one channel.

    Returns:
        (B, C, T) in the dtype of `samples`; frames that are not the row's own mean nothing.
    """
    batch, channels = samples.shape[0], conv.out_channels
    windows = samples.double().unfold(-1, conv.kernel_size[0], conv.stride[0])  # (B, T, k)
    windows = windows * keep_mask(frames, windows.shape[1])[:, :, None]
    count = frames[:, None, None]
    means = windows.sum(dim=1, keepdim=True) / count  # (B, 1, k)
    covariance = windows.mT @ windows / count - means.mT @ means  # (B, k, k)
    wide = torch.promote_types(samples.dtype, torch.float32)
    if samples.dtype == wide:
        # Group norm takes a constant away again, but not what the convolution rounded because of
        # it. With fewer bits the subtraction itself would round more than that.
        constant = means.mean(dim=2)  # (B, 1)
        samples = samples - constant.to(wide)
        means = means - constant[:, :, None]
    # First of all: a hook may make the kernels of other weights, as pruning does.
    convolved = conv(samples[:, None])  # (B, C, T)
    kernels = conv.weight[:, 0].double()  # (C, k)
    mean = means[:, 0] @ kernels.mT  # (B, C)
    if conv.bias is not None:
        mean = mean + conv.bias
    variance = ((kernels @ covariance) * kernels).sum(dim=-1).clamp(min=0)  # (B, C)

    # Batch norm with given statistics normalises in one pass; each row's channel is a channel.
    normalised = nn.functional.batch_norm(
        convolved.flatten(0, 1)[None],  # (1, B·C, T)
        mean.flatten().to(wide),
        variance.flatten().to(wide),
        norm.weight.to(wide).repeat(batch),
        norm.bias.to(wide).repeat(batch),
        eps=norm.eps,
    )
    return normalised.view(batch, channels, -1)
