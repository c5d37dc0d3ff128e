"""The architecture: imports point down, flags and prints live in commands."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "mp_loop"
# Top to bottom; modules of one row know nothing of each other.
ROWS = [
    {"train", "compare", "benchmark", "doctor", "formats", "inspect"},
    {"experiment", "worker"},
    {"command"},
    {"arms", "loop", "exact", "witness"},
    {"probe"},
    {"fit", "keras_baseline"},
    {"step"},
    {"advice", "report"},
    {
        "checkpoints",
        "forest",
        "hub",
        "machine",
        "peer",
        "precision",
        "reading",
        "recompute",
        "state",
    },
    {"norm", "transformer"},
    {
        "chart",
        "profiling",
        "progress",
        "loss_scale",
        "layers",
        "updates",
        "config",
        "data",
        "models",
        "numerics",
        "record",
        "equivalence",
        "heatmap",
        "workloads",
        "cluster",
    },
    {"devices", "distribution", "pairing"},
    {"capability", "processor"},
]
COMMANDS = ROWS[0] | ROWS[2]
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def tree(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def imported(module):
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module == "mp_loop":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.module.startswith("mp_loop."), "import modules, not names"
        elif isinstance(node, ast.Import):
            assert not [a for a in node.names if a.name.startswith("mp_loop")]
    return names & set(MODULES)


def test_every_module_has_its_row():
    assert sorted(name for row in ROWS for name in row) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    (row,) = [i for i, names in enumerate(ROWS) if module in names]
    below = set().union(*ROWS[row + 1 :]) if row + 1 < len(ROWS) else set()
    assert imported(module) <= below


@pytest.mark.parametrize("module", sorted(set(MODULES) - COMMANDS))
def test_only_commands_print_and_read_flags(module):
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print"
        if isinstance(node, ast.Attribute):
            assert node.attr != "FLAGS"
