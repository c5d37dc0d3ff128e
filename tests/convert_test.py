"""`python -m mp_loop.convert`: photos in, a store out, or nothing."""

import pathlib
import signal

import numpy as np
import pytest
from absl import flags

from mp_loop import convert
from mp_loop.cli import app
from mp_loop.config import errors
from mp_loop.data import record_writing, sources
from tests.support import photos

pytest.importorskip("array_record")


@pytest.fixture
def folder(tmp_path):
    names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(12)]
    photos.write(tmp_path / "photos", {name: i for i, name in enumerate(names)})
    return tmp_path


def run(*words):
    values = flags.FlagValues()
    config, _ = app.parse(["convert", *words], convert.declare, values, False)
    return convert.run(config, values)


def converted(folder, *more):
    return run(f"--dataset=folder:{folder}/photos", f"--output_dir={folder}/a", *more)


def test_a_store_is_made_and_what_was_left_of_another_goes(folder, capsys):
    (folder / ".a.123").mkdir()
    assert converted(folder, "--validation_fraction=0.3") == 0
    said = capsys.readouterr().out
    assert f"--dataset=array_record:{folder}/a" in said
    assert sorted(path.name for path in folder.iterdir()) == ["a", "photos"]
    found = sources.load(f"array_record:{folder}/a")
    wanted = sources.load(f"folder:{folder}/photos", validation_fraction=0.3)
    np.testing.assert_array_equal(found.train.inputs, wanted.train.inputs)
    with pytest.raises(errors.UsageError, match="--output_dir .* must be new or empty"):
        converted(folder)


@pytest.mark.parametrize(
    ("words", "law"),
    [
        (["--dataset=npz:README.md"], r"--dataset \(npz:README.md\) must be folder:"),
        (["--image_size=-1"], r"--image_size \(-1\) must be at least 0"),
        (["--output_dir="], "--output_dir must name a new folder"),
        (["--validation_fraction=0.0001"], "no example to evaluate on"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, words, law):
    with pytest.raises(errors.UsageError, match=law):
        converted(folder, *words)
    assert [path.name for path in folder.iterdir()] == ["photos"]


def test_a_signal_and_a_full_disk_leave_nothing(folder, monkeypatch, capsys):
    def stopped(self):
        signal.raise_signal(signal.SIGTERM)
        return tell(self)

    tell = convert._Progress.__call__
    with monkeypatch.context() as patch:
        patch.setattr(convert._Progress, "__call__", stopped)
        assert converted(folder) == 143
    assert "Interrupted" in capsys.readouterr().err

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record_writing._Writer, "describe", full)
    assert converted(folder) == 3
    assert "a cannot be written: No space left" in capsys.readouterr().err
    assert [pathlib.Path(path).name for path in folder.iterdir()] == ["photos"]
