"""`Transcriber`: waveforms in, texts with word times out, through a model with a pool."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutomaticSpeechRecognitionPipeline, AutoModelForCTC, AutoProcessor
from transformers.modeling_outputs import CausalLMOutput

from hf_cudagraph_asr.attach import disable_cuda_graphs, enable_cuda_graphs
from hf_cudagraph_asr.decoder import Decoder, WordDecoder
from hf_cudagraph_asr.dispatch import Dispatch, batches
from hf_cudagraph_asr.geometry import FEATURES, Frames, Geometry
from hf_cudagraph_asr.plan import Bucket, BucketPlan, chunks_of
from hf_cudagraph_asr.pool import GraphPool

logger = logging.getLogger(__name__)

Waveform = npt.NDArray[np.float32]

CHUNK = 30.0  # seconds beyond which a recording is transcribed in chunks, by default

SPACES = ("▁", "Ġ")  # of SentencePiece, and of byte-level tokenizers

LOUDEST = 1e15  # float32 holds the squares of a day of such samples, added up


@dataclass(frozen=True)
class Word:
    """A word of a transcript.

    Attributes:
        text: as the tokenizer writes it.
        start: seconds from the beginning of the recording to the first letter's frame.
        end: seconds from the beginning of the recording to the end of the last letter's frame.
        confidence: the probability of the letter that is least sure, each at its surest frame; None
            where the recording was transcribed in chunks. Words are equal without it, as batches
            round it in other ways.
    """

    text: str
    start: float
    end: float
    confidence: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Transcript:
    """A recording's text, and how it was computed.

    Attributes:
        text: the text; empty where nothing is said, or the recording is too short for a frame.
        words: the words of it, in order.
        seconds: of audio.
        milliseconds: from the waveforms to the texts, for all that was computed in the same batch,
            without what was done for another meanwhile.
        dispatch: what became of the model's call; for a long recording, of its first chunk's.
        bucket: the captured length that this recording was replayed at, or None.
    """

    text: str
    words: tuple[Word, ...]
    seconds: float
    milliseconds: float
    dispatch: Dispatch
    bucket: Bucket | None = None


class Transcriber:
    """A CTC model with CUDA graphs enabled, its feature extractor and its tokenizer.

        with Transcriber.from_pretrained("facebook/wav2vec2-base-960h", plan="plan.json") as asr:
            for transcript in asr.transcribe([waveform]):
                print(transcript.text, transcript.dispatch)

    In float32, the text of a recording is the one that `pipeline("automatic-speech-recognition")`
    gives with the stock model for that recording alone, in any batch. In bfloat16 and float16 a few
    texts differ: the package's README has the rate. Any number of threads may call it.

    Args:
        model: a CTC model of transformers that takes the waveform or features, in evaluation mode.
        processor: its feature extractor and its tokenizer, as `AutoProcessor` gives them.
        pool: the pool that `enable_cuda_graphs(model, ...)` returned. `close` disables it.
        chunk_length_s: recordings longer than so many seconds are transcribed in chunks of this
            length that overlap by a sixth of it on either side, as the host's pipeline does with
            this argument; None to transcribe each in one piece, as models of features always do.
        decoder: finds the words in log-probabilities, as `WordDecoder` does, in the place of the
            best letter of each frame. Recordings that would go in chunks are refused.

    Attributes:
        extractor: the processor's feature extractor.
        tokenizer: the processor's tokenizer.
        sampling_rate: samples a second of the waveforms it takes.
        model, pool, chunk_length_s, decoder: as they were given.

    Raises:
        ValueError: the model takes something else, the processor lacks a part or decodes without
            times, or chunks of this length hold no frame.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        pool: GraphPool,
        *,
        chunk_length_s: float | None = CHUNK,
        decoder: Decoder | None = None,
    ) -> None:
        self.extractor, self.tokenizer = _parts(model, processor)
        self.model = model
        self.pool = pool
        self.decoder = decoder
        self.sampling_rate = int(self.extractor.sampling_rate)
        self._frames = Frames(model.config)
        geometry = Geometry.of(model, sampling_rate=self.sampling_rate)
        self._rate = geometry.sampling_rate  # positions of the input a second
        self._frame_seconds = self._frames.hop / self._rate
        self.chunk_length_s = chunk_length_s = None if self._frames.features else chunk_length_s
        self._longest = math.inf  # samples of a recording in one piece
        if chunk_length_s is not None:
            self._longest, stride = chunks_of(geometry, chunk_length_s)
            # The last chunk of a recording is longer than both strides, but maybe by a sample.
            if 2 * stride < self._frames.receptive_field:
                raise ValueError(
                    f"chunks of {chunk_length_s} s overlap by less than the "
                    f"{self._frames.receptive_field} samples of a frame: make them longer"
                )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        plan: BucketPlan | str | os.PathLike[str] | None = None,
        backend: str = "auto",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        batch_sizes: Iterable[int] | None = None,
        chunk_length_s: float | None = CHUNK,
        target_lang: str | None = None,
        lexicon: str | os.PathLike[str] | None = None,
        lm: str | os.PathLike[str] | None = None,
        lm_weight: float = 1.0,
    ) -> Transcriber:
        """Load a model with its processor, and enable CUDA graphs on it.

        Args:
            name_or_path: a folder, or a model's name on the hub.
            plan: the buckets, or the file they were saved to. Without one nothing is captured:
                "auto" is then the eager backend, and so exact in batches.
            backend: as in `enable_cuda_graphs`.
            device: "auto": a GPU where there is one.
            dtype: "auto": the checkpoint's own. Or a torch.dtype, or its name: "bfloat16".
            batch_sizes: rows to capture each bucket for; by default the plan's.
            chunk_length_s: as in `Transcriber`.
            target_lang: of a model with an adapter for each of many languages, such as those of
                MMS: "deu". By default the one that it is saved with.
            lexicon, lm, lm_weight: of a `WordDecoder`; without the first two there is none.

        Raises:
            ValueError: as for `Transcriber` and `enable_cuda_graphs`; no such device, dtype or
                language.
            OSError: there is no such model, plan, lexicon or language model.
            ImportError: what `WordDecoder` needs is missing.
        """
        if lm is None and lm_weight != 1:
            raise ValueError(f"lm_weight is {lm_weight!r:.60}, and there is no lm: give one")
        if plan is not None and not isinstance(plan, BucketPlan):
            plan = BucketPlan.load(plan)
        target, kind = device_of(device), dtype_of(dtype)  # refused before anything is loaded
        processor = loaded(AutoProcessor, name_or_path)
        model = loaded(AutoModelForCTC, name_or_path, dtype=kind).eval()
        extractor, tokenizer = _parts(model, processor)
        if target_lang is not None:
            _speak(model, tokenizer, target_lang)
        decoder: Decoder | None = None
        if lexicon is not None or lm is not None:
            decoder = WordDecoder(tokenizer, lexicon=lexicon, lm=lm, lm_weight=lm_weight)
        model.to(target)
        if plan is not None:
            plan.check_geometry(Geometry.of(model, sampling_rate=extractor.sampling_rate))
        elif backend == "auto":
            backend = "eager"
        pool = enable_cuda_graphs(model, plan, backend=backend, batch_sizes=batch_sizes)
        if plan is not None and not pool.backend.captures:
            logger.warning(
                "the plan is not used, as the %s backend captures nothing: on a CPU, the backend "
                "export does",
                pool.backend.name,
            )
        try:
            return cls(model, processor, pool, chunk_length_s=chunk_length_s, decoder=decoder)
        except ValueError:
            disable_cuda_graphs(model)
            raise

    def transcribe(
        self,
        waveforms: Sequence[npt.ArrayLike],
        *,
        sampling_rate: int | None = None,
        batch_size: int | None = None,
    ) -> list[Transcript]:
        """Transcribe waveforms, in the batches that cost least by what `calibrate` measured.

        Args:
            waveforms: (T,) each, floating point, mono. One shorter than the receptive field (400
                samples for Wav2Vec2) holds no frame, and so has an empty text.
            sampling_rate: of the waveforms, to have it checked.
            batch_size: most waveforms of a batch; by default the most rows that are captured, or 8.
                Those longer than a chunk go alone.

        Returns:
            As many transcripts, in the same order.

        Raises:
            ValueError: a waveform holds no sample, is stereo, of whole numbers, or not finite, the
                message naming its row; or the rate is not the model's.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"the model takes {self.sampling_rate:,} samples a second, not {sampling_rate:,}: "
                f"resample first, with read_audio(path, {self.sampling_rate}) or "
                f"torchaudio.functional.resample"
            )
        rows = []
        for row, waveform in enumerate(waveforms):
            if (fault := self.fault(waveform)) is not None:
                raise ValueError(f"row {row} {fault}")
            rows.append(np.ascontiguousarray(waveform, np.float32))
        short = [row for row, waveform in enumerate(rows) if len(waveform) <= self._longest]
        lengths = [len(rows[row]) * self._rate // self.sampling_rate for row in short]
        cuts = batches(lengths, self.pool.most_rows(batch_size), self.pool.price)
        made: list[Transcript] = []
        before: Callable[[], list[Transcript]] = list
        for cut in cuts:
            launched = self._batch([rows[short[at]] for at in cut])
            made += before()  # while a GPU computes what was launched
            before = launched
        made += before()
        found = dict(zip([short[at] for cut in cuts for at in cut], made, strict=True))
        return [found.get(row) or self._in_chunks(waveform) for row, waveform in enumerate(rows)]

    def fault(self, waveform: npt.ArrayLike) -> str | None:
        """Say why `transcribe` would refuse a waveform; None where it would not.

        Args:
            waveform: as `transcribe` takes it.

        Returns:
            The rest of a sentence that begins with the waveform's name: "is empty: leave it out".
        """
        if isinstance(waveform, (str, bytes, os.PathLike, Mapping)) or waveform is None:
            return (
                f"is a {type(waveform).__name__}, expected (samples,) of floating point: "
                f"read_audio(path, {self.sampling_rate}) reads a file"
            )
        try:
            given = np.asarray(waveform)
        except (RuntimeError, TypeError, ValueError) as error:  # torch's, and lists that are ragged
            return f"is no array that numpy takes: {error}"
        if given.ndim != 1:
            # A list of samples in the place of a list of waveforms comes here too.
            return (
                f"has the shape {given.shape}, expected (samples,): average its channels as "
                f"read_audio does, and put a single waveform in a list"
            )
        if not len(given):
            return "is empty: leave it out"
        if self.decoder is not None and len(given) > self._longest:
            seconds = len(given) / self.sampling_rate
            return (
                f"has {seconds:,.1f} s, and a decoder takes no chunks of {self.chunk_length_s} s: "
                f"cut it, or make the chunks longer"
            )
        if given.dtype.kind != "f":
            return (
                f"has {given.dtype} values, expected floating point with full scale 1: divide "
                f"16-bit samples by 32768"
            )
        if not np.isfinite(given).all():
            return "holds NaN or infinite samples: leave it out"
        if (loudest := float(np.abs(given).max())) > LOUDEST:
            return f"holds a sample of {loudest:g}, expected full scale 1: scale it"
        return None

    def close(self) -> None:
        """Give the model its own forward again and drop the pool."""
        disable_cuda_graphs(self.model)

    def __enter__(self) -> Transcriber:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _batch(self, waveforms: Sequence[Waveform]) -> Callable[[], list[Transcript]]:
        """Put a batch on the device; what is returned waits for it, and makes the texts."""
        start = perf_counter()
        rows = [*map(self._input, waveforms)]  # (T,) or (T, F) each
        lengths = [len(row) for row in rows]
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, T), (B, T, F)
        values = values.to(self.model.device, self.model.dtype)
        logits, dispatch = self.pool.call(values, lengths)  # (B, frames, V)
        on_device = self._emitted(logits)
        spent = perf_counter() - start

        def finished() -> list[Transcript]:
            start = perf_counter()
            emitted = on_device.cpu()
            field = self._frames.receptive_field
            frames = [self._frames.emitted(n) if n >= field else 0 for n in lengths]
            decoded = [
                self._decoded(row[:count]) for row, count in zip(emitted, frames, strict=True)
            ]
            milliseconds = 1000 * (spent + perf_counter() - start)
            buckets = {row: replay.bucket for replay in dispatch.replays for row in replay.rows}
            seconds = [len(waveform) / self.sampling_rate for waveform in waveforms]
            return [
                Transcript(text, words, seconds[row], milliseconds, dispatch, buckets.get(row))
                for row, (text, words) in enumerate(decoded)
            ]

        return finished

    def _input(self, waveform: Waveform) -> torch.Tensor:
        """A recording as the model takes it, normalized by its own samples alone."""
        features = self._frames.features
        # Feature extractors fail on less, or divide by zero: one frame has no variance.
        least = max(self._frames.receptive_field, 2)
        if features and len(waveform) * self._rate < least * self.sampling_rate:
            return torch.zeros((0, *features))
        asked = {"return_attention_mask": True} if features else {}
        made = self.extractor(
            waveform, sampling_rate=self.sampling_rate, return_tensors="pt", **asked
        )
        row: torch.Tensor = made[self.model.main_input_name][0]
        # Some give a position more, which is padding.
        return row[: int(made["attention_mask"].sum())] if features else row

    def _emitted(self, logits: torch.Tensor) -> torch.Tensor:
        """The best token of each frame and its log-probability, (B, frames, 2); or all of them.

        All log-probabilities, (B, frames, V), are what a decoder takes.
        """
        likely = logits.float().log_softmax(dim=-1)
        if self.decoder is not None:
            return likely
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.cat([best, likely.gather(-1, best)], dim=-1)

    def _decoded(self, emitted: torch.Tensor) -> tuple[str, tuple[Word, ...]]:
        """The text and the words of a row of `_emitted`."""
        one = self._frame_seconds
        if self.decoder is not None:
            heard = tuple(
                Word(text, start * one, end * one, sure)
                for text, start, end, sure in self.decoder(emitted)
            )
            return " ".join(word.text for word in heard), heard
        ids, sure = emitted[:, 0].long(), emitted[:, 1].exp().tolist()
        tokens, blank = ids.tolist(), self.tokenizer.pad_token_id

        def word(text: str, start: int, end: int) -> Word:
            letters = [
                max(map(sure.__getitem__, frames))
                for token, frames in groupby(range(start, end), tokens.__getitem__)
                if token != blank
            ]
            return Word(text, float(start * one), float(end * one), min(letters, default=None))

        if not _gives_offsets(self.tokenizer):
            return self.tokenizer.decode(ids), tuple(word(*of) for of in self._spans(tokens))
        found = self.tokenizer.decode(ids, output_word_offsets=True)
        return found.text, tuple(
            word(of["word"], of["start_offset"], of["end_offset"]) for of in found.word_offsets
        )

    def _spans(self, ids: list[int]) -> Iterator[tuple[str, int, int]]:
        """Words of a tokenizer of pieces, their first frame and the one after their last.

        A word begins with a piece that begins with a space.
        """
        words: list[tuple[list[int], list[int]]] = []  # pieces, and ends of their frames
        end = 0
        for token, frames in groupby(ids):
            start, end = end, end + len([*frames])
            if token == self.tokenizer.pad_token_id:
                continue
            if not words or self.tokenizer.convert_ids_to_tokens(token).startswith(SPACES):
                words.append(([], [start]))
            words[-1][0].append(token)
            words[-1][1].append(end)
        for pieces, (start, *_, end) in words:
            if text := self.tokenizer.decode(pieces, group_tokens=False).strip():
                yield text, start, end

    def _in_chunks(self, waveform: Waveform) -> Transcript:
        start = perf_counter()
        pipeline = AutomaticSpeechRecognitionPipeline(
            self.model, self.extractor, self.tokenizer, device=self.model.device
        )
        pipeline.model = called = _Called(self.model, self.pool)
        found = pipeline(waveform, chunk_length_s=self.chunk_length_s, return_timestamps="word")
        words = tuple(
            Word(chunk["text"], *map(float, chunk["timestamp"])) for chunk in found["chunks"]
        )
        spent, seconds = 1000 * (perf_counter() - start), len(waveform) / self.sampling_rate
        dispatch = called.dispatches[0]
        return Transcript(found["text"], words, seconds, spent, dispatch, dispatch.bucket)


class _Called:
    """A model as the host's pipeline calls it, answered by the pool; it keeps what became of it."""

    def __init__(self, model: Any, pool: GraphPool) -> None:
        self._model, self._pool = model, pool
        self.dispatches: list[Dispatch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, input_values: torch.Tensor, **_: Any) -> CausalLMOutput:
        # A chunk at a time: the mask that comes with it is all ones.
        logits, dispatch = self._pool.call(input_values)
        self.dispatches.append(dispatch)
        return CausalLMOutput(logits=logits)


