"""The comparison: its plan, its arithmetic, its table, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mp_loop import compare
from mp_loop.cli import app
from mp_loop.comparison import difference_plot, runs
from mp_loop.config import errors
from mp_loop.run import locking, records, run_folder
from tests.support.summaries import summary

CUSTOM, KERAS = "custom:float16", "keras:float16"


def flag_values(words):
    return app.parse(["compare", *words], compare.declare)


def fake_train(results, made=None, accuracy=lambda planned: 0.5, key="eval_accuracy"):
    """In place of a process: logs in the run folder, or a failure."""

    def train(folder, planned, stop_requested):
        if made is not None:
            made.append(planned.name)
        code = results.get(planned.name, 0)
        if code:
            log = folder / "arms" / f"{planned.name}.log"
            log.write_text("".join(f"line {number}\n" for number in range(40)))
            return code
        run = run_folder.RunFolder.create(
            planned.config.records.output_dir, planned.config.to_flagfile()
        )
        run.log({"step": 1, "loss": 1.0, "loss_scale": 2.0, "skipped_steps": 0})
        run.log_evaluation(1, {key: 0.5, "eval_loss": 1.0})
        found = summary(seed=planned.config.training.seed)
        del found["eval_accuracy"]
        run.write_summary({key: accuracy(planned), **found})
        run.close()
        return 0

    return train


def test_a_comparison_of_made_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "train", fake_train({}))
    out = tmp_path / "out"
    words = [f"--output_dir={out}", "--repeats=2", "--seed=7"]
    assert compare.run(*flag_values(words)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert [line.split(",")[0] for line in said.out.splitlines()[::2]][:4] == [
        f"[1/4] {CUSTOM}",
        f"[2/4] {KERAS}",
        f"[3/4] {CUSTOM}",
        f"[4/4] {KERAS}",
    ]
    table = (out / "comparison.md").read_text()
    assert table in said.out
    comparison = json.loads((out / "comparison.json").read_text())
    assert [run["seed"] for run in comparison["arms"][KERAS]["runs"]] == [7, 8]
    for picture in ("comparison.png", "equivalence.png"):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"
        assert f"{out / picture}" in said.out
    page = (out / "report.html").read_text()
    assert page.count("/report.html") == 4
    assert "accuracy, difference" in page


METRICS = [
    pytest.param("eval_accuracy", "accuracy", id="a share"),
    pytest.param("eval_mean_absolute_error", "mean absolute error", id="an error"),
]


@pytest.mark.parametrize(("key", "title"), METRICS)
def test_a_metric_has_its_own_name(tmp_path, monkeypatch, capsys, key, title):
    seen = []
    monkeypatch.setattr(runs, "train", fake_train({}, key=key))
    monkeypatch.setattr(difference_plot, "draw", lambda *args: seen.append(args))
    words = [f"--output_dir={tmp_path / 'o'}", "--repeats=2"]
    assert compare.run(*flag_values(words)) == 0
    ((_, results, reference, drawn),) = seen
    assert (list(results), reference, drawn) == ([CUSTOM], KERAS, title)
    said = capsys.readouterr().out
    assert f"seed 0: {title} 0.5000" in said and f"| {title}, difference" in said
    assert title == "accuracy" or "accuracy" not in said


def test_one_repeat_has_no_differences(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "train", fake_train({}))
    out = tmp_path / "out"
    assert compare.run(*flag_values([f"--output_dir={out}", "--repeats=1"])) == 0
    assert not (out / "equivalence.png").exists()
    assert "difference" not in (out / "comparison.md").read_text()


def test_the_margin_is_written_before_the_first_run(tmp_path, monkeypatch):
    out = tmp_path / "out"
    seen = []

    def accuracy(planned):
        seen.append(json.loads((out / "design.json").read_text()))
        return 0.5 + 0.001 * planned.repeat * (planned.arm.name == CUSTOM)

    monkeypatch.setattr(runs, "train", fake_train({}, accuracy=accuracy))
    words = [f"--output_dir={out}", "--repeats=2", "--margin=0.005", "--seed=7"]
    assert compare.run(*flag_values(words)) == 0
    assert len(seen) == 4
    assert (seen[0]["margin"], seen[0]["reference"]) == (0.005, KERAS)
    (stage,) = seen[0]["stages"]
    assert (stage["arms"], stage["repeats"]) == ([CUSTOM, KERAS], 2)
    assert "--seed=7" in seen[0]["flags"]
    comparison = json.loads((out / "comparison.json").read_text())
    found = comparison["arms"][CUSTOM]["difference"]
    assert found["differences"] == pytest.approx([0, 0.001])
    assert found["verdict"] == "equivalent"
    assert 0 < found["p"] < 0.05
    assert comparison["stages"] == seen[0]["stages"]
    assert "equivalent within 0.005" in (out / "report.html").read_text()


UNTESTABLE = [
    pytest.param(
        ["--margin=0.01", "--repeats=1"], ["(0.01)", "--repeats (1)"], id="one repeat"
    ),
    pytest.param(
        ["--margin=0.01", f"--arms={CUSTOM}"], ["(0.01)", "--arms"], id="one arm"
    ),
    pytest.param(["--margin=nan"], ["(nan) must be finite"], id="NaN"),
    pytest.param(["--margin=inf"], ["(inf) must be finite"], id="inf"),
    pytest.param(["--margin=-0.01"], ["margin", "-0.01"], id="negative"),
]


@pytest.mark.parametrize(("words", "said"), UNTESTABLE)
def test_a_margin_that_cannot_be_tested_is_refused(tmp_path, monkeypatch, words, said):
    monkeypatch.setattr(runs, "train", fake_train({}))
    out = tmp_path / "out"
    with pytest.raises(errors.UsageError) as error:
        compare.run(*flag_values([f"--output_dir={out}", *words]))
    assert "margin" in str(error.value)
    assert all(part in str(error.value) for part in said)
    assert not out.exists()


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A comparison that failed in its third of four runs, and its flags."""
    out = tmp_path / "out"
    failing = fake_train({"custom-float16-1": 1})
    monkeypatch.setattr(runs, "train", failing)
    words = [f"--output_dir={out}", "--repeats=2", "--margin=0.1", "--seed=7"]
    assert compare.run(*flag_values(words)) == 1
    return out, words


