"""The chain's steps as one command; those that take long go on from what is there already."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speechnet import settings

app = typer.Typer(pretty_exceptions_enable=False)

Step = StrEnum(
    "Step",
    "simulate third_party behave label train feedback evaluate deploy table all",
)
Third = StrEnum("Third", list(settings.SOURCES))
SizeName = StrEnum("SizeName", list(settings.SIZES))


@app.command()
def main(
    step: Annotated[Step, typer.Argument(help="all: every step but the page's tables.")],
    size: Annotated[SizeName, typer.Option(help="How much of everything.")] = SizeName.smoke,
    processes: Annotated[int, typer.Option(min=1, help="How many work side by side.")] = 2,
    third: Annotated[
        list[Third] | None, typer.Option(help="Only this third party; may be repeated.")
    ] = None,
    student: Annotated[
        list[str] | None, typer.Option(help="train: only this student; may be repeated.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="train: only this seed; may be repeated.")
    ] = None,
    noise: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the feedback that says nothing.")
    ] = 0.0,
    speech: Annotated[
        Path | None, typer.Option(help="evaluate: a folder of recordings of one's own.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="evaluate: so many of them at most.")] = 100,
) -> None:
    """Two recognizers teach a faster and better one: run one step of it, or all."""
    chosen = settings.size_named(size)
    thirds = [str(name) for name in third or Third]
    # What a step needs is imported with it, so that a help text takes no time.
    if step in ("simulate", "all"):
        from speechnet import simulate

        simulate.simulate(chosen, processes)
    if step in ("third_party", "all"):
        from speechnet import third_party

        third_party.third_party(chosen, processes)
    if step in ("behave", "all"):
        from speechnet import behave

        for name in thirds:
            behave.behave(chosen, name, noise)
    if step in ("label", "all"):
        from speechnet import label

        for name in thirds:
            for functions in label.SETS:
                label.label(chosen, name, functions, noise)
    if step in ("train", "all"):
        from speechnet import train

        runs = [  # a run that is cut short has whole seeds
            train.Run(chosen, name, learns, number, noise)
            for number in seed or chosen.seeds
            for learns in student or train.STUDENTS
            for name in thirds
        ]
        train.examine_all(runs, processes)
    if step in ("feedback", "all"):
        from speechnet import feedback

        feedback.feedback(chosen)
    if step in ("evaluate", "all"):
        from speechnet import evaluate

        if speech is None:
            evaluate.evaluate(chosen)
        else:
            for name, (rate, low, high) in evaluate.speech(speech, chosen, limit)["wer"].items():
                typer.echo(f"{name}: {rate:.1%} ({low:.1%} to {high:.1%})")
    if step in ("deploy", "all"):
        from speechnet import deploy

        deploy.deploy(chosen)
    if step == "table":
        from speechnet import table

        table.write(chosen)
