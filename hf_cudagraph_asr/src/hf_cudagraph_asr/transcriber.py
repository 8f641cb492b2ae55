"""`Transcriber`: waveforms in, texts with word times out, through an enabled model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hf_cudagraph_asr.attach import disable_cuda_graphs, enable_cuda_graphs
from hf_cudagraph_asr.dispatch import Dispatch
from hf_cudagraph_asr.geometry import Frames, Geometry
from hf_cudagraph_asr.loading import device_of, dtype_of, loaded
from hf_cudagraph_asr.plan import BucketPlan, Chunking
from hf_cudagraph_asr.pool import GraphPool
from hf_cudagraph_asr.words import Transcript, Word, frame_seconds, spoken

__all__ = ["Transcriber", "Transcript", "Word"]

Waveform = npt.NDArray[np.float32]

CHUNK = 30.0
"""Seconds beyond which a recording is transcribed in chunks, unless told otherwise."""

LOUDEST = 1e15  # float32 holds the squares of a day of such samples, added up


class Transcriber:
    """A CTC model with CUDA graphs enabled, its feature extractor and its tokenizer.

        with Transcriber.from_pretrained("facebook/wav2vec2-base-960h", plan="plan.json") as asr:
            for transcript in asr.transcribe([waveform]):
                print(transcript.text, transcript.dispatch)

    The text of a query is what `pipeline("automatic-speech-recognition")` gives with the stock
    model for that query alone, whatever it is batched with. Any number of threads may call it.

    Args:
        model: a CTC model of transformers that takes the waveform, in evaluation mode.
        processor: its feature extractor and its tokenizer, as `AutoProcessor` gives them.
        pool: what `enable_cuda_graphs(model, ...)` returned. `close` disables it.
        chunk_length_s: recordings longer than so many seconds are transcribed in chunks of this
            length that overlap by a sixth of it on either side, as the host's pipeline does with
            this argument; None to transcribe each in one piece.

    Attributes:
        model: the model.
        extractor: the processor's feature extractor.
        tokenizer: the processor's tokenizer.
        pool: the pool.
        sampling_rate: samples a second of the waveforms it takes.
        chunk_length_s: as it was given.

    Raises:
        ValueError: the model takes no waveform, the processor lacks a part or decodes without
            times, or chunks of this length hold no frame.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        pool: GraphPool,
        *,
        chunk_length_s: float | None = CHUNK,
    ) -> None:
        self.extractor, self.tokenizer = _parts(model, processor)
        self.model = model
        self.pool = pool
        self.sampling_rate = int(self.extractor.sampling_rate)
        self._geometry = Geometry.of(model, sampling_rate=self.sampling_rate)
        self._frames = Frames.of(model.config)
        self._a_frame = frame_seconds(model.config, self.sampling_rate)
        self.chunk_length_s = chunk_length_s
        self._chunk: int | None = None
        if chunk_length_s is not None:
            chunking = Chunking.of(self._geometry, chunk_length_s)
            # The last chunk of a recording is longer than both strides, but maybe by a sample.
            if chunking.left + chunking.right < self._frames.receptive_field:
                raise ValueError(
                    f"chunks of {chunk_length_s} s overlap by less than the "
                    f"{self._frames.receptive_field} samples of a frame: make them longer"
                )
            self._chunk = chunking.chunk

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

        Raises:
            ValueError: what `Transcriber` and `enable_cuda_graphs` raise; no such device or dtype.
            OSError: there is no such model, or no such plan.
        """
        from transformers import AutoModelForCTC, AutoProcessor

        if plan is not None and not isinstance(plan, BucketPlan):
            plan = BucketPlan.load(plan)
        target, kind = device_of(device), dtype_of(dtype)  # refused before anything is loaded
        processor = loaded(AutoProcessor, name_or_path)
        model = loaded(AutoModelForCTC, name_or_path, dtype=kind).eval().to(target)
        extractor, _ = _parts(model, processor)
        if plan is not None:
            plan.check_geometry(Geometry.of(model, sampling_rate=extractor.sampling_rate))
        pool = enable_cuda_graphs(
            model,
            plan,
            backend="eager" if plan is None and backend == "auto" else backend,
            batch_sizes=batch_sizes,
        )
        try:
            return cls(model, processor, pool, chunk_length_s=chunk_length_s)
        except ValueError:
            disable_cuda_graphs(model)
            raise

    def transcribe(
        self, waveforms: Sequence[npt.ArrayLike], *, sampling_rate: int | None = None
    ) -> list[Transcript]:
        """What is said in each waveform.

        All that are no longer than a chunk go through the model together.

        Args:
            waveforms: (T,) each, floating point, mono.
            sampling_rate: of the waveforms, to have it checked.

        Returns:
            As many transcripts, in the same order.

        Raises:
            ValueError: a waveform is empty, shorter than the receptive field, stereo, of whole
                numbers, or not finite, the message naming its row; or the rate is not the model's.
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
            rows.append(np.asarray(waveform).astype(np.float32, copy=False))
        long = {row for row, waveform in enumerate(rows) if self._is_long(waveform)}
        found = {row: self._in_chunks(rows[row]) for row in long}
        together = [row for row in range(len(rows)) if row not in long]
        # Without an exact forward, rows of a batch would change each other's texts.
        alone = len(together) > 1 and self._explain([rows[row] for row in together]).route == "host"
        for batch in [[row] for row in together] if alone else [together] if together else []:
            answers = self._batch([rows[row] for row in batch])
            found.update(zip(batch, answers, strict=True))
        return [found[row] for row in range(len(rows))]

    def fault(self, waveform: npt.ArrayLike) -> str | None:
        """Why `transcribe` would refuse a waveform, or None where it would not.

        Args:
            waveform: as `transcribe` takes it.

        Returns:
            What goes on from the waveform's name: "is empty: leave it out".
        """
        given = np.asarray(waveform)
        if given.ndim != 1:
            # A list of samples in the place of a list of waveforms comes here too.
            return (
                f"has the shape {given.shape}, expected (samples,): average its channels as "
                f"read_audio does, and put a single waveform in a list"
            )
        if not len(given):
            return "is empty: leave it out"
        if given.dtype.kind != "f":
            return (
                f"has {given.dtype} values, expected floating point with full scale 1: divide "
                f"16-bit samples by 32768"
            )
        if not np.isfinite(given).all():
            return "holds NaN or infinite samples: leave it out"
        if (loudest := float(np.abs(given).max())) > LOUDEST:
            return f"holds a sample of {loudest:g}, expected full scale 1: scale it"
        if len(given) < self._frames.receptive_field:
            return (
                f"has {len(given)} samples, and the model needs {self._frames.receptive_field}, "
                f"the receptive field of a frame: leave it out, or pad it with silence"
            )
        return None

    def close(self) -> None:
        """Give the model its own forward again and drop the pool."""
        disable_cuda_graphs(self.model)

    def __enter__(self) -> Transcriber:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _explain(self, waveforms: Sequence[Waveform]) -> Dispatch:
        return self.pool.explain([len(waveform) for waveform in waveforms])

    def _is_long(self, waveform: Waveform) -> bool:
        return self._chunk is not None and len(waveform) > self._chunk

    def _features(self, waveform: Waveform) -> torch.Tensor:
        """(T,) float32, normalised by the samples of this row alone."""
        found: torch.Tensor = self.extractor(
            waveform, sampling_rate=self.sampling_rate, return_tensors="pt"
        ).input_values[0]
        return found

    def _batch(self, waveforms: Sequence[Waveform]) -> list[Transcript]:
        start = perf_counter()
        dispatch = self._explain(waveforms)
        features = [self._features(waveform) for waveform in waveforms]
        lengths = torch.tensor([len(row) for row in features])
        values = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)  # (B, T)
        mask = None
        if dispatch.route == "host" or len(set(lengths.tolist())) > 1:  # as the pipeline calls it
            mask = (torch.arange(values.shape[1]) < lengths[:, None]).long()
            mask = mask.to(self.model.device)
        with torch.inference_mode():
            logits = self.model(
                values.to(self.model.device, self.model.dtype), attention_mask=mask
            ).logits  # (B, frames, V)
            ids = logits.argmax(dim=-1).cpu()  # waits for the device
        said = [
            spoken(self.tokenizer, row[: self._frames.emitted(len(waveform))], self._a_frame)
            for row, waveform in zip(ids, waveforms, strict=True)
        ]
        milliseconds = 1000 * (perf_counter() - start)
        buckets = {row: replay.bucket for replay in dispatch.replays for row in replay.rows}
        return [
            Transcript(
                text,
                words,
                len(waveforms[row]) / self.sampling_rate,
                milliseconds,
                dispatch,
                buckets.get(row),
            )
            for row, (text, words) in enumerate(said)
        ]

    def _in_chunks(self, waveform: Waveform) -> Transcript:
        start = perf_counter()
        assert self._chunk is not None  # or nothing is long
        found = self._pipeline(
            waveform, chunk_length_s=self.chunk_length_s, return_timestamps="word"
        )
        words = tuple(
            Word(chunk["text"], *map(float, chunk["timestamp"])) for chunk in found["chunks"]
        )
        milliseconds = 1000 * (perf_counter() - start)
        seconds = len(waveform) / self.sampling_rate
        dispatch = self.pool.explain(self._chunk)
        return Transcript(found["text"], words, seconds, milliseconds, dispatch, dispatch.bucket)

    @cached_property
    def _pipeline(self) -> Any:
        from transformers import AutomaticSpeechRecognitionPipeline

        return AutomaticSpeechRecognitionPipeline(
            model=self.model,
            tokenizer=self.tokenizer,
            feature_extractor=self.extractor,
            device=self.model.device,
        )