def test_what_is_finished_is_not_made_again(begun, monkeypatch):
    out, words = begun
    (out / "keras-float16-0" / "report.html").unlink(missing_ok=True)
    made = []
    monkeypatch.setattr(runs, "train", fake_train({}, made))
    assert compare.run(*flag_values([*words, "--resume"])) == 0
    assert made == ["custom-float16-1", "keras-float16-1"]
    comparison = json.loads((out / "comparison.json").read_text())
    assert [run["seed"] for run in comparison["arms"][KERAS]["runs"]] == [7, 8]
    assert len(comparison["stages"]) == 1
    # Killed between its summary and its report.
    assert (out / "keras-float16-0" / "report.html").exists()
    # Of a finished comparison nothing is left to make; what is not said is as before.
    made.clear()
    assert compare.run(*flag_values([f"--output_dir={out}", "--resume"])) == 0
    assert made == []


def test_repeats_and_arms_are_added(begun, monkeypatch):
    out, words = begun
    made = []
    monkeypatch.setattr(runs, "train", fake_train({}, made))
    resume = [f"--output_dir={out}", "--resume"]
    assert compare.run(*flag_values([*resume, "--repeats=3"])) == 0
    assert made[:2] == ["custom-float16-1", "keras-float16-1"]
    assert made[2:] == ["custom-float16-2", "keras-float16-2"]
    assert "after results" not in (out / "comparison.md").read_text()
    made.clear()
    arms = f"--arms={CUSTOM},{KERAS},custom:float32"
    assert compare.run(*flag_values([*resume, "--repeats=4", arms])) == 0
    assert sorted(made) == sorted(
        [f"custom-float32-{repeat}" for repeat in range(4)]
        + ["custom-float16-3", "keras-float16-3"]
    )
    comparison = json.loads((out / "comparison.json").read_text())
    assert [run["seed"] for run in comparison["arms"][KERAS]["runs"]] == [7, 8, 9, 10]
    stages = [(s["repeats"], s["after_results"]) for s in comparison["stages"]]
    assert stages == [(2, False), (3, False), (4, True)]
    assert "(2, then 4)" in (out / "comparison.md").read_text()
    assert comparison["margin"] == 0.1


