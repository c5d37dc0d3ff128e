"""The comparison: its plan, its arithmetic, its table, and what it refuses."""

import json
import math
import subprocess
import sys

import pytest

from mp_loop import command, compare, config, record

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
    with pytest.raises(command.UsageError) as error:
        compare.parse_arms(text, "float16")
    assert f"--arms ({text})" in str(error.value)
    assert said in str(error.value)


def test_arms_take_turns_and_share_the_seed_of_a_repeat():
    settings = config.Config(output_dir="out", seed=5, learning_rate=0.5)
    arms = compare.parse_arms("custom:float16,keras:float32", "float16")
    turns = compare.plan(settings, arms, 2)
    assert [turn.settings for turn in turns] == [
        config.Config(
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
    pytest.param({"resume": True, "output_dir": "o"}, 1, ["--resume"], id="resume"),
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
    with pytest.raises(command.UsageError) as error:
        compare.plan(config.Config(**values), arms, repeats)
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
    with pytest.raises(command.UsageError, match=said):
        command.new_folder(str(path), "a comparison")
    assert sorted(tmp_path.rglob("*")) == before


def flag_values(words):
    return command.parse(["compare", *words], compare.declare)


def fake_train(results):
    """In place of a process: logs in the run folder, or a failure."""

    def train(folder, turn):
        code = results.get(turn.name, 0)
        if code:
            log = folder / "arms" / f"{turn.name}.log"
            log.write_text("".join(f"line {number}\n" for number in range(40)))
            return code
        run = record.Run.create(turn.settings.output_dir, turn.settings.to_flagfile())
        run.log({"step": 1, "loss": 1.0, "loss_scale": 2.0, "skipped_steps": 0})
        run.log_evaluation(1, {"eval_accuracy": 0.5, "eval_loss": 1.0})
        run.write_summary(summary(seed=turn.settings.seed))
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
    assert (out / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "report.html").read_text().count("/report.html") == 4


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
    assert not (out / "comparison.md").exists()
    assert not (out / "custom-float16-1").exists()


def test_of_a_redrawn_line_the_last_state_is_shown(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"start\n 10%\r 20%\r 30%\r\nError: \xff\n\n")
    assert compare._tail(log) == "start\n 30%\nError: \N{REPLACEMENT CHARACTER}"


def test_a_run_is_a_process_with_a_flagfile_and_a_log(tmp_path, monkeypatch):
    seen = []

    def call(words, **streams):
        seen.append(words)
        streams["stderr"].write(b"said\n")
        return subprocess.CompletedProcess(words, 3)

    monkeypatch.setattr(subprocess, "run", call)
    (tmp_path / "arms").mkdir()
    settings = config.Config(output_dir=str(tmp_path))
    (turn,) = compare.plan(settings, [compare.Arm("keras", "float32")], 1)
    assert compare._train(tmp_path, turn) == 3
    flagfile = tmp_path / "arms" / "keras-float32-0.flags"
    assert seen == [
        [sys.executable, "-m", "mp_loop.train", f"--flagfile={flagfile}"],
    ]
    assert command.parse(["train", f"--flagfile={flagfile}"])[0] == turn.settings
    assert (tmp_path / "arms" / "keras-float32-0.log").read_bytes() == b"said\n"


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