def loaded(auto: Any, name_or_path: str | os.PathLike[str], **options: Any) -> Any:
    """Load something by its name, as `auto.from_pretrained(name_or_path, **options)` does.

    Raises:
        OSError: it is not there, or damaged; the host's own message may not name it.
    """
    try:
        return auto.from_pretrained(name_or_path, **options)
    except Exception as error:
        raise OSError(
            f"{auto.__name__} found nothing to load in {os.fspath(name_or_path)!r}, expected a "
            f"model's folder or its name on the hub: {error}"
        ) from error


def _speak(model: Any, tokenizer: Any, language: str) -> None:
    """Load a language's adapter and head, and its letters."""
    letters = getattr(tokenizer, "vocab", {}).get(language)
    if not isinstance(letters, dict) or not hasattr(model, "load_adapter"):
        raise ValueError(
            f"target_lang is {language!r:.60}, of which the tokenizer has no letters: it is for "
            f"models of many languages, such as MMS's, and their names, such as 'eng'"
        )
    model.load_adapter(language)
    tokenizer.set_target_lang(language)


def device_of(choice: str | torch.device) -> torch.device:
    """Find a device by its name; "auto" is the GPU, or the CPU where there is none."""
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(choice)
    except RuntimeError as error:
        raise ValueError(f"no device {choice!r}: expected auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"no device {str(device)!r}: torch sees {torch.cuda.device_count()} GPUs here; give "
            f"cpu or auto"
        )
    return device


