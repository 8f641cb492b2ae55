"""The table in docs/families.md, written by `python tests/daam_diffusers/families_page.py`."""

from __future__ import annotations

from pathlib import Path

from daam_diffusers.families import Family, transformers, unets

PAGE = Path(__file__).parents[2] / "docs/families.md"
BUILT_IN = (*unets.FAMILIES, *transformers.FAMILIES)

_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


def table() -> str:
    """The table in Markdown, a row a family."""
    head = ("models", "pipelines", "denoiser", "attention", "guidance", "text encoders")
    rows = [(*head, "default layers", "notes"), ("---",) * 8]
    rows += [_row(family) for family in BUILT_IN]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(family: Family) -> tuple[str, ...]:
    kinds = " and ".join(dict.fromkeys(family.layers.values()))
    encoders = [f"`{one.component}`" for text in family.text for one in text.encoders]
    return (
        family.name,
        ", ".join(f"`{name}`" for name in family.pipelines),
        f"`{family.denoiser}`",
        kinds,
        family.guidance,
        ", ".join(dict.fromkeys(encoders)),
        family.default,
        family.notes,
    )


def page() -> str:
    """The whole page: as it is, with the table of today."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{rest.partition(_END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
