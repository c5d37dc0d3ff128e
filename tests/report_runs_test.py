"""`python -m mp_loop.report`: several runs on one page."""

import json
import os
import subprocess
import sys

import pytest

from mp_loop import report_runs
from mp_loop.cli import app
from mp_loop.config import errors, settings
from mp_loop.run import run_folder
from tests.support.pages import read_page
from tests.support.run_folders import line


def make_run(folder, accuracy, finished=True, **flags):
    config = settings.Config.of(output_dir=str(folder), **flags)
    run = run_folder.RunFolder.create(str(folder), config.to_flagfile())
    run.log(line(20, accuracy=accuracy))
    run.log_evaluation(20, {"eval_loss": 0.5, "eval_accuracy": accuracy})
    run.close()
    if finished:
        summary = {
            "eval_accuracy": accuracy,
            "eval_loss": 0.5,
            "steps": 20,
            "train_seconds": 3725.0,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def report(*words):
    argv = ["report", *map(str, words)]
    _, flag_values = app.parse(
        argv, report_runs.declare, of_experiment=False, words="runs"
    )
    return report_runs.run(None, flag_values)


@pytest.fixture
def runs(tmp_path):
    return [
        make_run(tmp_path / "a" / "x", 0.875, model="mlp", seed=3),
        make_run(tmp_path / "b" / "x", 0.75, finished=False, model="mlp", ema=0.5),
    ]


def test_results_curves_differences_and_links(tmp_path, runs, capsys):
    (tmp_path / "a" / "x" / "report.html").write_text("")
    assert report(*runs, tmp_path / "a") == 0
    told = capsys.readouterr()
    assert told.out == f"Report: {tmp_path / 'report.html'}\n"
    assert f"{tmp_path / 'a'} is no run folder: left out." in told.err
    page, said = read_page(str(tmp_path / "report.html"))
    for part in (
        "2 runs", "mlp on fashion_mnist_mini", "a/x", "b/x (not finished)", "0.8750",
        "0.7500", "1:02:05 h", "Training accuracy", "Evaluation loss", "What differs",
        "seed", "ema",
    ):  # fmt: skip
        assert part in said, part
    differing = said[said.index("What differs") :]
    assert "output_dir" not in differing and "batch_size" not in differing
    assert "a/x/report.html" in page.values and "b/x/report.html" not in page.values


def test_one_run_gets_its_own_report(runs):
    assert report(runs[0]) == 0
    said = read_page(os.path.join(runs[0], "report.html"))[1]
    assert "Accuracy 0.8750 after 20 steps in 1:02:05 h." in said


def test_damaged_and_hostile_runs_are_told(tmp_path, runs):
    name = "<script>alert(1)</script>"
    hostile = make_run(tmp_path / "c" / "x y", 0.5, model=name)
    (tmp_path / "c" / "x y" / "metrics.jsonl").write_text("nonsense\n")
    assert report(*runs, hostile) == 0
    page, said = read_page(str(tmp_path / "report.html"))
    assert page.tags.count("script") == 1 and name in said
    assert "x y: metrics.jsonl is damaged" in said


def test_bad_input(tmp_path, runs, capsys):
    with pytest.raises(errors.UsageError, match="at least one run folder"):
        report(tmp_path / "nothing")
    inner = make_run(tmp_path / "a" / "x" / "inner", 0.5)
    with pytest.raises(errors.UsageError, match=r"--output_dir must be given: .*a/x'"):
        report(inner, make_run(tmp_path / "a" / "x" / "other", 0.5))
    assert report(*runs, f"--output_dir={tmp_path / 'missing'}") == 3
    assert "must be writable" in capsys.readouterr().err


def test_the_command_by_its_name(runs):
    command = [sys.executable, "-m", "mp_loop.report"]
    done = subprocess.run([*command, *runs], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Report: ")
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("Compares runs on one page")
