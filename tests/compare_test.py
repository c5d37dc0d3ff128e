"""The comparison: its plan, its arithmetic, its table, and what it refuses."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from mp_loop import compare
from mp_loop.cli import app
from mp_loop.config import errors, settings
from mp_loop.run import record

CUSTOM, KERAS = "custom:float16", "keras:float16"


def summary(**values):
    return {
        "eval_accuracy": 0.875,
        "eval_loss": 0.5,
        "skipped_steps": 2,
        "final_loss_scale": 32768.0,
        "milliseconds_per_step": 8.0,
        "examples_per_second": 1024.0,
        "peak_memory_bytes": 512 << 20,
        **values,
    }


def names(arms):
    return [arm.name for arm in arms]


ARMS = [
    pytest.param("", "float16", [CUSTOM, KERAS], id="default"),
    pytest.param("", "bfloat16", ["custom:bfloat16", "keras:bfloat16"], id="bfloat16"),
    pytest.param(
        "keras:float32, custom:float16",
        "float16",
        ["keras:float32", CUSTOM],
        id="named, in order",
    ),
]


@pytest.mark.parametrize(("text", "precision", "expected"), ARMS)
def test_arms(text, precision, expected):
    assert names(compare.parse_arms(text, precision)) == expected


BAD_ARMS = [
    pytest.param("custom", "not 'custom'", id="no precision"),
    pytest.param("torch:float16", "not 'torch:float16'", id="no such loop"),
    pytest.param("custom:int8", "not 'custom:int8'", id="no such precision"),
    pytest.param("custom:float16,", "not ''", id="a comma at the end"),
    pytest.param("custom:float16:x", "not 'custom:float16:x'", id="three parts"),
    pytest.param(f"{KERAS},{KERAS}", f"names {KERAS} twice", id="twice"),
]


@pytest.mark.parametrize(("text", "said"), BAD_ARMS)
def test_malformed_arms(text, said):
    with pytest.raises(errors.UsageError) as error:
        compare.parse_arms(text, "float16")
    assert f"--arms ({text})" in str(error.value)
    assert said in str(error.value)


def test_arms_take_turns_and_share_the_seed_of_a_repeat():
    config = settings.Config.of(output_dir="out", seed=5, learning_rate=0.5)
    arms = compare.parse_arms("custom:float16,keras:float32", "float16")
    turns = compare.plan(config, arms, 2)
    assert [turn.config for turn in turns] == [
        settings.Config.of(
            output_dir=f"out/{loop}-{precision}-{repeat}",
            seed=5 + repeat,
            learning_rate=0.5,
            loop=loop,
            precision=precision,
        )
        for repeat in (0, 1)
        for loop, precision in (("custom", "float16"), ("keras", "float32"))
    ]


REFERENCES = [
    pytest.param("custom:float16,keras:float32,keras:float16", "keras:float32", id="K"),
    pytest.param("custom:float16,custom:float32", "custom:float16", id="no Keras arm"),
]


@pytest.mark.parametrize(("text", "expected"), REFERENCES)
def test_the_reference_is_the_first_keras_arm(text, expected):
    assert compare.reference(compare.parse_arms(text, "float16")).name == expected


BAD_PLANS = [
    pytest.param({}, 1, ["--output_dir"], id="no folder"),
    pytest.param(
        {"hysteresis": 2, "output_dir": "o"},
        1,
        [f"Arm {KERAS}", "--hysteresis (2)", "LossScaleOptimizer"],
        id="what Keras lacks",
    ),
    pytest.param(
        {"seed": 2**31 - 2, "output_dir": "o"}, 3, ["--seed"], id="seeds run out"
    ),
]


@pytest.mark.parametrize(("values", "repeats", "said"), BAD_PLANS)
def test_a_plan_is_refused_before_anything_runs(values, repeats, said):
    arms = compare.parse_arms("", "float16")
    with pytest.raises(errors.UsageError) as error:
        compare.plan(settings.Config.of(**values), arms, repeats)
    assert all(part in str(error.value) for part in said)


def test_medians_ranges_and_paired_ratios():
    summaries = {
        CUSTOM: [
            summary(milliseconds_per_step=ms, eval_accuracy=accuracy)
            for ms, accuracy in ((4.0, 0.5), (3.0, 0.75), (16.0, 0.625))
        ],
        KERAS: [summary(milliseconds_per_step=ms) for ms in (8.0, 12.0, 16.0)],
    }
    comparison = compare.compare(summaries, KERAS)
    arm = comparison["arms"][CUSTOM]
    assert comparison["reference"] == KERAS
    assert arm["measures"]["milliseconds_per_step"] == {
        "median": 4.0,
        "min": 3.0,
        "max": 16.0,
    }
    assert arm["measures"]["eval_accuracy"]["median"] == 0.625
    # Pairs: 4/8, 3/12, 16/16; the ratio of medians would be 4/12.
    assert arm["ratios"]["milliseconds_per_step"] == {
        "median": 0.5,
        "min": 0.25,
        "max": 1.0,
    }
    assert set(arm["ratios"]) == {
        "milliseconds_per_step",
        "examples_per_second",
        "peak_memory_bytes",
    }
    assert comparison["arms"][KERAS]["ratios"]["milliseconds_per_step"] == {
        "median": 1.0,
        "min": 1.0,
        "max": 1.0,
    }
    assert arm["runs"] == summaries[CUSTOM]


NOT_A_RATIO = [
    pytest.param(1.0, 0.0, id="divided by zero"),
    pytest.param(math.nan, 2.0, id="a run too short to time"),
]


@pytest.mark.parametrize(("value", "by"), NOT_A_RATIO)
def test_a_ratio_that_is_none_is_nan(value, by):
    comparison = compare.compare(
        {
            CUSTOM: [
                summary(examples_per_second=2.0),
                summary(examples_per_second=value),
            ],
            KERAS: [summary(examples_per_second=2.0), summary(examples_per_second=by)],
        },
        KERAS,
    )
    spread = comparison["arms"][CUSTOM]["ratios"]["examples_per_second"]
    assert all(math.isnan(value) for value in spread.values())
    assert "nan" in compare.table(comparison)


def test_table_of_one_run_each():
    comparison = compare.compare(
        {
            CUSTOM: [summary(final_loss_scale=1000.0, peak_memory_bytes=256 << 20)],
            KERAS: [summary(skipped_steps=0)],
        },
        KERAS,
    )
    assert compare.table(comparison) == (
        "|                    | custom:float16 | keras:float16 |\n"
        "| ------------------ | -------------: | ------------: |\n"
        "| accuracy           |         0.8750 |        0.8750 |\n"
        "| loss               |         0.5000 |        0.5000 |\n"
        "| skipped steps      |              2 |             0 |\n"
        "| final loss scale   |           1000 |          2^15 |\n"
        "| ms/step            |           8.00 |          8.00 |\n"
        "| examples/s         |           1024 |          1024 |\n"
        "| peak memory, MiB   |            256 |           512 |\n"
        "| ms/step, ratio     |          1.000 |         1.000 |\n"
        "| examples/s, ratio  |          1.000 |         1.000 |\n"
        "| peak memory, ratio |          0.500 |         1.000 |\n"
        "\n"
        "Ratios: divided by keras:float16.\n"
    )


def test_table_of_repeats_shows_the_range():
    runs = [summary(eval_accuracy=value) for value in (0.5, 0.75, 0.625)]
    text = compare.table(compare.compare({CUSTOM: runs}, CUSTOM))
    assert "| 0.6250 (0.5000 to 0.7500) |" in text
    assert "of 3 runs" in text


def of_accuracies(*accuracies, margin=0.0):
    """A comparison: our accuracies, each beside one of 0.5."""
    runs = [summary(eval_accuracy=value) for value in accuracies]
    other = [summary(eval_accuracy=0.5) for _ in runs]
    return compare.compare({CUSTOM: runs, KERAS: other}, KERAS, margin)


def test_differences_are_paired_and_tested():
    summaries = {
        CUSTOM: [summary(eval_accuracy=value) for value in (0.75, 0.5, 1.0)],
        KERAS: [summary(eval_accuracy=value) for value in (0.625, 0.25, 0.625)],
    }
    comparison = compare.compare(summaries, KERAS, 0.5)
    found = comparison["arms"][CUSTOM]["difference"]
    # 1/4 with a deviation of 1/8; of medians or unpaired it would be another.
    assert found["differences"] == (0.125, 0.25, 0.375)
    assert (found["mean"], found["deviation"]) == (0.25, 0.125)
    assert (found["margin"], found["verdict"]) == (0.5, "equivalent")
    assert comparison["margin"] == 0.5
    assert "difference" not in comparison["arms"][KERAS]


OUTCOMES = [
    pytest.param((0.501, 0.502, 0.503), 0.005, "yes, p = 0.018", id="equivalent"),
    pytest.param((0.5, 0.5, 0.5), 0.005, "yes, p < 0.001", id="equal"),
    pytest.param((0.51, 0.511, 0.509), 0.005, "no: different", id="different"),
    pytest.param(
        (0.51, 0.49), 0.005, "not shown (likely by 71 repeats)", id="too few repeats"
    ),
    pytest.param((0.5, math.nan), 0.005, "not shown", id="not a number"),
]


@pytest.mark.parametrize(("accuracies", "margin", "said"), OUTCOMES)
def test_the_verdict_in_the_table(accuracies, margin, said):
    text = compare.table(of_accuracies(*accuracies, margin=margin))
    (row,) = [line for line in text.splitlines() if "equivalent within" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["equivalent within 0.005", said, "-"]
    assert "written down before the runs" in text
    assert ("likely (80 %)" in text) == ("likely" in said)


def test_the_difference_in_the_table():
    text = compare.table(of_accuracies(0.501, 0.502, 0.503))
    rows = [line.strip("|").split("|") for line in text.splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows]
    # 0.002 and 2.92 * 0.001 / sqrt(3) on either side; below the accuracies.
    assert cells[3] == ["accuracy, difference", "+0.0020 (+0.0003 to +0.0037)", "-"]
    assert cells[2][0] == "accuracy"
    assert "equivalent" not in text
    assert "90 % confidence interval" in text


def test_a_difference_has_no_negative_zero():
    text = compare.table(of_accuracies(0.49999, 0.49999))
    assert "+0.0000 (+0.0000 to +0.0000)" in text


LOOKS = [
    pytest.param([(2, False)], "", id="one"),
    pytest.param([(2, False), (5, False)], "", id="raised before any table"),
    pytest.param([(2, False), (2, True)], "", id="arms added"),
    pytest.param([(2, False), (3, True), (5, True)], "(2, then 3, then 5)", id="looks"),
]


@pytest.mark.parametrize(("stages", "said"), LOOKS)
def test_repeats_added_in_view_of_results_are_told(stages, said):
    comparison = of_accuracies(0.5, 0.5, margin=0.1)
    comparison["stages"] = [
        {"repeats": repeats, "after_results": seen} for repeats, seen in stages
    ]
    text = compare.table(comparison)
    assert ("Repeats were added after results were seen" in text) == bool(said)
    assert said in text


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
        app.new_folder(str(path), "a comparison")
    assert sorted(tmp_path.rglob("*")) == before


def flag_values(words):
    return app.parse(["compare", *words], compare.declare)


def fake_train(results, made=None, accuracy=lambda turn: 0.5):
    """In place of a process: logs in the run folder, or a failure."""

    def train(folder, turn, stop_requested):
        if made is not None:
            made.append(turn.name)
        code = results.get(turn.name, 0)
        if code:
            log = folder / "arms" / f"{turn.name}.log"
            log.write_text("".join(f"line {number}\n" for number in range(40)))
            return code
        run = record.Run.create(
            turn.config.records.output_dir, turn.config.to_flagfile()
        )
        run.log({"step": 1, "loss": 1.0, "loss_scale": 2.0, "skipped_steps": 0})
        run.log_evaluation(1, {"eval_accuracy": 0.5, "eval_loss": 1.0})
        run.write_summary(
            summary(seed=turn.config.training.seed, eval_accuracy=accuracy(turn))
        )
        run.close()
        return 0

    return train


def test_a_comparison_of_made_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "_train", fake_train({}))
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
    pytest.param("sparse_categorical_accuracy", True, id="a share"),
    pytest.param("mean_absolute_error", False, id="an error"),
]


@pytest.mark.parametrize(("metric", "share"), METRICS)
def test_only_shares_are_drawn_in_points(tmp_path, monkeypatch, metric, share):
    seen = []
    monkeypatch.setattr(compare, "_train", fake_train({}))
    monkeypatch.setattr(compare.forest, "draw", lambda *args: seen.append(args))
    words = [f"--output_dir={tmp_path / 'o'}", "--repeats=2", f"--metric={metric}"]
    assert compare.run(*flag_values(words)) == 0
    ((_, results, reference, drawn),) = seen
    assert (list(results), reference, drawn) == ([CUSTOM], KERAS, share)


def test_one_repeat_has_no_differences(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_train", fake_train({}))
    out = tmp_path / "out"
    assert compare.run(*flag_values([f"--output_dir={out}", "--repeats=1"])) == 0
    assert not (out / "equivalence.png").exists()
    assert "difference" not in (out / "comparison.md").read_text()


def test_the_margin_is_written_before_the_first_run(tmp_path, monkeypatch):
    out = tmp_path / "out"
    seen = []

    def accuracy(turn):
        seen.append(json.loads((out / "design.json").read_text()))
        return 0.5 + 0.001 * turn.repeat * (turn.arm.name == CUSTOM)

    monkeypatch.setattr(compare, "_train", fake_train({}, accuracy=accuracy))
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
    monkeypatch.setattr(compare, "_train", fake_train({}))
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
    monkeypatch.setattr(compare, "_train", failing)
    words = [f"--output_dir={out}", "--repeats=2", "--margin=0.1", "--seed=7"]
    assert compare.run(*flag_values(words)) == 1
    return out, words


def test_what_is_finished_is_not_made_again(begun, monkeypatch):
    out, words = begun
    (out / "keras-float16-0" / "report.html").unlink(missing_ok=True)
    made = []
    monkeypatch.setattr(compare, "_train", fake_train({}, made))
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
    monkeypatch.setattr(compare, "_train", fake_train({}, made))
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
    monkeypatch.setattr(compare, "_train", fake_train({}))
    assert compare.run(*flag_values([f"--output_dir={moved}", "--resume"])) == 0
    assert not out.exists()
    assert (moved / "keras-float16-1" / "summary.json").exists()


DIFFERING = [
    pytest.param(["--margin=0.2"], ["--margin (0.2, was 0.1)"], id="margin"),
    pytest.param(["--margin=0"], ["--margin (0, was 0.1)"], id="no margin"),
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
        ["--arms", f"must leave {KERAS} the reference"],
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
    record.Lock(out).release()  # was given back


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
    lock = record.Lock(out)
    with pytest.raises(record.RecordError, match="another process"):
        compare.run(*flag_values([*words, "--resume"]))
    lock.release()


FAILURES = [
    pytest.param(1, 1, id="it diverged"),
    pytest.param(-9, 1, id="it was killed"),
    pytest.param(2, 2, id="it refused its input"),
]


@pytest.mark.parametrize(("child", "code"), FAILURES)
def test_a_failed_arm_ends_the_comparison(tmp_path, monkeypatch, capsys, child, code):
    monkeypatch.setattr(compare, "_train", fake_train({"keras-float16-0": child}))
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


def test_of_a_redrawn_line_the_last_state_is_shown(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"start\n 10%\r 20%\r 30%\r\nError: \xff\n\n")
    assert compare._tail(log) == "start\n 30%\nError: \N{REPLACEMENT CHARACTER}"


def test_a_run_is_a_process_with_a_flagfile_and_a_log(tmp_path, monkeypatch):
    seen = []

    class Process:
        def __init__(self, words, **streams):
            seen.append(words)
            streams["stderr"].write(b"said\n")

        def wait(self, timeout):
            return 3

    monkeypatch.setattr(subprocess, "Popen", Process)
    (tmp_path / "arms").mkdir()
    config = settings.Config.of(output_dir=str(tmp_path))
    (turn,) = compare.plan(config, [compare.Arm("keras", "float32")], 1)
    assert compare._train(tmp_path, turn) == 3
    flagfile = tmp_path / "arms" / "keras-float32-0.flags"
    words = [sys.executable, "-m", "mp_loop.train", f"--flagfile={flagfile}"]
    assert seen == [words]
    assert app.parse(["train", f"--flagfile={flagfile}"])[0] == turn.config
    log = tmp_path / "arms" / "keras-float32-0.log"
    assert log.read_bytes() == b"said\n"
    # What was begun goes on, and so does its log.
    (tmp_path / turn.name).mkdir()
    (tmp_path / turn.name / "flags.txt").touch()
    assert compare._train(tmp_path, turn) == 3
    assert seen == [words, [*words, "--resume"]]
    assert log.read_bytes() == b"said\nsaid\n"


DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(300)
"""


