"""A tokenizer like CLIP's, with a dozen words; it needs neither torch nor diffusers."""

from __future__ import annotations

import functools

from transformers import CLIPTokenizer

WORDS = "a the red blue car dog house beside and running left of".split()


@functools.cache
def clip_tokenizer(window: int = 77) -> CLIPTokenizer:
    """Byte-level BPE as CLIP's: known words are one token, all others fall to single characters."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        if len(word) == 1:
            continue
        left = word[0]
        for right in [*word[1:-1], word[-1] + "</w>"]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            if left not in vocabulary:
                vocabulary.append(left)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=window)