def test_a_resumed_comparison_may_have_moved(begun, monkeypatch):
    out, words = begun
    moved = out.with_name("moved")
    out.rename(moved)
    monkeypatch.setattr(runs, "train", fake_train({}))
    assert compare.run(*flag_values([f"--output_dir={moved}", "--resume"])) == 0
    assert not out.exists()
    assert (moved / "keras-float16-1" / "summary.json").exists()


DIFFERING = [
    pytest.param(["--margin=0.2"], ["--margin (0.2, was 0.1)"], id="margin"),
    pytest.param(["--margin=0"], ["--margin (0.0, was 0.1)"], id="no margin"),
    pytest.param(["--seed=8"], ["--seed (8, was 7)"], id="seed"),
    pytest.param(["--steps=9"], ["--steps (9, was 0)"], id="steps"),
    pytest.param(
        ["--change_precision"], ["--change_precision (True, was False)"], id="change"
    ),
    pytest.param(["--repeats=1"], ["--repeats (1) must be at least 2"], id="repeats"),
    pytest.param(
        [f"--arms={CUSTOM}"], ["--arms", f"must name {KERAS} too"], id="an arm less"
    ),
    pytest.param(
        [f"--arms=keras:float32,{CUSTOM},{KERAS}"],
        ["--arms", f"must keep {KERAS} as the reference"],
        id="another reference",
    ),
    pytest.param(
        ["--arms=custom:float64"], ["--arms (custom:float64)"], id="no such arm"
    ),
]


@pytest.mark.parametrize(("words", "said"), DIFFERING)
def test_a_resumed_comparison_is_the_one_begun(begun, words, said):
    out, _ = begun
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(errors.UsageError) as error:
        compare.run(*flag_values([f"--output_dir={out}", "--resume", *words]))
    assert all(part in str(error.value) for part in said)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert after == before
    locking.FolderLock(out).release()  # was given back


def damage(text):
    return lambda out: (out / "design.json").write_text(text)


NOT_BEGUN = [
    pytest.param(lambda out: (out / "design.json").unlink(), "holds no", id="none"),
    pytest.param(damage("{"), "is not the design", id="half of one"),
    pytest.param(damage("[]"), "is not the design", id="a list"),
    pytest.param(damage('{"margin": 0, "stages": []}'), "is not the", id="no stage"),
]


@pytest.mark.parametrize(("change", "said"), NOT_BEGUN)
def test_what_is_no_comparison_is_not_resumed(begun, change, said):
    out, _ = begun
    change(out)
    with pytest.raises(errors.UsageError, match=said):
        compare.run(*flag_values([f"--output_dir={out}", "--resume"]))


def test_a_comparison_to_resume_is_named():
    with pytest.raises(errors.UsageError, match="--output_dir"):
        compare.run(*flag_values(["--resume"]))


def test_one_process_has_the_folder(begun):
    out, words = begun
    lock = locking.FolderLock(out)
    with pytest.raises(errors.RecordError, match="another process"):
        compare.run(*flag_values([*words, "--resume"]))
    lock.release()


FAILURES = [
    pytest.param(1, 1, id="it diverged"),
    pytest.param(-9, 1, id="it was killed"),
    pytest.param(2, 2, id="it refused its input"),
]


