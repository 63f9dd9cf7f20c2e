"""The tests that the documents name exist: a guarantee whose test was renamed away would look guarded and be none."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.rig.processes import ROOT

DOCUMENTS = ("docs/protocol-tests.md", "docs/mutations.md")
#: `tests/folder/test_file.py::test_name`; a parameter's brackets are no part of the name.
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)[^`]*`")


@cache
def functions_in(path: str) -> frozenset[str]:
    """The test functions of a file, on their own or in classes."""
    file = ROOT / path
    if not file.exists():
        return frozenset()
    tree = ast.parse(file.read_text(), path)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_test_that_a_document_names_exists(document):
    named = NAMED.findall((ROOT / document).read_text())

    assert len(named) > 20
    assert [f"{path}::{name}" for path, name in named if name not in functions_in(path)] == []


def test_every_edge_case_has_a_test():
    rows = [line for line in (ROOT / "docs/protocol-tests.md").read_text().splitlines() if line.startswith("|")]
    cases = [line for line in rows if not line.startswith(("| edge case", "|---"))]

    assert len(cases) > 200
    assert [line for line in cases if not NAMED.search(line)] == []


def test_every_decision_that_must_be_shown_has_its_section():
    headings = re.findall(r"^## (\d+)\.", (ROOT / "docs/protocol-tests.md").read_text(), re.MULTILINE)

    assert headings == [str(number) for number in range(1, 33)]
