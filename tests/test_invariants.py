"""The table of invariants names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [line.split("|")[1:-1] for line
        in (TESTS / "invariants.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \d+ \|", line)]


def functions(file):
    return {node.name for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)}


def test_all_forty_eight_are_there_in_order():
    assert [int(row[0]) for row in ROWS] == list(range(1, 49))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_a_row_names_tests_that_exist_or_says_why_there_are_none(row):
    _, what, tests = row
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", tests)
    assert what.strip() and (named or "not shipped:" in tests)
    assert "`" not in re.sub(r"`test_\w+\.py::test_\w+`", "", tests), "a name of another form"
    for file, name in named:
        assert name.startswith("test_") and name in functions(file), f"{file}::{name}"
