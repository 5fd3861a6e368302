"""The table of promises is true to the tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", PAGE)
    assert len(named) >= 20
    for file, test in named:
        assert test in functions_of(ROOT / file), f"{file}::{test}"


def test_the_counts_on_the_page_are_those_of_the_tests():
    damage = (ROOT / "tests/faults/test_damage.py").read_text(encoding="utf-8")
    kills = (ROOT / "tests/faults/test_kills.py").read_text(encoding="utf-8")
    flips = int(re.findall(r"^FLIPS = (\d+)", damage, re.MULTILINE)[0])
    assert f"{flips:,} flips" in PAGE
    listed = re.findall(r"^DAMAGE = \[(.*)\]", damage, re.MULTILINE)[0].split(", ")
    assert f"{len(listed)} kinds of damage" in PAGE
    (killed,) = re.findall(r'"ZOARIUM_KILLS", "(\d+)"', kills)
    assert f"{killed} kills" in PAGE
    (strikes,) = re.findall(r"strikes (\d+) times", PAGE)
    assert f"--kills {strikes}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    sizes = sum(len(range(8, 300, step)) for step in (12, 36))
    assert f"{sizes} sizes of disk" in PAGE
