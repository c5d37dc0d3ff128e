"""How long steps take, by a clock of ours."""

import json
import math

from mp_loop.run import timing


def test_the_first_window_holds_the_compilation():
    now = [0.0]
    timer = timing.StepTimer(8, lambda: now[0])
    for seconds, speed in ((10.0, 1.6), (1.0, 16.0), (4.0, 4.0), (2.0, 8.0)):
        with timer.window(2):
            now[0] += seconds
        now[0] += 100.0  # not training
        assert timer.close_window() == speed
    assert timer.seconds == 17.0
    assert timer.seconds_per_step == 1.0  # the median of 0.5, 2 and 1
    assert timer.examples_per_second == 8.0


def test_one_window_alone_counts_and_none_is_nan():
    now = [0.0]
    timer = timing.StepTimer(8, lambda: now[0])
    assert math.isnan(timer.seconds_per_step)
    for _ in range(2):  # two calls in one window
        with timer.window(1):
            now[0] += 2.0
    timer.close_window()
    assert timer.seconds_per_step == 2.0


def test_a_process_that_took_no_step_tells_what_the_run_took(tmp_path):
    assert timing.of_earlier_processes(tmp_path, 8) == {}
    lines = [
        {"step": step, "examples_per_second": speed}
        for step, speed in ((2, 1.6), (4, 16.0), (6, 4.0), (8, 8.0))
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert timing.of_earlier_processes(tmp_path, 8) == {
        "train_seconds": 17.0,
        "examples_per_second": 8.0,
        "milliseconds_per_step": 1000.0,
    }
    summary = {"train_seconds": 17.5, "peak_memory_bytes": 5, "steps": 8}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert timing.of_earlier_processes(tmp_path, 8) == {
        "train_seconds": 17.5,
        "peak_memory_bytes": 5,
    }
