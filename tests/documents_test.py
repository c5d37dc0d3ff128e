"""What the documents name is there: links, modules, flags, tests, notes."""

import ast
import functools
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from tests import layout_test

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = (
    "train",
    "predict",
    "convert",
    "compare",
    "report",
    "benchmark",
    "inspect",
    "doctor",
    "formats",
)
_PLACES = ("*.md", "docs/**/*.md", "examples/*.md", "experiments/**/*.md")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for place in _PLACES for path in ROOT.glob(place)
)
NOTES = [name for name in DOCUMENTS if name.startswith("docs/decisions/")]
# Flags of other programs, in commands that a document shows.
TIMM = (
    "aa amp amp-dtype checkpoint-hist clip-grad crop-pct cutmix grad-accum-steps hflip "
    "img-size lr mean mixup model-ema model-ema-decay opt ratio reprob scale sched "
    "smoothing std warmup-epochs weight-decay"
)
FOREIGN = {"dry-run", "gpu_tests_on", "gpus", "logdir", "no-deps", *TIMM.split()}


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def slug(heading):
    """The anchor that a renderer makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(path):
    found = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {slug(re.sub(r"[`*]", "", heading)) for heading in found}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    without_code = re.sub(r"```.*?```", "", text(name), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code):
        if link.startswith(("http:", "https:")):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_exist(name):
    """Paths of modules, tests, flagfiles and scripts, as words."""
    if name == "CHANGELOG.md":
        return  # which is history
    words = r"(?:mp_loop|tests|experiments|examples|docs)/(?!s\b)[\w/.-]*\w"
    for word in re.findall(rf"(?<![\w/.-]){words}", text(name)):
        assert (ROOT / word).exists(), word


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tests_exist(name):
    for path, test in re.findall(r"([\w/]+_test\.py)::(\w+)", text(name)):
        assert f"def {test}(" in text(path), f"{path}::{test}"


@functools.cache
def defined(module):
    """The names at the top level of a module, from its source."""
    spec = importlib.util.find_spec(module)
    names = set()
    for node in ast.parse(pathlib.Path(spec.origin).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                names.add(target.id)
    if module == "mp_loop":
        names |= set(importlib.import_module("mp_loop").__all__)
    return names


def resolves(dotted):
    """Whether mp_loop.a.b is a module, or a name at the top of one."""
    words = dotted.split(".")
    path = ROOT.joinpath(*words)
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    if not ROOT.joinpath(*words[:-1]).is_dir() and not (
        ROOT.joinpath(*words[:-1]).with_suffix(".py").is_file()
    ):
        return len(words) > 2 and resolves(".".join(words[:-1]))  # an attribute
    return words[-1] in defined(".".join(words[:-1]))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_names_of_modules_resolve(name):
    for dotted in re.findall(r"(?<![\w.\"'/])mp_loop(?:\.\w+)+", text(name)):
        assert resolves(dotted), dotted


@pytest.mark.parametrize("name", DOCUMENTS)
def test_imported_names_resolve(name):
    """In code: `from mp_loop.data import sources`, and then `sources.load`."""
    for package, module in re.findall(r"from (mp_loop[.\w]*) import (\w+)", text(name)):
        assert resolves(f"{package}.{module}"), f"{package}.{module}"
        for attribute in re.findall(rf"(?<![\w.]){module}\.([a-z]\w+)\(", text(name)):
            assert attribute in defined(f"{package}.{module}"), attribute


@pytest.mark.parametrize(
    "module", [f"{name}.py" for name in layout_test.MODULES], ids=str
)
def test_names_in_docstrings_resolve(module):
    """`mp_loop.folder.module` in a docstring or a comment."""
    source = (layout_test.PACKAGE / module).read_text(encoding="utf-8")
    for dotted in re.findall(r"`(mp_loop(?:\.\w+)+)`", source):
        assert resolves(dotted), dotted


@functools.cache
def flags_of(*program):
    """The flags that a program's --help names."""
    done = subprocess.run(
        [sys.executable, *program, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    found = re.findall(r"^\s*--(?:\[no\])?(\w+)", done.stdout, re.MULTILINE)
    negated = re.findall(r"^\s*--\[no\](\w+)", done.stdout, re.MULTILINE)
    return {*found, *(f"no{name}" for name in negated)}


def commands(name):
    """The programs and flags of the command lines that a document shows."""
    whole = re.sub(r"\\\n\s*", " ", text(name))  # continued lines
    whole = re.sub(r"(`[^`\n]+)\n\s*([^`\n]+`)", r"\1 \2", whole)  # wrapped code
    for line in re.findall(r"python -m mp_loop\.(\w+)([^`\n]*)", whole):
        command, rest = line
        yield command, re.findall(r"(?<![\w-])--(\w+)", rest.split(" && ")[0])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_and_their_flags_exist(name):
    for command, flags in commands(name):
        assert command in COMMANDS or command == "datasets", command
        unknown = set(flags) - flags_of("-m", f"mp_loop.{command}")
        assert not unknown, f"python -m mp_loop.{command} has no {unknown}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_flags_exist(name):
    known = set.union(FOREIGN, *(flags_of("-m", f"mp_loop.{c}") for c in COMMANDS))
    scripts = re.findall(r"python ((?:\w+/)+\w+\.py)", text(name))
    folder = (ROOT / name).parent
    known |= {
        flag
        for script in {*(ROOT / path for path in scripts), *folder.glob("*.py")}
        for flag in re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", script.read_text())
    }
    for code in re.findall(r"`([^`\n]+)`", text(name)):
        for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", code):
            assert flag in known, f"--{flag}"


def test_every_flagfile_is_used_by_a_document():
    documents = "".join(map(text, DOCUMENTS))
    for path in (ROOT / "experiments").rglob("*.flags"):
        assert path.relative_to(ROOT).as_posix() in documents, path


def test_the_tests_of_ci_are_those_of_the_readme():
    ci = text(".ci/run")
    (command,) = re.findall(r"^    (pip install.*pytest)$", text("README.md"), re.M)
    install, test = command.split(" && ")
    assert test in ci.splitlines()
    assert install.replace("pip install", "pip install --quiet") in ci.splitlines()
    assert "python docs/api.py" in ci and "python docs/api.py" in text("README.md")


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_the_map_names_every_folder_in_order(name):
    blocks = re.findall(r"(?:^    .*\n|^\n)+", text(name), re.MULTILINE)
    (map_,) = [block for block in blocks if "comparison" in block and "step" in block]
    words = re.findall(r"^ +(\w+)/? ", map_, re.MULTILINE)
    assert [w for w in words if w in layout_test.FOLDERS] == layout_test.FOLDERS


@pytest.mark.parametrize("index", ["README.md", "docs/README.md"])
def test_every_page_is_listed(index):
    folder = "docs/" if index == "README.md" else ""
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({folder}{path.name}" in text(index)


def notes():
    """The decision notes: {number: (file, title, body)}."""
    found = {}
    for name in NOTES:
        for part in re.split(r"^## ", text(name), flags=re.MULTILINE)[1:]:
            heading, _, body = part.partition("\n")
            number, title = heading.split(". ", 1)
            assert int(number) not in found, f"note {number} is there twice"
            found[int(number)] = (name, title, body)
    return found


def test_the_index_lists_every_note():
    row = r"^\| (\d+) \| [^|]+ \| \[(.*)\]\((.*?)#.*?\) \| (.*) \|$"
    rows = re.findall(row, text("BUILD_NOTES.md"), re.MULTILINE)
    listed = {int(number): (file, title) for number, title, file, _ in rows}
    assert listed == {number: note[:2] for number, note in notes().items()}
    assert list(listed) == list(range(1, len(listed) + 1))


def test_what_replaces_a_note_says_so():
    statuses = re.findall(
        r"^\| (\d+) .* \| ([^|]*) \|$", text("BUILD_NOTES.md"), re.MULTILINE
    )
    said = notes()
    forward = {"replaced by": "Replaces", "replaced in part by": "Replaces",
               "extended by": "Extends"}  # fmt: skip
    for number, status in statuses:
        for how, later in re.findall(r"(\D+?) (\d+)(?:, )?", status):
            assert f"{how.capitalize()} {later}" in said[int(number)][2]
            head = said[int(later)][2].split("**")[0]
            assert re.search(rf"{forward[how]}.*\b{number}\b", head), (number, later)
    marked = {
        number for number, (_, _, body) in said.items()
        if re.match(r"\s*\*(Replaced|Extended)", body)
    }  # fmt: skip
    assert marked == {int(n) for n, status in statuses if status[:3] in ("rep", "ext")}
