"""Files that are whole or not there."""

import os

import pytest

from mp_loop.run import files


def test_a_failed_atomic_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    files.write_atomically(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    kept = {"metrics.jsonl", "model.keras", ".git", ".env", ".5.other.keras"}
    left = {".flags.txt.123", ".99.model.keras", ".99.predictor.keras"}
    for name in kept | left:
        (tmp_path / name).touch()
    (tmp_path / ".tokenizer.7").mkdir()
    (tmp_path / ".tokenizer.7" / "vocabulary.txt").touch()
    files.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
