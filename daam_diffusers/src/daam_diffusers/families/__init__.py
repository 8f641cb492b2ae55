"""The table of denoisers: `table` says what a row is, the other modules hold the rows."""

from daam_diffusers.families import transformers, unets
from daam_diffusers.families.table import FAMILIES as FAMILIES
from daam_diffusers.families.table import Call as Call
from daam_diffusers.families.table import Encoder as Encoder
from daam_diffusers.families.table import Family as Family
from daam_diffusers.families.table import Grid as Grid
from daam_diffusers.families.table import Kind as Kind
from daam_diffusers.families.table import LayerInfo as LayerInfo
from daam_diffusers.families.table import Segments as Segments
from daam_diffusers.families.table import Text as Text
from daam_diffusers.families.table import cells as cells
from daam_diffusers.families.table import denoisers_of as denoisers_of
from daam_diffusers.families.table import family_of as family_of
from daam_diffusers.families.table import patches as patches
from daam_diffusers.families.table import pixels_first as pixels_first
from daam_diffusers.families.table import read_lengths as read_lengths
from daam_diffusers.families.table import register_family as register_family
from daam_diffusers.families.table import remembered as remembered
from daam_diffusers.families.table import text_first as text_first

for _family in (*unets.FAMILIES, *transformers.FAMILIES):
    register_family(_family)
