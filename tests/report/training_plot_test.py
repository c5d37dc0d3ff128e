"""Pictures of runs: what is drawn, and what numbers cannot break."""

import math
import pathlib
import sys

import pytest

from mp_loop.report import training_plot
from mp_loop.run import run_folder
from tests.support.run_folders import FLAGS, line


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def png_size(path):
    data = pathlib.Path(path).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


PICTURES = [
    pytest.param([], [], id="nothing logged yet"),
    pytest.param([line(20)], [{"step": 20, "eval_accuracy": 0.5}], id="one line"),
    pytest.param(
        [line(20, loss=math.nan), line(40, loss=math.inf, skipped_steps=4)],
        [{"step": 40, "eval_accuracy": math.nan}],
        id="not finite",
    ),
    pytest.param([line(20, loss_scale=None), line(40)], [], id="no loss scale"),
    pytest.param([line(20, loss_scale=1.0)] * 2, [], id="a constant loss scale"),
]


@pytest.mark.parametrize(("metrics", "evaluations"), PICTURES)
def test_picture(folder, metrics, evaluations):
    run = run_folder.RunFolder.create(str(folder), FLAGS)
    for values in metrics:
        run.log(values)
    for values in evaluations:
        run.log_evaluation(values["step"], values)
    run.close()
    path = training_plot.draw_run(folder)
    assert path == str(folder / "training.png")
    assert png_size(path) == (1200, 1200)


def test_without_matplotlib_there_is_no_picture(folder, monkeypatch):
    run_folder.RunFolder.create(str(folder), FLAGS).close()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert training_plot.draw_run(folder) is None
    assert not (folder / "training.png").exists()
