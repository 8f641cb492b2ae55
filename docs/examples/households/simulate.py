"""Write the query log that ships, or say what is in one: `simulate.py --out DIR`, `--describe`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from buzz import RECORDED, record
from describe import describe, write_card
from households import simulate
from weaklabel.files import written_beside

HERE = Path(__file__).parent


def at_least(lowest: int) -> Callable[[str], int]:
    """Type of an argument that is a whole number from `lowest` on."""

    def number(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"at least {lowest} is needed, got {text}")
        return int(text)

    return number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the tables into this folder")
    parser.add_argument(
        "--describe", nargs="?", type=Path, const=HERE, metavar="DIR", help="measure a folder"
    )
    parser.add_argument(
        "--card", action="store_true", help="write the shipped numbers into README.md"
    )
    parser.add_argument("--households", type=at_least(1), default=105)
    parser.add_argument("--days", type=at_least(1), default=14)
    parser.add_argument("--seed", type=at_least(0), default=11)
    parser.add_argument(
        "--recorded",
        type=at_least(0),
        default=RECORDED,
        help="how many queries get a recording",
    )
    arguments = parser.parse_args()
    if arguments.out is None and arguments.describe is None and not arguments.card:
        parser.error("nothing to do: give --out DIR, --describe or --card")
    try:
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            log = simulate(arguments.households, arguments.days, arguments.seed)
            for name in ("queries", "hypotheses", "gold", "truth"):
                path = arguments.out / f"{name}.parquet"
                with written_beside(path) as beside:
                    getattr(log, name).write_parquet(
                        beside, compression="zstd", compression_level=19
                    )
                print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
            recorded = log.queries.head(arguments.recorded)
            record(recorded, log.truth, arguments.out)
            print(f"{arguments.out / 'recordings'}: {len(recorded)} of {len(log.queries)} queries")
        if arguments.describe is not None:
            print(describe(arguments.describe))
        if arguments.card:
            write_card(HERE / "README.md", HERE)
    except OSError as error:  # of a folder that is none, or a full disk
        parser.error(str(error))


if __name__ == "__main__":
    main()
