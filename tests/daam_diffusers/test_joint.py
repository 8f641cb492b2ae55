"""Denoisers whose layers attend over text and pixels at once, each by every proof."""

from __future__ import annotations

from dataclasses import replace

import pytest
from proofs import (
    Facts,
    cases,
    check_batches,
    check_bfloat16,
    check_negative,
    check_perturbed_token,
    check_planted,
    check_untouched,
    check_values,
)
from tiny_joint import VARIANTS

FIRST, SECOND = (0, 2), (1, 3)  # of two calls a step
BOTH = r"(single_)?transformer_blocks\.\d+\.attn"
FLUX = Facts(BOTH, (1, 8, 12), pixels=-96)
SEPARATE = replace(FLUX, calls=FIRST, negative=(SECOND, 0))
STACKED = replace(FLUX, block=1, negative=((0, 1), 0))
SD3 = Facts(BOTH, (1, 8, 12), text=96, first=(1, 77), block=1, negative=((0, 1), 0))
QWEN = Facts(BOTH, (1, 4, 6), pixels=-24)
QWEN_SEPARATE = replace(QWEN, calls=FIRST, negative=(SECOND, 0))

FACTS = {
    "flux dev": FLUX,
    "flux schnell": FLUX,
    "flux true guidance": SEPARATE,
    "flux kontext": replace(FLUX, pixels=-120),  # 4 x 6 cells of the reference image follow
    "flux fill": FLUX,
    "flux2": replace(FLUX, first=(43,)),
    "flux2 reference": replace(FLUX, first=(43,), pixels=-480),
    "flux2 klein": replace(FLUX, first=(3,), calls=FIRST),
    "flux2 klein distilled": replace(FLUX, first=(3,)),
    "sd3": SD3,
    "sd3 without t5": replace(SD3, first=(1,)),
    "sd3 without guidance": replace(SD3, block=0, negative=None),
    "sd3.5": SD3,
    "sd3.5 skip-layer guidance": SD3,  # the third call is the one that skips a layer
    # The third part of the batch, and a second attention, are perturbed.
    "sd3 pag": replace(SD3, exchanges=True),
    "chroma": SEPARATE,
    "auraflow": replace(STACKED, layers=r"(joint|single)_transformer_blocks\.\d+\.attn", text=8),
    "qwen": QWEN,
    "qwen true guidance": QWEN_SEPARATE,
    "hidream": replace(
        STACKED, layers=r"(double|single)_stream_blocks\.\d+\.block\.attn1", text=144, pixels=0
    ),
    "qwen edit": replace(QWEN, first=(16,), pixels=-32, batches=False),
    "qwen edit plus": replace(QWEN, first=(38,), pixels=-40, batches=False),
    "longcat": SEPARATE,
    "ovis": replace(SEPARATE, first=(1,)),
    "bria": STACKED,
    "fibo": replace(STACKED, grid=(1, 4, 6), pixels=-24),
    "prx": replace(STACKED, layers=r"blocks\.\d+\.attention", pixels=0, first=(-1,), batches=False),
    "nucleus": replace(QWEN_SEPARATE, text=24, pixels=0, first=(61,)),
    "kandinsky5": replace(
        QWEN_SEPARATE,
        layers=r"visual_transformer_blocks\.\d+\.cross_attention",
        pixels=0,
        order="fhwc",
        mixes_text=True,
        mixes_pixels=True,
        bfloat16=False,
    ),
}

CHECKS = (
    check_untouched,
    check_bfloat16,
    check_values,
    check_perturbed_token,
    check_planted,
    check_negative,
    check_batches,
)
case = cases(VARIANTS, FACTS)


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_joint_attention(check, name):
    check(case(name))
