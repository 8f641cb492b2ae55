"""Write the query log that ships, or say what is in one: `simulate.py --out DIR`, `--describe`."""

from __future__ import annotations

import argparse
from pathlib import Path

from buzz import RECORDED, record
from describe import describe, write_card
from households import simulate
from weaklabel.files import written_beside

HERE = Path(__file__).parent


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
    parser.add_argument("--households", type=int, default=105)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument(
        "--recorded", type=int, default=RECORDED, help="how many queries get a recording"
    )
    arguments = parser.parse_args()
    if arguments.out is None and arguments.describe is None and not arguments.card:
        parser.error("nothing to do: give --out DIR, --describe or --card")
    if arguments.out is not None:
        log = simulate(arguments.households, arguments.days, arguments.seed)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name in ("queries", "hypotheses", "gold", "truth"):
            path = arguments.out / f"{name}.parquet"
            with written_beside(path) as beside:
                getattr(log, name).write_parquet(beside, compression="zstd", compression_level=19)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        record(log.queries.head(arguments.recorded), log.truth, arguments.out)
    if arguments.describe is not None:
        print(describe(arguments.describe))
    if arguments.card:
        write_card(HERE / "README.md", HERE)


if __name__ == "__main__":
    main()
