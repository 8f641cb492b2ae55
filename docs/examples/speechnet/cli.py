"""The chain's steps as commands; each does nothing where its output is there already."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speechnet import settings

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


class Third(StrEnum):
    """Recognizers that can be the third party."""

    pocketsphinx = "pocketsphinx"
    whisper = "whisper"


Size = Annotated[str, typer.Option(help="smoke, cpu or full.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes side by side.")]
Thirds = Annotated[
    list[Third] | None, typer.Option("--third", help="Only this third party; may be repeated.")
]
Noise = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the feedback that carries no information.")
]

SETS = ("three", "all", "own")
TWICE: Processes = 2


@app.callback()
def main() -> None:
    """Show the progress of each step."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")


@app.command()
def simulate(size: Size = "smoke", processes: Processes = TWICE) -> None:
    """Let households talk to a television, and record them."""
    from speechnet import simulate, speech

    simulate.simulate(settings.size_named(size), processes)
    speech.speak(settings.size_named(size), processes)


@app.command("third_party")
def third_party(size: Size = "smoke", processes: Processes = TWICE) -> None:
    """Transcribe all recordings with both recognizers."""
    from speechnet import third_party

    third_party.third_party(settings.size_named(size), processes)


@app.command()
def behave(size: Size = "smoke", third: Thirds = None, noise: Noise = 0.0) -> None:
    """Let people react to what the television did: a query log of each third party."""
    from speechnet import behave

    for name in _thirds(third):
        behave.behave(settings.size_named(size), name, noise)


@app.command()
def label(size: Size = "smoke", third: Thirds = None, noise: Noise = 0.0) -> None:
    """Label each log with three sets of labeling functions."""
    from speechnet import label

    for name in _thirds(third):
        for chosen in SETS:
            label.label(settings.size_named(size), name, chosen, noise)


@app.command()
def train(
    size: Size = "smoke",
    third: Thirds = None,
    student: Annotated[
        list[str] | None, typer.Option(help="Only this student; may be repeated.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; may be repeated.")] = None,
    noise: Noise = 0.0,
    processes: Processes = TWICE,
    again: Annotated[
        bool, typer.Option("--again", help="Transcribe the test set again, without training.")
    ] = False,
) -> None:
    """Train students and let each transcribe the test set."""
    from speechnet import train

    chosen = settings.size_named(size)
    runs = train.runs_of(chosen, _thirds(third), student or train.STUDENTS, noise)
    train.examine_all([run for run in runs if not seed or run.seed in seed], processes, again)


@app.command()
def feedback(size: Size = "smoke") -> None:
    """Measure the labels over a grid of feedback noise."""
    from speechnet import feedback

    feedback.feedback(settings.size_named(size))


@app.command()
def evaluate(
    size: Size = "smoke",
    speech: Annotated[
        Path | None, typer.Option(help="A folder of recordings to score instead of the test set.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Recordings of that folder at most.")] = 100,
) -> None:
    """Score third parties and students."""
    from speechnet import evaluate

    chosen = settings.size_named(size)
    if speech is None:
        evaluate.evaluate(chosen)
    else:
        for name, rate in evaluate.speech(speech, chosen, limit)["wer"].items():
            typer.echo(f"{name}: {rate[0]:.1%} ({rate[1]:.1%} to {rate[2]:.1%})")


@app.command()
def deploy(size: Size = "smoke") -> None:
    """Time the best student against the third parties, and replay the log's arrivals."""
    from speechnet import deploy

    # smoke shows that it works, and takes no time over it.
    brief = {"timed": 8, "rates": (5, 20), "day": 1.0, "graphs": 2} if size == "smoke" else {}
    deploy.deploy(settings.size_named(size), **brief)


@app.command()
def table(size: Size = "smoke") -> None:
    """Write the tables and plots of docs/speechnet.md."""
    from speechnet import table

    table.write(settings.size_named(size))


@app.command("all")
def everything(size: Size = "smoke", processes: Processes = TWICE) -> None:
    """Do all steps, but for the page."""
    simulate(size, processes)
    third_party(size, processes)
    behave(size)
    label(size)
    train(size, processes=processes)
    feedback(size)
    evaluate(size)
    deploy(size)


def _thirds(chosen: list[Third] | None) -> list[str]:
    return [str(third) for third in chosen or Third]
