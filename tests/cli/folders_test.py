"""Folders of results: new ones are made, used ones are refused and left alone."""

import pytest

from mp_loop.cli import folders
from mp_loop.config import errors

USED = [
    pytest.param(lambda path: path.write_text(""), "must be a folder", id="a file"),
    pytest.param(
        lambda path: [path.mkdir(), (path / "x").write_text("")],
        "must be new or empty",
        id="not empty",
    ),
]


@pytest.mark.parametrize(("make", "said"), USED)
def test_a_used_folder_is_refused_and_left_alone(tmp_path, make, said):
    path = tmp_path / "out"
    make(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(errors.UsageError, match=said):
        folders.create(str(path), "a comparison")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unnamed_folder_is_refused():
    with pytest.raises(errors.UsageError, match="must name a folder for a benchmark"):
        folders.create("", "a benchmark")


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    assert folders.create(str(tmp_path / "a" / "b"), "a benchmark").is_dir()
