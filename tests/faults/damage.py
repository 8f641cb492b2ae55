"""Damage to a file's bytes, as disks and networks do it."""

from __future__ import annotations

import random


def damaged(whole: bytes, rng: random.Random, *, cut: bool = False) -> bytes:
    """Some bytes are changed, cut out, repeated or added, or, with `cut`, the end is missing."""
    content = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        # Heads hold what the rest means, so that half of the damage is there.
        end = min(len(content), 512) if rng.random() < 0.5 else len(content)
        at = rng.randrange(max(end, 1))
        match rng.randrange(5 if cut else 4):
            case 0 if content:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                del content[at : at + rng.randint(1, 40)]
            case 2:
                content[at:at] = content[at : at + rng.randint(1, 40)]
            case 4:
                del content[at:]
            case _:
                content[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(content)
