"""Prompts of any characters, read by every kind of tokenizer: no word loses a column."""

from __future__ import annotations

import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import record  # noqa: F401 - finds the makers of tiny tokenizers
import tiny_cross
import tiny_text
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from tiny_tokenizer import WORDS, clip_tokenizer
from transformers import BertTokenizer, XLMRobertaTokenizer

from daam_diffusers import TraceWarning
from daam_diffusers.prompt import Prompt, place, token_spans, tokenize

COLUMNS = 250  # more than any of these prompts has

KINDS: dict[str, Callable[[], Any]] = {
    "bytes in pairs, words ended (CLIP)": lambda: clip_tokenizer(COLUMNS),
    "unigrams (T5)": lambda: tiny_text.t5_tokenizer(COLUMNS),
    "bytes (ByT5)": tiny_text.byt5_tokenizer,
    "characters in pairs, bytes for others (Gemma)": lambda: tiny_text.gemma_tokenizer(COLUMNS),
    "bytes in pairs (Qwen)": tiny_text.qwen_tokenizer,
    "bytes in pairs, three digits (Llama)": tiny_text.llama_tokenizer,
    "bytes in pairs, two starts (GLM)": tiny_text.glm_tokenizer,
    "unigrams (XLM-R)": lambda: xlm_tokenizer(),
    "word pieces (BERT)": lambda: bert_tokenizer(),
    "SentencePiece in Python (ChatGLM)": tiny_cross.chatglm_tokenizer,
}


def xlm_tokenizer() -> Any:
    """Of Kandinsky 2.1."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *("▁" + word for word in WORDS)]
    pieces += [*tiny_text.CHARACTERS, "<mask>"]
    return XLMRobertaTokenizer(vocab=[(piece, -1.0) for piece in pieces], model_max_length=COLUMNS)


def bert_tokenizer() -> Any:
    """Of Hunyuan-DiT; it lowers letters and takes accents off."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *tiny_text.CHARACTERS]
    pieces += ["##" + letter for letter in tiny_text.CHARACTERS]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return BertTokenizer(vocab=vocabulary, model_max_length=COLUMNS)


PIECES = [
    *(*WORDS, "Dog's", "naïve", "e\u0301", "猫", "👩\u200d🚀", "ﬁ", "İ", "ǅ", "1️⃣"),
    *("<bos>", "<|endoftext|>", "</s>", "▁", "Ġ", "<0x41>"),
    *("\u200b", "\ufeff", " ", "  ", "\n", "\t", "\x00"),
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8).map("".join)


def placed(text: str, tokenizer: Any) -> Prompt:
    if isinstance(tokenizer, ChatGLMTokenizer):  # whose own layout `encoders` knows
        spans = token_spans(text, tokenizer)
        return place(text, spans, range(2, COLUMNS), COLUMNS, tokenizer, (0, 1), ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        return tokenize(text, tokenizer, COLUMNS)


def read(text: str, tokenizer: Any) -> Prompt:
    """A prompt with its tokens placed, after what holds for every text was found to hold."""
    spans = token_spans(text, tokenizer)
    given_ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert [token for token, _, _ in spans] == given_ids
    assert all(0 <= start <= end <= len(text) for _, start, end in spans)
    prompt = placed(text, tokenizer)
    for token in prompt.tokens:
        assert token.text == text[token.start : token.end] != ""
        assert token.text == token.text.strip()
    columns = [token.column for token in prompt.tokens]
    assert columns == sorted(columns)
    assert not {*columns} & {*prompt.start, *prompt.end}
    in_words = {column for word in prompt.words for column in word.columns}
    for token in prompt.tokens:  # what belongs to no word is not seen
        seen = any(unicodedata.category(char)[0] not in "CMZ" for char in token.text)
        assert token.column in in_words or not seen
    assert in_words <= {*columns}
    for word, occurrence in zip(prompt.words, prompt.occurrences, strict=True):
        assert text[word.start : word.end] == word.text
        assert prompt.find(word.text, occurrence) == word
    return prompt


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(text=texts)
def test_any_prompt_is_aligned_and_every_listed_word_is_found(kind: str, text: str) -> None:
    read(text, KINDS[kind]())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=9))
def test_words_between_spaces_have_their_own_columns(kind: str, words: list[str]) -> None:
    prompt = read(" ".join(words), KINDS[kind]())
    assert [word.text for word in prompt.words] == words
    columns = [column for word in prompt.words for column in word.columns]
    assert len(columns) == len({*columns})
