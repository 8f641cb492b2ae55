"""What can be set: of the application when it starts, and of running replicas. No Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

__all__ = ["Batching", "Limits", "ModelSettings", "Settings"]

Reader = Callable[[Any], Any]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _whole(least: int) -> Reader:
    def read(value: Any) -> int:
        number = _number(value)
        if number != int(number) or number < least:
            raise ValueError
        return int(number)

    read.__doc__ = f"a whole number from {least} up"
    return read


def _above(least: float, *, inclusive: bool = False) -> Reader:
    def read(value: Any) -> float:
        number = _number(value)
        if number < least or (number == least and not inclusive):
            raise ValueError
        return number

    read.__doc__ = f"a number {'from' if inclusive else 'above'} {least:g}{' up' * inclusive}"
    return read


def _text(value: Any) -> str:
    """a text that is not empty"""
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    """whole numbers from 1 up, such as 1,2,4"""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ValueError
    return tuple(sorted({_whole(1)(part) for part in parts}))


def _set(default: Any, read: Reader) -> Any:
    return field(default=default, metadata={"read": read})


@dataclass(frozen=True)
class _Read:
    """Settings that are read from a mapping, with every value checked."""

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Self:
        """These settings; what is not given keeps its default.

        Args:
            given: values by name, or their texts. None where the default is None.

        Raises:
            ValueError: a name is unknown or a value is not what it should be.
        """
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise ValueError(f"settings are names with values, not {given!r:.60}")
        known = {entry.name: entry for entry in fields(cls)}
        unknown = [str(name) for name in given if name not in known]
        if unknown:
            raise ValueError(
                f"no setting {', '.join(unknown)}: expected some of {', '.join(known)}"
            )
        values: dict[str, Any] = {}
        for name, value in given.items():
            if value is None and known[name].default is None:
                continue
            read: Reader = known[name].metadata["read"]
            try:
                values[name] = read(value)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{name} is {value!r:.60}, expected {read.__doc__}") from error
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All of them, as JSON and YAML can hold them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Limits(_Read):
    """The `user_config` of Gateway: it changes without a restart.

    Attributes:
        max_bytes: of a request's body.
        max_seconds: of audio, by the file's header.
        timeout_s: for the body to arrive, and again for the transcript.
        start_timeout_s: how long a request waits for a first Recognizer to be ready. It is also
            what wakes one where `min_replicas` is 0, so give it the time a start takes then.
        retry_after_s: what a refused client is told to wait.
    """

    max_bytes: int = _set(16 * 2**20, _whole(1))
    max_seconds: float = _set(30.0, _above(0))
    timeout_s: float = _set(30.0, _above(0))
    start_timeout_s: float = _set(2.0, _above(0))
    retry_after_s: int = _set(1, _whole(0))


@dataclass(frozen=True)
class Batching(_Read):
    """The `user_config` of Recognizer: it changes without a restart.

    Attributes:
        max_batch_size: queries that go through the model together, at most; by default as many as
            the plan's programs have rows, or 8 where nothing is captured.
        batch_wait_s: how long a query waits for others although the device may be free. With 0,
            those that came while the device was busy go together, and none waits in vain.
    """

    max_batch_size: int | None = _set(None, _whole(1))
    batch_wait_s: float = _set(0.0, _above(0, inclusive=True))

    def rows(self, captured: tuple[int, ...]) -> int:
        """The largest batch to make.

        Args:
            captured: rows that programs were captured for; empty where nothing was.
        """
        if not captured:
            return EAGER_ROWS if self.max_batch_size is None else self.max_batch_size
        most = max(captured)
        return most if self.max_batch_size is None else min(self.max_batch_size, most)


EAGER_ROWS = 8


@dataclass(frozen=True)
class ModelSettings(_Read):
    """What a Recognizer is made with. To change one is to start the replicas anew.

    Attributes:
        model: a folder that each machine has, or a model's name on the hub.
        plan: the file of a plan, which each machine has.
        backend, device, dtype, batch_sizes: as in `Transcriber.from_pretrained`.
    """

    model: str = field(metadata={"read": _text})
    plan: str | None = _set(None, _text)
    backend: str = _set("auto", _text)
    device: str = _set("auto", _text)
    dtype: str = _set("auto", _text)
    batch_sizes: tuple[int, ...] | None = _set(None, _sizes)

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Self:
        """As in every class of settings; `model` must be given."""
        if not given or given.get("model") is None:
            raise ValueError("model is missing: give a folder, or a model's name on the hub")
        return super().of(given)


@dataclass(frozen=True)
class Settings(ModelSettings):
    """The application's arguments. A configuration's `deployments` have the last word on these.

    Attributes:
        replicas: of Recognizer; a pool each.
        gateways: replicas of Gateway.
        cpus: logical CPUs of a Recognizer. Ray also gives it so many threads.
        gpus: GPUs of a Recognizer: 1 where it is to have one for itself.
        max_ongoing: requests that are sent to a Recognizer at a time: those on the device and
            those from which the next batches are chosen.
        max_queued: requests that wait in a Gateway for a Recognizer with room; more are refused.
    """

    replicas: int = _set(1, _whole(1))
    gateways: int = _set(1, _whole(1))
    cpus: float = _set(1.0, _above(0, inclusive=True))
    gpus: float = _set(0.0, _above(0, inclusive=True))
    max_ongoing: int = _set(32, _whole(1))
    max_queued: int = _set(128, _whole(1))

    @property
    def of_model(self) -> ModelSettings:
        """Those that a Recognizer is made with."""
        return ModelSettings(**{f.name: getattr(self, f.name) for f in fields(ModelSettings)})