def _parts(model: Any, processor: Any) -> tuple[Any, Any]:
    """The processor's feature extractor and tokenizer, if they serve this model."""
    extractor: Any = getattr(processor, "feature_extractor", None)
    tokenizer: Any = getattr(processor, "tokenizer", None)
    if extractor is None or tokenizer is None:
        raise ValueError(
            f"{type(processor).__name__} has no feature extractor beside a tokenizer: pass a "
            f"Wav2Vec2Processor(feature_extractor, tokenizer)"
        )
    if getattr(model, "main_input_name", None) != "input_values":
        raise ValueError(
            f"{type(model).__name__} takes {getattr(model, 'main_input_name', 'something else')}, "
            f"not the waveform: a CTC model of the Wav2Vec2 family is needed"
        )
    if hasattr(processor, "decoder"):
        raise ValueError(
            f"{type(processor).__name__} decodes with a language model, and transcripts here are "
            f"greedy: pass Wav2Vec2Processor(processor.feature_extractor, processor.tokenizer)"
        )
    if "output_word_offsets" not in inspect.signature(tokenizer.decode).parameters:
        raise ValueError(
            f"{type(tokenizer).__name__} gives no word offsets: a Wav2Vec2CTCTokenizer is needed"
        )
    return extractor, tokenizer