@pytest.mark.parametrize(("child", "code"), FAILURES)
def test_a_failed_arm_ends_the_comparison(tmp_path, monkeypatch, capsys, child, code):
    monkeypatch.setattr(runs, "train", fake_train({"keras-float16-0": child}))
    out = tmp_path / "out"
    assert compare.run(*flag_values([f"--output_dir={out}", "--repeats=2"])) == code
    said = capsys.readouterr().err
    assert f"Arm {KERAS} failed (exit code {child})" in said
    assert "line 39\n" in said
    assert "line 25\n" in said
    assert "line 24\n" not in said
    assert said.endswith(f"python -m mp_loop.compare --output_dir={out} --resume\n")
    assert not (out / "comparison.md").exists()
    assert not (out / "custom-float16-1").exists()


def start(*words):
    return subprocess.run(
        [sys.executable, "-m", "mp_loop.compare", *words],
        capture_output=True,
        text=True,
    )


def test_bad_input_is_one_line_and_code_2(tmp_path):
    out = tmp_path / "out"
    done = start(f"--output_dir={out}", "--arms=custom:float16,torch:float16")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "--arms" in done.stderr
    assert not out.exists()


# Of the 20 steps of a run some are done, and more are left, when it is killed.
TINY = (
    "--dataset=fashion_mnist_mini", "--model=mlp", "--steps=20", "--repeats=1",
    "--log_every=2", "--steps_per_call=2", "--checkpoint_every=4", "--batch_size=64",
    "--deterministic", "--initial_scale=1024",
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a comparison, and what its process said."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, start(f"--output_dir={out}", *TINY)


def test_compare_end_to_end(uninterrupted):
    out, done = uninterrupted
    assert done.returncode == 0, done.stderr
    comparison = json.loads((out / "comparison.json").read_text())
    assert list(comparison["arms"]) == [CUSTOM, KERAS]
    for arm in comparison["arms"].values():
        (run,) = arm["runs"]
        assert run["steps"] == 20
        assert arm["measures"]["final_loss_scale"]["median"] == 1024.0
        assert arm["measures"]["skipped_steps"]["median"] == 0
    assert (out / "comparison.md").read_text() in done.stdout
    assert (out / "comparison.png").stat().st_size > 10_000
    assert "Comparison: " in (out / "report.html").read_text()
    assert len(list(out.glob("*/report.html"))) == 2  # what its links lead to
    for name in ("custom-float16-0", "keras-float16-0"):
        metrics = records.read_metrics(out / name)
        assert [line["step"] for line in metrics] == [*range(2, 21, 2)]


def life(out, until, number, group, *words):
    """Starts a comparison, and kills it when `until` is there."""
    words = [f"--output_dir={out}", *TINY, *words]
    process = subprocess.Popen(
        [sys.executable, "-m", "mp_loop.compare", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list(out.glob(until)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def times(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}


def test_a_killed_comparison_goes_on(tmp_path, uninterrupted):
    out = tmp_path / "out"
    # The machine stops in the midst of a run: nobody has a last word.
    code, _ = life(out, "custom-float16-0/checkpoints/*", signal.SIGKILL, True)
    assert code == -signal.SIGKILL
    assert (out / "design.json").exists() and not times(out)
    # Only the comparison is told; it tells the run, and how to go on.
    until = "keras-float16-0/metrics.jsonl"
    code, said = life(out, until, signal.SIGTERM, False, "--resume")
    assert code == 143
    assert said.endswith(f"mp_loop.compare --output_dir={out} --resume\n")
    finished = times(out)
    assert finished and not (out / "comparison.json").exists()
    done = start(f"--output_dir={out}", "--resume", *TINY)
    assert done.returncode == 0, done.stderr
    # What was finished was left alone.
    assert finished.items() <= times(out).items()
    found, whole = (
        json.loads((folder / "comparison.json").read_text())
        for folder in (out, uninterrupted[0])
    )
    for name, arm in whole["arms"].items():
        for measure in ("eval_accuracy", "eval_loss", "final_loss_scale"):
            values = [run[measure] for run in arm["runs"]]
            assert [r[measure] for r in found["arms"][name]["runs"]] == values
    refused = start(f"--output_dir={out}", "--resume", "--seed=8")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines() == [
        "--seed (8, was 0) must be as in the comparison to be resumed."
    ]
