"""What both trainings share: seeded batches, the progress bar and the log of losses."""

from __future__ import annotations

import json
from types import TracebackType

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from settings import Config


def batch_generator(seed: int, step: int, process: int) -> torch.Generator:
    """All randomness of one process's step, on the CPU so that devices agree."""
    high, low = np.random.SeedSequence([seed, step, process]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(high) << 32 | int(low))


class Progress:
    """A progress bar with the loss, which also goes to `losses.jsonl`; silent but on one process.

    with Progress(accelerator, config, "denoiser", steps) as progress:
        ...
        progress.advance(loss)
    """

    def __init__(
        self, accelerator: Accelerator, config: Config, name: str, steps: int, start: int = 0
    ) -> None:
        self._accelerator = accelerator
        self._config = config
        self._name = name
        self._step = start
        self._bar = tqdm(
            total=steps, initial=start, desc=name, disable=not accelerator.is_main_process
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self, loss: Tensor) -> None:
        """Count a step; every `log_every` of them, average the loss over processes and log it."""
        self._step += 1
        self._bar.update()
        if self._step % self._config.log_every:
            return
        value = float(self._accelerator.reduce(loss.detach().float(), "mean"))
        self._bar.set_postfix(loss=f"{value:.4f}")
        if self._accelerator.is_main_process:
            line = {"part": self._name, "step": self._step, "loss": round(value, 6)}
            with (self._config.work / "losses.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
