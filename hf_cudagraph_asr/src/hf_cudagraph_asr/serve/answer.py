"""What passes between Gateway and Recognizer, and what a client is sent. No Ray, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hf_cudagraph_asr.words import Transcript

__all__ = ["Answer", "Facts", "Fault"]


@dataclass(frozen=True)
class Facts:
    """What a Gateway must know of the model before it decodes, and what /healthz tells.

    Attributes:
        replica: the Recognizer's id.
        pid: of its process, on its machine.
        sampling_rate: samples a second that the model takes.
        shortest: the fewest samples that it gives a frame for.
        backend: of its pool.
        buckets: samples of each bucket; empty where nothing is captured.
        rows: batch sizes captured; empty likewise.
        max_batch_size: queries of a batch, at most.
        longest: what becomes of a query as long as the last bucket, or of a second of audio
            where there is none: so a capture that failed is told, with its reason.
    """

    replica: str
    pid: int
    sampling_rate: int
    shortest: int
    backend: str
    buckets: tuple[int, ...]
    rows: tuple[int, ...]
    max_batch_size: int
    longest: str

    def health(self) -> dict[str, Any]:
        """What /healthz tells of a replica."""
        return {
            "replica": self.replica,
            "pid": self.pid,
            "backend": self.backend,
            "buckets": len(self.buckets),
            "max_batch_size": self.max_batch_size,
            "longest": self.longest,
        }


@dataclass(frozen=True)
class Fault:
    """A query that a Recognizer could not transcribe.

    Attributes:
        kind: "stale": it was made for another model, so the Gateway is to ask for the facts and
            send it as they say. "refused": the model cannot take it. "failed": the model did not.
        detail: what went wrong.
    """

    kind: Literal["stale", "refused", "failed"]
    detail: str


@dataclass(frozen=True)
class Answer:
    """A query transcribed.

    Attributes:
        transcript: text, words, what became of the model's call.
        replica: the Recognizer's id.
        batch: queries that went through the model together.
        waited: milliseconds from its arrival at the Recognizer to the device.
    """

    transcript: Transcript
    replica: str
    batch: int
    waited: float

    def body(self, sampling_rate: int) -> dict[str, Any]:
        """What the client is sent; times in seconds, rounded to a tenth of a millisecond.

        Args:
            sampling_rate: samples a second of the model.
        """
        said, bucket = self.transcript, self.transcript.bucket
        return {
            "text": said.text,
            "words": [
                {"text": word.text, "start": round(word.start, 4), "end": round(word.end, 4)}
                for word in said.words
            ],
            "seconds": round(said.seconds, 4),
            "milliseconds": round(said.milliseconds, 3),
            "waited_milliseconds": round(self.waited, 3),
            "batch": self.batch,
            "bucket": None
            if bucket is None
            else {
                "frames": bucket.frames,
                "samples": bucket.samples,
                "seconds": round(bucket.samples / sampling_rate, 4),
            },
            "dispatch": str(said.dispatch),
            "replica": self.replica,
        }
