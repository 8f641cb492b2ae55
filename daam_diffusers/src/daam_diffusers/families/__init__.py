"""The table of denoisers: `table` says what a row is, the other modules hold the rows."""

from daam_diffusers.families import cross, joint, unets, videos
from daam_diffusers.families.table import (
    FAMILIES,
    Call,
    Encoder,
    Family,
    Grid,
    Kind,
    LayerInfo,
    Segments,
    Text,
    cells,
    denoisers_of,
    every_layer,
    family_of,
    patches,
    pixels_first,
    read_lengths,
    register_family,
    remembered,
    text_first,
)

for _family in (*unets.FAMILIES, *joint.FAMILIES, *cross.FAMILIES, *videos.FAMILIES):
    register_family(_family)

__all__ = [
    "FAMILIES",
    "Call",
    "Encoder",
    "Family",
    "Grid",
    "Kind",
    "LayerInfo",
    "Segments",
    "Text",
    "cells",
    "denoisers_of",
    "every_layer",
    "family_of",
    "patches",
    "pixels_first",
    "read_lengths",
    "register_family",
    "remembered",
    "text_first",
]
