"""How long steps take, by a clock of ours."""

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
