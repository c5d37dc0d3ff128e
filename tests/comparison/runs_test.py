"""The runs of a comparison: their order, and the processes that make them."""

import signal
import subprocess
import sys

import pytest

from mp_loop.cli import app
from mp_loop.comparison import designs, runs
from mp_loop.config import comparison_arms, errors, settings

KERAS = "keras:float16"


def test_arms_take_turns_and_share_the_seed_of_a_repeat():
    config = settings.Config.of(output_dir="out", seed=5, learning_rate=0.5)
    arms = designs.parse_arms("custom:float16,keras:float32", "float16")
    planned = runs.plan(config, arms, 2)
    assert [run.config for run in planned] == [
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
    arms = designs.parse_arms("", "float16")
    with pytest.raises(errors.UsageError) as error:
        runs.plan(settings.Config.of(**values), arms, repeats)
    assert all(part in str(error.value) for part in said)


def test_of_a_redrawn_line_the_last_state_is_shown(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"start\n 10%\r 20%\r 30%\r\nError: \xff\n\n")
    assert runs.last_lines(log) == "start\n 30%\nError: \N{REPLACEMENT CHARACTER}"


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
    (run,) = runs.plan(config, [comparison_arms.Arm("keras", "float32")], 1)
    assert runs.train(tmp_path, run) == 3
    flagfile = tmp_path / "arms" / "keras-float32-0.flags"
    words = [sys.executable, "-m", "mp_loop.train", f"--flagfile={flagfile}"]
    assert seen == [words]
    assert app.parse(["train", f"--flagfile={flagfile}"])[0] == run.config
    log = tmp_path / "arms" / "keras-float32-0.log"
    assert log.read_bytes() == b"said\n"
    # What was begun goes on, and so does its log.
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "flags.txt").touch()
    assert runs.train(tmp_path, run) == 3
    assert seen == [words, [*words, "--resume"]]
    assert log.read_bytes() == b"said\nsaid\n"


ENDLESS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(300)
"""


@pytest.fixture
def endless(tmp_path, monkeypatch):
    """A run whose process would never end, and returns 7 where it gets SIGTERM."""
    made, begin = [], subprocess.Popen

    def popen(words, **streams):
        made.append(begin([sys.executable, "-c", ENDLESS], **streams))
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    (tmp_path / "arms").mkdir()
    config = settings.Config.of(output_dir=str(tmp_path))
    (run,) = runs.plan(config, [comparison_arms.Arm("keras", "float32")], 1)

    def ready():
        return (tmp_path / "arms" / "keras-float32-0.log").read_text() == "ready\n"

    return run, ready, made


def test_a_run_is_told_of_a_signal(tmp_path, endless):
    run, ready, _ = endless
    assert runs.train(tmp_path, run, lambda: 15 * ready()) == 7


def test_a_second_interrupt_leaves_no_process(tmp_path, endless):
    run, ready, made = endless

    def interrupt():
        if ready():
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        runs.train(tmp_path, run, interrupt)
    assert made[0].returncode == -signal.SIGKILL
