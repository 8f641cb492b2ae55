"""The distribution's long description: README.md without what only the repository holds.

A package index shows no picture and follows no link of the repository's. So there a picture is its
description, and a link its words, each with the path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

OUTSIDE = r"\[([^\]]*)\]\(\.\./([^)#]+)[^)]*\)"  # its words, and the path without an anchor


class Readme(MetadataHookInterface):
    """Gives `readme` to the metadata of pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add it to the table `project`."""
        text = Path(self.root, "README.md").read_text("utf-8")
        text = re.sub("!" + OUTSIDE, r"*\1* (`\2`)", text)
        text = re.sub(OUTSIDE, r"\1 (`\2`)", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
