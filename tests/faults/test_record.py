"""docs/reliability.md is what its files say."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import record


def test_the_page_is_what_its_files_say() -> None:
    text = record.PAGE.read_text("utf-8")
    assert record.page(text) == text
    places = {match[1] for match in record.TABLE.finditer(text)}
    assert {file.stem for file in record.FOUND.glob("*.json")} <= places


def test_a_doctored_figure_is_not_the_pages() -> None:
    text = record.PAGE.read_text("utf-8")
    file = next(iter(record.FOUND.glob("*.json")))
    what, value = next(iter(json.loads(file.read_text("utf-8"))["figures"].items()))
    row = f"| {what} | {record.shown(value)} |"
    assert row in text
    assert record.page(text.replace(row, f"| {what} | 12345 |")) != text.replace(
        row, f"| {what} | 12345 |"
    )


def test_each_command_of_the_page_has_its_options() -> None:
    root = record.DOCS.parent
    commands = re.findall(r"^python (tests/faults/\S+\.py)(.*)$", record.PAGE.read_text(), re.M)
    assert commands
    for script, options in commands:
        code = (root / script).read_text("utf-8")
        if "from turn import" in code:  # which has the options of commands that stop calls
            code += (root / "tests/faults/turn.py").read_text("utf-8")
        texts = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
        assert set(re.findall(r"--[\w-]+", options)) <= texts
