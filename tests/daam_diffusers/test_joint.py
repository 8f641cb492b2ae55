"""Denoisers whose layers attend over text and pixels at once, each by every proof."""

from __future__ import annotations

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

DOUBLE = r"(single_)?transformer_blocks\.\d+\.attn"
FLUX = Facts(DOUBLE, (1, 8, 12), pixels=-96)

FACTS = {
    "flux dev": FLUX,
    "sd3": Facts(DOUBLE, (1, 8, 12), text=96, first=(1, 77), block=1, negative=((0, 1), 0)),
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
