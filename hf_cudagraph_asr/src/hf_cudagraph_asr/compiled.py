"""`compile`: the exact forward through torch.compile, a program for each shape.

Dynamo keeps what it compiled with a function's code, and tells the entries apart by guards that
look at the model and at global state at every call. Here each shape has code of its own, with a
single entry and no guards: a program is called with one shape, and the pool looks by itself for
weights that are no longer those it was made for. So no shape makes another one compile again,
however many there are, nor does a caller that is in inference mode.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, Self

import torch

from hf_cudagraph_asr.capture import EagerBackend, Program
from hf_cudagraph_asr.cuda_graphs import CudaBackend
from hf_cudagraph_asr.exact import ExactForward

__all__ = ["CompileBackend", "CompiledGraphBackend"]

Shape = tuple[int, ...]


class CompileBackend(EagerBackend):
    """Programs by torch.compile alone, for a CPU. Compiled at the warm-up."""

    name = "compile"
    captures = True

    def __init__(self) -> None:
        self._programs: dict[Shape, Program] = {}

    def warm(self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor) -> None:
        """Compile it and run it.

        Raises:
            RuntimeError: it does not compile; the message says why.
        """
        program = self._programs[tuple(input_values.shape)] = compiled(exact)
        run(program, input_values, lengths)

    def capture(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """The program that was compiled."""
        shape = tuple(input_values.shape)
        if shape not in self._programs:
            self.warm(exact, input_values, lengths)
        return self._programs[shape]

    def replica(self, *, live: bool = False) -> Self:
        """One that compiles its own."""
        return type(self)()

    def close(self) -> None:
        """Forget the programs."""
        self._programs.clear()


class CompiledGraphBackend(CudaBackend):
    """CUDA graphs of the compiled forward."""

    name = "compile"

    def __init__(self) -> None:
        super().__init__()
        self._programs: dict[Shape, Program] = {}

    def program(
        self, exact: ExactForward, input_values: torch.Tensor, lengths: torch.Tensor
    ) -> Program:
        """The forward, compiled for these shapes when they are first asked for."""
        shape = tuple(input_values.shape)
        if shape not in self._programs:
            program = compiled(exact)
            run(program, input_values, lengths)
            self._programs[shape] = program
        return self._programs[shape]

    def close(self) -> None:
        """Forget the programs as well."""
        super().close()
        self._programs.clear()


def compiled(exact: ExactForward) -> Program:
    """The forward for the one shape it is first called with; that call compiles it.

    Its weights are the model's own, so that values changed in place are used.
    """

    def program(
        input_values: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs: tuple[torch.Tensor, torch.Tensor] = exact(input_values, lengths)
        return outputs

    # A copy of the code: what is compiled of it belongs to this program alone.
    own = FunctionType(program.__code__.replace(), globals(), "program", None, program.__closure__)
    found: Any = torch.compile(
        own,
        dynamic=False,
        fullgraph=True,
        options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
    )
    return found  # type: ignore[no-any-return]


def run(program: Program, input_values: torch.Tensor, lengths: torch.Tensor) -> None:
    """The call that compiles.

    Raises:
        RuntimeError: it fails; the message says how.
    """
    try:
        with torch.inference_mode(False), torch.no_grad():
            program(input_values, lengths)
    except RuntimeError as error:
        # Dynamo's and Inductor's errors go on for pages after a first line, or a second, that says
        # what it is.
        lines = str(error).strip().splitlines() or [""]
        told = lines[1] if lines[0].endswith("raised:") and len(lines) > 1 else lines[0]
        what = f"{type(error).__name__}: {told}"
        remedy = ""
        if "compiler" in what:
            remedy = "; install g++, or name a compiler in the variable CXX"
        raise RuntimeError(
            f"the forward of {tuple(input_values.shape)} does not compile: {what}{remedy}, or take "
            f"another backend"
        ) from error