@pytest.fixture
def deaf_turn(tmp_path, monkeypatch):
    """A turn whose process would never end, and returns 7 where it gets SIGTERM."""
    made, begin = [], subprocess.Popen

    def popen(words, **streams):
        made.append(begin([sys.executable, "-c", DEAF], **streams))
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    (tmp_path / "arms").mkdir()
    config = settings.Config.of(output_dir=str(tmp_path))
    (turn,) = compare.plan(config, [compare.Arm("keras", "float32")], 1)

    def ready():
        return (tmp_path / "arms" / "keras-float32-0.log").read_text() == "ready\n"

    return turn, ready, made


def test_a_run_is_told_of_a_signal(tmp_path, deaf_turn):
    turn, ready, _ = deaf_turn
    assert compare._train(tmp_path, turn, lambda: 15 * ready()) == 7


def test_a_second_interrupt_leaves_no_process(tmp_path, deaf_turn):
    turn, ready, made = deaf_turn

    def interrupt():
        if ready():
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        compare._train(tmp_path, turn, interrupt)
    assert made[0].returncode == -signal.SIGKILL


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


def test_compare_end_to_end(tmp_path):
    out = tmp_path / "out"
    done = start(
        f"--output_dir={out}", "--model=mlp", "--steps=6", "--repeats=1",
        "--log_every=2", "--batch_size=32", "--steps_per_call=2",
        "--initial_scale=1024",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    comparison = json.loads((out / "comparison.json").read_text())
    assert list(comparison["arms"]) == [CUSTOM, KERAS]
    for arm in comparison["arms"].values():
        (run,) = arm["runs"]
        assert run["steps"] == 6
        assert arm["measures"]["final_loss_scale"]["median"] == 1024.0
        assert arm["measures"]["skipped_steps"]["median"] == 0
    assert (out / "comparison.md").read_text() in done.stdout
    assert (out / "comparison.png").stat().st_size > 10_000
    assert "Comparison: " in (out / "report.html").read_text()
    assert len(list(out.glob("*/report.html"))) == 2  # what its links lead to
    for name in ("custom-float16-0", "keras-float16-0"):
        metrics = record.read_metrics(out / name)
        assert [line["step"] for line in metrics] == [2, 4, 6]


# Of a turn's 20 steps some are done, and more are left, when it is killed.
TINY = (
    "--dataset=fashion_mnist_mini", "--model=mlp", "--steps=20", "--repeats=2",
    "--log_every=2", "--steps_per_call=2", "--checkpoint_every=4", "--batch_size=64",
    "--deterministic", "--margin=0.05",
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    done = start(f"--output_dir={out}", *TINY)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "comparison.json").read_text())


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
    found = json.loads((out / "comparison.json").read_text())
    for name, arm in uninterrupted["arms"].items():
        for measure in ("eval_accuracy", "eval_loss", "final_loss_scale"):
            values = [run[measure] for run in arm["runs"]]
            assert [r[measure] for r in found["arms"][name]["runs"]] == values
        assert found["arms"][name].get("difference") == arm.get("difference")
    refused = start(f"--output_dir={out}", "--resume", "--margin=0.01")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines() == [
        "--margin (0.01, was 0.05) must be as in the comparison to be resumed."
    ]
