"""The architecture: imports point down, flags and prints live in commands."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "mp_loop"
# From top to bottom: a folder imports only from folders below it. The commands are
# the modules of the package itself.
FOLDERS = [
    "comparison",
    "cli",
    "report",
    "run",
    "numerics",
    "bench",
    "step",
    "precision",
    "operations",
    "models",
    "data",
    "distributed",
    "hardware",
    "config",
    "rendering",
]
WITHOUT_TENSORFLOW = ["config", "cli", "rendering"]
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
    # `report/__main__` is a command, by the name that one would guess.
    if path.stem not in ("__init__", "__main__") and path.parent.name != "datasets"
)
COMMANDS = [name for name in MODULES if "/" not in name]


def tree(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def imported(module):
    """The modules of the package that a module imports, at its top or later."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            assert not [a for a in node.names if a.name.startswith("mp_loop")]
        if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
            continue
        if node.module.split(".")[0] == "mp_loop":
            folder = node.module.removeprefix("mp_loop").removeprefix(".")
            found = {f"{folder}/{a.name}".removeprefix("/") for a in node.names}
            assert found <= set(MODULES), "import modules, not names"
            names |= found
    return names


def test_every_folder_has_its_floor():
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found - {"datasets"} == set(FOLDERS)


@pytest.mark.parametrize("module", [name for name in MODULES if "/" in name])
def test_imports_point_down(module):
    folder = module.split("/")[0]
    below = FOLDERS[FOLDERS.index(folder) :]
    assert {name.split("/")[0] for name in imported(module)} <= set(below)


def test_a_bad_flag_is_refused_before_tensorflow_loads():
    """Nor does the parsing of flags, or the tables of a command, need it."""
    light = [name for name in MODULES if name.split("/")[0] in WITHOUT_TENSORFLOW]
    names = [f"mp_loop.{name.replace('/', '.')}" for name in [*light, "train"]]
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'tensorflow' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_has_no_cycle(folder):
    inside = {name for name in MODULES if name.startswith(f"{folder}/")}
    left = {name: imported(name) & inside for name in inside}
    while left:
        leaves = {name for name, needs in left.items() if not needs & set(left)}
        assert leaves, f"a cycle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in leaves}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_what_it_is_and_nothing_else(folder):
    body = ast.parse((PACKAGE / folder / "__init__.py").read_text()).body
    assert len(body) == 1 and ast.get_docstring(ast.Module(body, []))


@pytest.mark.parametrize("module", sorted(set(MODULES) - set(COMMANDS)))
def test_only_commands_print_and_read_flags(module):
    if module.startswith("cli/"):
        return
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print"
        if isinstance(node, ast.Attribute):
            assert node.attr != "FLAGS"
