"""The run folder: what is written, what a resume keeps, what is refused."""

import errno
import json
import shutil
import subprocess
import sys
import tempfile

import pytest

from mp_loop.config import errors
from mp_loop.run import files, records, rescue, run_folder
from tests.support import run_folders

FLAGS, line = run_folders.FLAGS, run_folders.line


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "one"


def test_a_new_folder_holds_flags_and_environment(folder):
    run_folder.RunFolder.create(str(folder), FLAGS).close()
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
    run = run_folder.RunFolder.create(str(folder), FLAGS)
    run.log(line(20))
    run.log(line(40, loss=1 / 3))
    run.log_evaluation(40, {"eval_loss": 0.5, "eval_accuracy": 0.75})
    # Before close: a killed run keeps what it logged.
    text = (folder / "metrics.jsonl").read_text()
    assert [json.loads(word) for word in text.splitlines()] == [
        line(20),
        line(40, loss=1 / 3),
    ]
    assert records.read_metrics(run.folder) == [line(20), line(40, loss=1 / 3)]
    assert records.read_evaluations(run.folder) == [
        {"step": 40, "eval_loss": 0.5, "eval_accuracy": 0.75}
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
    run = run_folder.RunFolder.create(str(folder), FLAGS)
    for at in (20, 40, 60):
        run.log(line(at))
        run.log_evaluation(at, {"eval_accuracy": at / 100})
    run.close()
    again = run_folder.RunFolder.reopen(str(folder), FLAGS + "--steps=80\n", step)
    assert [read["step"] for read in records.read_metrics(again.folder)] == kept
    assert [read["step"] for read in records.read_evaluations(again.folder)] == kept
    again.log(line(80))
    again.close()
    assert records.read_metrics(again.folder) == [*map(line, kept), line(80)]
    assert (folder / "flags.txt").read_text() == FLAGS + "--steps=80\n"


TORN = [
    pytest.param('{"step": 40, "lo', [20], id="half an object"),
    pytest.param('{"step": 40}', [20, 40], id="whole but for its newline"),
    pytest.param("4", [20], id="JSON that is no object"),
]


@pytest.mark.parametrize(("tail", "kept"), TORN)
def test_a_half_written_last_line(folder, tail, kept):
    run = run_folder.RunFolder.create(str(folder), FLAGS)
    run.log({"step": 20})
    run.close()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(tail)
    assert [read["step"] for read in records.read_metrics(run.folder)] == kept
    again = run_folder.RunFolder.reopen(str(folder), FLAGS, 50)
    again.log({"step": 60})
    again.close()
    assert [read["step"] for read in records.read_metrics(again.folder)] == [*kept, 60]


def test_damaged_lines_are_named_and_left_out_before_a_run_goes_on(folder, caplog):
    run_folder.RunFolder.create(str(folder), FLAGS).close()
    text = '{"step": 20}\n{"st\n{"step": 40, "skipped_steps": null}\n{"step": 60}\n'
    (folder / "metrics.jsonl").write_text(text)
    run_folder.RunFolder.reopen(str(folder), FLAGS, 60).close()
    assert caplog.messages == [
        f"{folder}/metrics.jsonl is damaged and partly left out: line 2: not an object "
        "with a step; line 3: skipped_steps is null."
    ]
    assert records.read_metrics(folder) == [{"step": 20}, {"step": 60}]
    assert (folder / "metrics.jsonl.damaged").read_text() == text


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(folder):
    run = run_folder.RunFolder.create(str(folder), FLAGS)
    run.log(line(20))
    run.close()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(errors.RecordError) as error:
        run_folder.RunFolder.create(str(folder), "--seed=4\n")
    assert str(error.value) == (
        f"--output_dir ({folder}) already holds a run; add --resume to continue it, "
        "or choose another folder."
    )
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def a_file(path):
    path.write_text("")
    return path


def a_checkpoint(path):
    checkpoint = path / "checkpoints" / "step-00000100"
    checkpoint.mkdir(parents=True)
    return checkpoint


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
        "must be new or empty; it holds 'metrics.jsonl', which belongs to no run",
        id="metrics of something else",
    ),
    pytest.param(
        lambda tmp: a_file(tmp / "model.keras").parent,
        "it holds 'model.keras'",
        id="a model, perhaps the one to be trained",
    ),
    pytest.param(
        lambda tmp: a_checkpoint(tmp).parents[1],
        "it holds 'checkpoints'",
        id="checkpoints of something else",
    ),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_create_refuses(tmp_path, make, said):
    output_dir = str(make(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(errors.RecordError) as error:
        run_folder.RunFolder.create(output_dir, FLAGS)
    assert said in str(error.value)
    assert f"({output_dir})" in str(error.value) or not output_dir
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_start_left_is_swept_away(folder):
    folder.mkdir(parents=True)
    (folder / ".flags.txt.4711").write_text("--mod")
    run_folder.RunFolder.create(str(folder), FLAGS).close()
    assert not list(folder.glob(".*"))


def test_a_folder_that_vanishes_is_replaced_by_one_with_all_lines(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = run_folder.RunFolder.create(str(folder), FLAGS)
    run.log(line(20))
    shutil.rmtree(folder)
    assert run.rescue("a test") == str(run.folder) != str(folder)
    assert (run.rescued, run.failure) == (True, "a test")
    run.log(line(40))
    run.close()
    assert records.read_metrics(run.folder) == [line(20), line(40)]
    said = (run.folder / "flags.txt").read_text()
    assert said == f"{FLAGS}--output_dir={run.folder}\n"


def test_a_disk_that_is_full_at_the_start_is_noticed_like_any_other(
    folder, tmp_path, monkeypatch
):
    run = run_folder.RunFolder.create(str(folder), FLAGS)
    monkeypatch.setattr(rescue, "roots", lambda: [str(tmp_path)])

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_atomically", full)
    run.write_coverage({"share": 1.0})
    assert (run.rescued, run.failure) == (True, "No space left on device")
    run.close()


def test_where_no_folder_can_be_written_the_run_says_why(folder, monkeypatch):
    run = run_folder.RunFolder.create(str(folder), FLAGS)
    monkeypatch.setattr(rescue, "roots", lambda: ["/proc"])
    assert run.rescue("a test") is None
    assert (run.rescued, run.failure) == (False, "a test")
    assert str(run.folder) == str(folder)
    run.close()


def test_the_folder_is_locked_until_the_run_is_closed(folder):
    run = run_folder.RunFolder.create(str(folder), FLAGS)
    run.close_logs()
    with pytest.raises(errors.RecordError, match="is being written by another process"):
        run_folder.RunFolder.reopen(str(folder), FLAGS, 0)
    run.close()
    run_folder.RunFolder.reopen(str(folder), FLAGS, 0).close()


def test_reopen_refuses_a_folder_without_a_run(tmp_path):
    with pytest.raises(errors.RecordError, match="holds no run to resume"):
        run_folder.RunFolder.reopen(str(tmp_path / "none"), FLAGS, 0)
    assert not (tmp_path / "none").exists()


def test_importing_the_module_does_not_import_tensorflow():
    code = "import sys, mp_loop.run.run_folder; print('tensorflow' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout == "False\n"
