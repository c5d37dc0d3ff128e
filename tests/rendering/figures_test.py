"""Pictures: PNG files, or none where matplotlib is missing."""

import pathlib
import sys

import pytest

from mp_loop.rendering import figures


def fill(figure):
    axis = figure.subplots()
    axis.plot([0, 1], [1, 0])
    figures.hide_spines(axis)
    assert not axis.spines["top"].get_visible()
    assert axis.spines["left"].get_visible()


def test_a_picture_is_a_png_file(tmp_path):
    assert figures.draw(tmp_path / "a.png", (2, 1), fill, dpi=50)
    written = (tmp_path / "a.png").read_bytes()
    assert written[:4] == b"\x89PNG"
    assert int.from_bytes(written[16:20], "big") == 2 * 50  # pixels across


def test_without_matplotlib_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not figures.draw(tmp_path / "a.png", (2, 1), fill)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"old")

    def half(self, path, **_):
        pathlib.Path(path).write_bytes(b"\x89PN")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(OSError, match="disk full"):
        figures.draw(tmp_path / "a.png", (2, 1), fill)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
