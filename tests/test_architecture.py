"""Rules about the code as a whole, read from its source: who imports whom, who reads the environment, how long things may get.

import-linter (``make check``) holds the layers of the packages too; this test also knows ``settings``, ``errors`` and
``switchyard``, which are single files.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import brokers
from tests.rig.processes import ROOT

#: From the bottom to the top: a layer imports only from those before it, and never from its own siblings.
#: ``migrations`` stands below ``cli``, so that ``switchyard migrate`` can run it.
LAYERS = (
    ("settings", "errors"),
    ("ledger",),
    ("runtime",),
    ("brokers", "middleware"),
    ("keeper",),
    ("control",),
    ("switchyard",),
    ("actors",),
    ("migrations",),
    ("api", "dashboard", "cli", "loadtest"),
)
#: ``settings`` raises the errors of ``errors``; nothing else crosses within a layer.
ALLOWED = {("settings", "errors")}

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

LONGEST_FUNCTION = 60
LONGEST_MODULE = 500


def sources() -> list[Path]:
    """Every module of the product."""
    found = [ROOT / f"{name}.py" for name in LEVEL if (ROOT / f"{name}.py").exists()]
    for name in LEVEL:
        found += sorted((ROOT / name).rglob("*.py"))
    return found


#: What each module says, by its path from the checkout.
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text(), str(path)) for path in sources()}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every imported module with its line, wherever in the file the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module


def breaches(name: str, tree: ast.AST) -> list[str]:
    """The imports of a module in the package or file ``name`` that break the layers."""
    found = []
    for line, module in imports(tree):
        target = module.split(".")[0]
        if target == name or target not in LEVEL or (name, target) in ALLOWED:
            continue
        if LEVEL[target] >= LEVEL[name]:
            found.append(f"line {line}: {name} imports {module}")
    return found


def environment_reads(tree: ast.AST) -> list[str]:
    """Where a module reads the process's environment."""
    names = {"environ", "environb", "getenv", "getenvb"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name) and node.value.id == "os":
            found.append(f"line {node.lineno}: os.{node.attr}")
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [f"line {node.lineno}: from os import {alias.name}" for alias in node.names if alias.name in names]
    return found


def broker_comparisons(tree: ast.AST) -> list[str]:
    """Where a module decides by the name of a broker: ``x == "redis"``, ``x in ("redis", ...)``, ``case "redis":``."""
    found = []
    for node in ast.walk(tree):
        decided_by: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            membership = isinstance(node.ops[0], ast.In | ast.NotIn)
            decided_by = node.comparators if membership else [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            decided_by = [node.value]
        constants = {leaf.value for side in decided_by for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)}
        if constants & set(brokers.TRANSPORTS):
            found.append(f"line {decided_by[0].lineno}: {ast.unparse(node)}")
    return found


def found_by(rule: Callable[[str, ast.Module], list[str]], *, except_in: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """What a rule finds, by path; empty when every module keeps it."""
    found = {path: rule(path, tree) for path, tree in TREES.items() if not path.startswith(except_in)}
    return {path: breaks for path, breaks in found.items() if breaks}


def test_imports_go_one_way():
    assert found_by(lambda path, tree: breaches(Path(path).parts[0].removesuffix(".py"), tree)) == {}


def test_only_settings_reads_the_environment():
    assert found_by(lambda path, tree: environment_reads(tree), except_in=("settings.py",)) == {}


def test_nothing_outside_brokers_decides_by_the_name_of_a_broker():
    assert found_by(lambda path, tree: broker_comparisons(tree), except_in=("settings.py", "brokers/", "loadtest/")) == {}


def test_the_drivers_of_brokers_stay_in_brokers():
    def drivers(path: str, tree: ast.Module) -> list[str]:
        return [f"line {line}: {module}" for line, module in imports(tree) if module.split(".")[0] in ("redis", "pika")]

    assert found_by(drivers, except_in=("brokers/", "loadtest/")) == {}


def test_every_module_says_what_it_is_for():
    assert found_by(lambda path, tree: [] if (ast.get_docstring(tree) or "").strip() else ["no docstring"]) == {}


def test_functions_stay_short():
    def long(path: str, tree: ast.Module) -> list[str]:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
        return [f"{name}: {length} lines" for name, length in lengths.items() if length > LONGEST_FUNCTION]

    # A migration is a list of statements in order, written once.
    assert found_by(long, except_in=("migrations/versions/",)) == {}


def test_modules_stay_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}

    assert {path: length for path, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_no_module_is_a_drawer_for_odds_and_ends():
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "core.py", "misc.py"}

    assert [str(path) for path in sources() if path.name in drawers] == []


def test_every_package_is_known_to_the_layers():
    known = {*LEVEL, "tests", "docs", "build", "dist", "var"}

    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    modules = {path.stem for path in ROOT.glob("*.py")}

    assert (packages | modules) - known == set()


@pytest.mark.parametrize(
    ("rule", "source", "finds"),
    [
        (lambda tree: breaches("ledger", tree), "import brokers.redis", "line 1: ledger imports brokers.redis"),
        (
            lambda tree: breaches("middleware", tree),
            "def f():\n    from brokers import wire",
            "line 2: middleware imports brokers",
        ),
        (lambda tree: breaches("errors", tree), "import settings", "line 1: errors imports settings"),
        (environment_reads, "import os\nx = os.environ['BROKER']", "line 2: os.environ"),
        (environment_reads, "from os import getenv", "line 1: from os import getenv"),
        (broker_comparisons, "if settings.broker == 'redis': pass", "line 1: settings.broker == 'redis'"),
        (broker_comparisons, "if name in ('redis', 'x'): pass", "line 1: name in ('redis', 'x')"),
    ],
)
def test_the_rules_find_what_breaks_them(rule, source: str, finds: str):
    assert rule(ast.parse(source)) == [finds]