def dtype_of(choice: str | torch.dtype) -> str | torch.dtype:
    """Find a floating-point type by its name, or "auto"."""
    if choice == "auto":
        return "auto"
    found = getattr(torch, choice, None) if isinstance(choice, str) else choice
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise ValueError(f"no dtype {choice!r}: expected auto, float32, bfloat16 or float16")


def _parts(model: Any, processor: Any) -> tuple[Any, Any]:
    """The processor's feature extractor and tokenizer, if they serve this model."""
    extractor: Any = getattr(processor, "feature_extractor", None)
    tokenizer: Any = getattr(processor, "tokenizer", None)
    if extractor is None or tokenizer is None:
        raise ValueError(
            f"{type(processor).__name__} has no feature extractor beside a tokenizer: pass a "
            f"Wav2Vec2Processor(feature_extractor, tokenizer)"
        )
    taken = getattr(model, "main_input_name", "something else")
    if taken != "input_values" and model.config.model_type not in FEATURES:
        raise ValueError(
            f"{type(model).__name__} takes {taken}, not the waveform: a CTC model of the Wav2Vec2 "
            f"family is needed, or one of {', '.join(FEATURES)}"
        )
    if hasattr(processor, "decoder"):
        raise ValueError(
            f"{type(processor).__name__} decodes with pyctcdecode, which is not used here: pass a "
            f"Wav2Vec2Processor(processor.feature_extractor, processor.tokenizer), and a decoder"
        )
    # The second are tokenizers of pieces that group them as CTC does.
    grouping = "group_tokens" in inspect.signature(tokenizer._decode).parameters
    if not (_gives_offsets(tokenizer) or (tokenizer.is_fast and grouping)):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no word offsets: a Wav2Vec2CTCTokenizer is needed, "
            f"or the tokenizer of Parakeet or Lasr"
        )
    return extractor, tokenizer


def _gives_offsets(tokenizer: Any) -> bool:
    return "output_word_offsets" in inspect.signature(tokenizer.decode).parameters
