"""The run folder: what is written, what a resume keeps, what is refused."""

import glob
import json
import math
import os
import subprocess
import sys

import pytest

from mp_loop.run import record

FLAGS = "--model=mlp\n--seed=3\n"


def line(step, **values):
    return {
        "step": step,
        "applied_steps": step - 1,
        "skipped_steps": 1,
        "loss": 2.0 / step,
        "learning_rate": 0.125,
        "loss_scale": 32768.0,
        "grad_norm": 1.5,
        "examples_per_second": 1000.0,
        **values,
    }


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "one"


def test_a_new_folder_holds_flags_and_environment(folder):
    record.Run.create(str(folder), FLAGS).close()
    assert (folder / "flags.txt").read_bytes() == FLAGS.encode()
    environment = json.loads((folder / "environment.json").read_text())
    assert {
        "date", "python", "tensorflow", "keras", "numpy", "mp_loop", "git_commit",
        "platform", "cpu", "cpu_cores", "gpus", "tf32",
    } == set(environment)  # fmt: skip
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "flags.txt", "environment.json", "metrics.jsonl", "evaluations.jsonl",
        "tensorboard",
    }  # fmt: skip


def test_logged_lines_are_on_disk_at_once_and_read_back_equal(folder):
    run = record.Run.create(str(folder), FLAGS)
    run.log(line(20))
    run.log(line(40, loss=1 / 3))
    run.log_evaluation(40, {"eval_loss": 0.5, "eval_accuracy": 0.75})
    # Before close: a killed run keeps what it logged.
    text = (folder / "metrics.jsonl").read_text()
    assert [json.loads(word) for word in text.splitlines()] == [
        line(20),
        line(40, loss=1 / 3),
    ]
    assert run.read_metrics() == [line(20), line(40, loss=1 / 3)]
    assert run.read_evaluations() == [
        {"step": 40, "eval_loss": 0.5, "eval_accuracy": 0.75}
    ]
    run.close()


def test_numbers_that_are_not_finite_stay_valid_json(folder):
    run = record.Run.create(str(folder), FLAGS)
    values = {"loss": math.nan, "grad_norm": math.inf, "low": -math.inf}
    run.log({"step": 1, **values})
    run.write_summary({"runs": [values]})
    run.close()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    strings = {"loss": "nan", "grad_norm": "inf", "low": "-inf"}
    text = (folder / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, **strings}
    text = (folder / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"runs": [strings]}
    (read,) = run.read_metrics()
    assert math.isnan(read["loss"])
    assert (read["grad_norm"], read["low"]) == (math.inf, -math.inf)
    (read,) = record.read_summary(folder)["runs"]
    assert math.isnan(read["loss"])


def test_tensors_and_numpy_numbers_become_python_numbers(folder):
    import numpy as np
    import tensorflow as tf

    run = record.Run.create(str(folder), FLAGS)
    run.log({"step": np.int64(3), "loss": tf.constant(0.5), "scale": np.float32(2)})
    run.close()
    assert run.read_metrics() == [{"step": 3, "loss": 0.5, "scale": 2.0}]


def tensorboard_scalars(folder):
    """(tag, step, value) of every metric in the event files, in order."""
    import tensorflow as tf
    from tensorboard.compat.proto import event_pb2

    scalars = []
    for path in sorted(glob.glob(str(folder / "tensorboard" / "*"))):
        for data in tf.data.TFRecordDataset(path):
            event = event_pb2.Event.FromString(data.numpy())
            for value in event.summary.value:
                if value.tag.startswith(("train/", "eval/")):  # else: hparams, graph
                    number = float(tf.make_ndarray(value.tensor))
                    scalars.append((value.tag, event.step, number))
    return scalars


def test_tensorboard_holds_the_scalars_before_the_run_ends(folder):
    run = record.Run.create(str(folder), FLAGS)
    run.log({"step": 20, "loss": 0.5, "skipped_steps": 2, "grad_norm": None})
    run.log_evaluation(20, {"eval_loss": 0.25, "eval_accuracy": 0.75})
    assert tensorboard_scalars(folder) == [
        ("train/loss", 20, 0.5),
        ("train/skipped_steps", 20, 2.0),
        ("eval/loss", 20, 0.25),
        ("eval/accuracy", 20, 0.75),
    ]
    run.close()


RESUMES = [
    pytest.param(40, [20, 40], id="keeps the line of the step itself"),
    pytest.param(39, [20], id="drops the line of a later step"),
    pytest.param(0, [], id="from the start drops all"),
    pytest.param(100, [20, 40, 60], id="keeps all that is earlier"),
]


@pytest.mark.parametrize(("step", "kept"), RESUMES)
def test_resume(folder, step, kept):
    run = record.Run.create(str(folder), FLAGS)
    for at in (20, 40, 60):
        run.log(line(at))
        run.log_evaluation(at, {"eval_accuracy": at / 100})
    run.close()
    again = record.Run.reopen(str(folder), FLAGS + "--steps=80\n", step)
    assert [read["step"] for read in again.read_metrics()] == kept
    assert [read["step"] for read in again.read_evaluations()] == kept
    again.log(line(80))
    again.close()
    assert again.read_metrics() == [*map(line, kept), line(80)]
    assert (folder / "flags.txt").read_text() == FLAGS + "--steps=80\n"


TORN = [
    pytest.param('{"step": 40, "lo', [20], id="half an object"),
    pytest.param('{"step": 40}', [20, 40], id="whole but for its newline"),
    pytest.param("4", [20], id="JSON that is no object"),
]


@pytest.mark.parametrize(("tail", "kept"), TORN)
def test_a_half_written_last_line(folder, tail, kept):
    run = record.Run.create(str(folder), FLAGS)
    run.log({"step": 20})
    run.close()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(tail)
    assert [read["step"] for read in run.read_metrics()] == kept
    again = record.Run.reopen(str(folder), FLAGS, 50)
    again.log({"step": 60})
    again.close()
    assert [read["step"] for read in again.read_metrics()] == [*kept, 60]


def test_a_damaged_line_in_the_middle_is_reported_and_nothing_is_changed(folder):
    run = record.Run.create(str(folder), FLAGS)
    run.close()
    text = '{"step": 20}\n{"st\n{"step": 60}\n'
    (folder / "metrics.jsonl").write_text(text)
    with pytest.raises(record.RecordError, match="damaged: line 2"):
        record.Run.reopen(str(folder), "other", 60)
    assert (folder / "metrics.jsonl").read_text() == text
    assert (folder / "flags.txt").read_text() == FLAGS


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(folder):
    run = record.Run.create(str(folder), FLAGS)
    run.log(line(20))
    run.close()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(record.RecordError) as error:
        record.Run.create(str(folder), "--seed=4\n")
    assert str(error.value) == (
        f"--output_dir ({folder}) already holds a run; add --resume to continue it, "
        "or choose another folder."
    )
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def a_file(path):
    path.write_text("")
    return path


REFUSED = [
    pytest.param(lambda tmp: "", "must name a folder", id="no name"),
    pytest.param(lambda tmp: a_file(tmp / "f"), "must be a folder", id="a file"),
    pytest.param(
        lambda tmp: a_file(tmp / "f") / "run", "must be writable", id="below a file"
    ),
    pytest.param(
        lambda tmp: "/proc/run", "must be writable", id="an unwritable parent"
    ),
    pytest.param(
        lambda tmp: a_file(tmp / "metrics.jsonl").parent,
        "holds metrics.jsonl of something else",
        id="metrics of something else",
    ),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_create_refuses(tmp_path, make, said):
    output_dir = str(make(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(record.RecordError) as error:
        record.Run.create(output_dir, FLAGS)
    assert said in str(error.value)
    assert f"({output_dir})" in str(error.value) or not output_dir
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_reopen_refuses_a_folder_without_a_run(tmp_path):
    with pytest.raises(record.RecordError, match="holds no run to resume"):
        record.Run.reopen(str(tmp_path / "none"), FLAGS, 0)
    assert not (tmp_path / "none").exists()


def test_a_failed_atomic_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    record.write_atomically(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        record.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


SUMMARIES = [
    pytest.param(None, id="missing"),
    pytest.param("{", id="half written"),
    pytest.param("[]", id="no object"),
]


@pytest.mark.parametrize("text", SUMMARIES)
def test_read_summary_refuses(tmp_path, text):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(record.RecordError, match="not the summary of a run"):
        record.read_summary(tmp_path)


def test_importing_the_module_does_not_import_tensorflow():
    code = (
        "import sys; from mp_loop.run import record; print('tensorflow' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout == "False\n"
